"""Emulators that others wrote (gymnasium, the extra `gym`): played, saved, restored and recorded."""

from vdit.emulators.base import Emulator, Screen, open_emulator
from vdit.emulators.policies import POLICIES, make_policy
from vdit.emulators.record import Recording, record

__all__ = ["POLICIES", "Emulator", "Recording", "Screen", "make_policy", "open_emulator", "record"]
