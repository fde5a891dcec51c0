"""The live world: which key a step plays, and the renderer beside the model."""

from __future__ import annotations

import dataclasses
import threading
import time
import types

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="vdit serve needs fastapi: pip install -e '.[serve]'")

from tests import tiny
from tests.serve.serving import make_service, quick
from tests.serve.test_restart import ASKED, until
from vdit import worlds
from vdit.data.data_source import WorldsSource
from vdit.generate.simulator import NOTHING
from vdit.serve.schema import VideoRequest
from vdit.serve.world import WORLD_SEED, Latest, RenderedSteer, encode_picture, packed


def test_the_latest_key_wins_and_a_tap_is_played_once():
    latest = Latest()
    assert latest.take() == (NOTHING, None, 0)
    latest.press("d", 1)
    latest.press("w", 2)
    assert latest.take() == ("w", 2, 1)  # d was skipped
    assert latest.take() == ("w", None, 0)  # it is held
    latest.release("w")
    assert latest.take() == ("d", None, 0)  # d still is
    latest.release("d")
    latest.press("a", 3)
    latest.release("a")
    assert latest.take() == ("a", 3, 0)  # tapped between two steps
    assert latest.take() == (NOTHING, None, 0)
    assert latest.idle


def test_the_renderer_step_by_step_is_the_whole_play():
    """Also at the frame's edges, which stop the shape."""
    experiment = tiny.experiment(stride=1, actions=2)
    data = dataclasses.replace(experiment.data, source=WorldsSource(world="steer", count=16))
    generator = types.SimpleNamespace(experiment=dataclasses.replace(experiment, data=data))
    rendered = RenderedSteer(generator, 3)
    rng = np.random.default_rng(0)
    actions = rng.integers(-1, 2, (60, 2)).astype(np.float32)
    actions[10:40, 0] = 1
    steps = [rendered.step(part) for part in np.split(actions, 20)]
    world = worlds.make("steer", seed=WORLD_SEED, size=experiment.sample.size, fps=experiment.sample.fps)
    whole = world.play(3, np.concatenate([np.zeros((1, 2), np.float32), actions]))
    assert whole.meta["stopped"].any()
    np.testing.assert_array_equal(rendered.first, whole.video[0])
    apart = np.abs(np.concatenate(steps).astype(int) - whole.video[1:])
    assert apart.max() <= 1  # sums in another order


@pytest.mark.parametrize(("side", "start"), [(16, b"\x89PNG"), (256, b"\xff\xd8")])
def test_pictures_and_messages(side, start):
    picture = encode_picture(np.zeros((side, side, 3), np.uint8))
    assert picture.startswith(start)
    message = packed({"pictures": [len(picture)]}, [picture])
    assert message.endswith(picture)
    assert int.from_bytes(message[:4], "little") == len(message) - 4 - len(picture)


def test_a_world_and_a_long_rollout_take_turns(tmp_path):
    """A world model keeps keys and values of its past: a rollout is then made by calls that have no steps to watch."""
    service = make_service(tmp_path, tiny.generator(stride=1, actions=2, causal=True, slides=True))
    try:
        [job] = service.submit(VideoRequest(task="rollout", num_frames=1000, num_inference_steps=1), **ASKED)
        until(service, job.id, status=["in_progress"])
        seen = [0]
        while seen[-1] < 3:
            time.sleep(0.02)
            seen.append(service.on_device(lambda: service.job(job.id).progress).result(300))
        assert not service.job(job.id).ended  # the world was served while it was made
        assert seen == sorted(seen)  # and it went on meanwhile
        service.cancel(job.id)
        until(service, job.id, status=["cancelled"])
    finally:
        service.close()


def test_worlds_do_not_keep_the_devices_for_themselves(tmp_path):
    """A world asks for its next frames as soon as it has some."""
    service, ending = make_service(tmp_path, quick()), threading.Event()

    def again() -> None:
        if not ending.is_set():
            service.on_device(again)

    try:
        service.on_device(again)
        [job] = service.submit(VideoRequest(num_inference_steps=3), **ASKED)
        until(service, job.id, status=["completed"])
    finally:
        ending.set()
        service.close()


def test_a_world_goes_on_while_the_devices_compile(tmp_path):
    """The devices' thread does not look up then; here it sleeps in the place of that."""
    generator = quick(pause=3.0)
    service = make_service(tmp_path, generator)
    try:
        [job] = service.submit(VideoRequest(num_inference_steps=1), **ASKED)
        until(service, job.id, status=["in_progress"])
        began = time.monotonic()
        names = [service.on_device(lambda: threading.current_thread().name).result(30) for _ in range(3)]
        if time.monotonic() - began < 2.5:  # on a machine that is not asleep itself
            assert names == ["vdit-urgent"] * 3
            assert not service.job(job.id).ended
        until(service, job.id, status=["completed"])
        assert service.on_device(lambda: 7).result(30) == 7
    finally:
        service.close()
