"""`vdit serve` as it is started: which shapes are compiled before the first request."""

import types

import jax
import pytest

pytest.importorskip("fastapi", reason="vdit serve needs fastapi: pip install -e '.[serve]'")

import vdit.generate
from tests import tiny
from tests.cli.test_main import refused
from tests.serve.serving import make_service
from tests.serve.test_restart import ASKED, until
from vdit.cli import serve
from vdit.cli.main import main
from vdit.serve.schema import VideoRequest
from vdit.serve.service import Service

H, W = tiny.SIZE


@pytest.mark.parametrize(("shape", "named"), [
    ("17", "TIME@HEIGHTxWIDTH"), ("17@48", "'48'"), ("@48x48", "''"), ("17@48x48*3", "3 videos"),
    ("17@48x48*16", "--batch 8"), ("17@48x48,x@1x1", "x@1x1"), ("17@48x48*0", "'0'"),
])  # fmt: skip
def test_a_shape_that_cannot_be_read_is_said_before_anything_is_loaded(capsys, shape, named):
    assert named in refused(capsys, "serve", "runs/nowhere", "--warm", shape)


def test_warm_compiles_what_is_asked_for(capsys, tmp_path, monkeypatch):
    """As the command does it, up to the moment when it would listen."""
    generator, made, warmed = tiny.generator(), [], []
    opened = types.SimpleNamespace(experiment=generator.experiment, loaded=generator)
    monkeypatch.setattr(vdit.generate, "open_generator", lambda *_, **how: opened, raising=False)
    monkeypatch.setattr(serve, "_listen", lambda options, service, token: made.append(service))
    monkeypatch.setattr(Service, "warm", lambda service, *shape, batches: warmed.append((*shape, batches)))
    monkeypatch.chdir(tmp_path)
    words = ("--data", "kept", "--warm", f"9@{H}x{W}*1*4,1s@8x8", "--warm", f"5@{H}x{W}", "--pack")
    try:
        assert main(["serve", "runs/mine", *words]) == 0
    finally:
        for service in made:
            service.close()
    seconds = round(generator.experiment.sample.fps)
    assert warmed == [(9, (H, W), (1, 4)), (seconds + 1, (8, 8), ()), (5, (H, W), ())]


def test_a_warm_shape_compiles_nothing_more(tmp_path):
    """Neither the video nor its previews."""
    compiled = []

    def heard(event: str, seconds: float, **_) -> None:
        if "backend_compile" in event:
            compiled.append(event)

    service = make_service(tmp_path, tiny.generator(), pack=False)
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        service.warm(9, (H, W), batches=(1,))
        assert compiled
        del compiled[:]
        [job] = service.submit(VideoRequest(num_frames=9, preview=True), **ASKED)
        until(service, job.id, status=["completed"], timeout=120)
        assert not compiled
        [job] = service.submit(VideoRequest(num_frames=5), **ASKED)
        until(service, job.id, status=["completed"], timeout=120)
        assert compiled  # and of another shape they are heard
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
        service.close()
