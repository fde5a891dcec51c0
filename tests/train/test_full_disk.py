"""A full disk ends no training but where it is the checkpoint; what a run or a video cannot do without fails by name.

Files may not grow while `full` is entered (RLIMIT_FSIZE): what a full disk does, without one.
"""

import contextlib
import io
import resource

import jax
import numpy as np
import pytest
from rich.console import Console

from tests import tiny
from vdit.cli import output
from vdit.cli.process import exit_status
from vdit.data.latents import write_latents
from vdit.errors import DataError, VideoError
from vdit.train import logging as metrics
from vdit.train.logging import Logging, make_writers, read_json_lines
from vdit.train.loop import Report, train
from vdit.train.monitor import RunMonitor
from vdit.train.state import plan_state
from vdit.train.step import make_train_step
from vdit.train.workspace import Workspace


@contextlib.contextmanager
def full():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps_of(folder):
    """Steps with a loss in TensorBoard's files, each of which may end in a record that was cut short."""
    from tensorboardX.proto.event_pb2 import Event

    steps = []
    for file in sorted(folder.glob("events*"), key=lambda file: file.name.split(".")[3:5]):
        data = file.read_bytes()
        while len(data) >= 12 and len(data) >= 16 + (length := int.from_bytes(data[:8], "little")):
            event = Event.FromString(data[12 : 12 + length])
            steps += [event.step for value in event.summary.value if value.tag == "loss"]
            data = data[16 + length :]
    return steps


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_records_go_on_once_there_is_room_and_say_what_they_lack(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    space = Workspace(tmp_path)
    with RunMonitor() as watch:
        writers = make_writers("dit", space, Logging(monitor=watch), 0)
        for steps, limit in (((1, 2, 3), contextlib.nullcontext), ((4, 5, 6), full), ((7, 8), contextlib.nullcontext)):
            now[0] += 100
            with limit():
                for step in steps:
                    for writer in writers:
                        writer.scalars(step, {"loss": 1.0 / step})
                        writer.videos(step, "samples", np.zeros((1, 2, 8, 8, 3)), 8.0)
                        writer.flush()
        for writer in writers:
            writer.close()
    assert [line["step"] for line in read_json_lines(space.logs / "dit.jsonl")] == [1, 2, 3, 7, 8]
    assert steps_of(space.logs / "dit") == [1, 2, 3, 7, 8]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4, "one line when a record breaks off, one when it goes on"
    assert all("after step 3" in line for line in said)
    assert sum("dit.jsonl" in line for line in said) == 2


def test_training_goes_on_without_what_is_not_the_checkpoint(tmp_path, capsys):
    step = make_train_step(tiny.loss_fn, plan_state(tiny.init_params, tiny.train_config()))
    space, limit = Workspace(tmp_path), contextlib.ExitStack()

    class Fill:
        every = 1

        def __call__(self, at, state, writers):
            if at == 3:
                limit.enter_context(full())
            if at == 9:
                limit.close()

    with limit, RunMonitor(space.logs / "hosts") as watch:
        writers = make_writers("dit", space, Logging(monitor=watch), 0)
        result = train(step.plan.create(jax.random.key(0)), step, tiny.batches(), hooks=(Fill(),), monitor=watch,
                       report=Report(writers=writers, console=Console(file=io.StringIO())))  # fmt: skip
        watch.note("there is room again")
        for writer in writers:
            writer.close()
    assert int(result.state.step) == 12
    assert [line["step"] for line in read_json_lines(space.logs / "dit.jsonl")][:3] == [1, 2, 3]
    assert "there is room again" in (space.logs / "hosts/host_0.log").read_text()
    assert "dit.jsonl" in capsys.readouterr().err


def latents(path):
    write_latents(path, ({"latent": np.ones((1, 64, 64, 8))} for _ in range(8)))


def video(path):
    output.write(output.Target(path=path, replace=True), np.zeros((3, 8, 8, 3), np.float32), 8.0)


def statistics(path):
    Workspace(path.parent).save_statistics([0.0], [1.0])


@pytest.mark.parametrize(("write", "name", "kind"), [
    (latents, "latents", DataError),
    (video, "frame.png", VideoError),
    (video, "video.mp4", VideoError),
    (statistics, "statistics.json", OSError),
])
def test_what_cannot_be_done_without_fails_by_name_and_leaves_nothing(tmp_path, write, name, kind):
    path = tmp_path / name
    with pytest.raises(kind) as caught, full():
        write(path)
    line, code = exit_status(caught.value)
    assert f"{tmp_path}/" in line
    assert name in line
    assert "a file may not grow that large here" in line
    assert code == 2
    assert list(tmp_path.iterdir()) == []
