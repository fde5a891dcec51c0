"""Emulators that others wrote (gymnasium, the extra `gym`): played, saved, restored and recorded."""

from vdit.emulators.base import Emulator, Screen, open_emulator
from vdit.emulators.policies import POLICIES, make_policy
from vdit.emulators.record import Recording, record
from vdit.emulators.replay import Moment, Replay, moments, play_on, replays

__all__ = [
    "POLICIES", "Emulator", "Moment", "Recording", "Replay", "Screen", "make_policy", "moments", "open_emulator",
    "play_on", "record", "replays",
]  # fmt: skip
