"""The loop: where the data stands, what is written when, how a run ends."""

import io
import os
import re
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from tests import tiny
from vdit.checkpoint import Checkpointer
from vdit.errors import ConfigError, DataError
from vdit.train import progress
from vdit.train.logging import JsonLines, read_json_lines
from vdit.train.loop import PrefetchToDevice, Report, SampleHook, start, train
from vdit.train.progress import Bar, Lines, make_display
from vdit.train.state import plan_state
from vdit.train.step import make_train_step


@pytest.fixture(scope="module")
def step():
    return make_train_step(tiny.loss_fn, plan_state(tiny.init_params, tiny.train_config()))


@pytest.fixture
def quiet():
    return Console(file=io.StringIO())


class Recorder:
    """A writer that remembers in what order things came, and how far the data had been read then."""

    def __init__(self):
        self.events, self.values = [], {}

    def scalars(self, step, values):
        self.events.append(("scalars", step))
        self.values[step] = dict(values)

    def videos(self, step, name, videos, fps):
        self.events.append(("videos", step, name, videos.shape, fps))

    def flush(self):
        pass

    def close(self):
        pass


def run(step, directory, quiet, data=None, keep=3, writers=(), **more):
    data = tiny.batches() if data is None else data
    with Checkpointer(directory, keep=keep) as checkpointer:
        state = start(step.plan, jax.random.key(0), checkpointer, data)
        return train(state, step, data, checkpointer=checkpointer, report=Report(writers=writers, console=quiet),
                     **more)  # fmt: skip


def test_the_saved_place_is_after_the_last_batch_used_not_the_one_fetched_ahead(step):
    data, reference = tiny.batches(), tiny.batches()
    feed = PrefetchToDevice(data, step, remaining=3)
    for ahead in (True, True, False):
        batch, place = feed.take()
        feed.fill()
        np.testing.assert_array_equal(batch["index"], next(reference)["index"])
        assert place == reference.get_state()
        assert (data.get_state() != place) == ahead, "one batch ahead, but none beyond the last"


def test_a_resumed_run_reads_on_where_the_stopped_one_was(step, tmp_path, quiet):
    class Interrupted(Exception):
        pass

    class Breaks:
        every = 7

        def __call__(self, at, state, writers):
            raise Interrupted

    with pytest.raises(Interrupted):
        run(step, tmp_path / "a", quiet, hooks=(Breaks(),), writers=(JsonLines(tmp_path / "a.jsonl"),))
    assert len(read_json_lines(tmp_path / "a.jsonl")) == 7
    # the last save was at step 4: steps 5 to 7 are done again
    lines = JsonLines(tmp_path / "a.jsonl", resume_step=4)
    broken = run(step, tmp_path / "a", quiet, writers=(lines,))
    straight = run(step, tmp_path / "b", quiet, writers=(JsonLines(tmp_path / "b.jsonl"),))
    a, b = (jax.tree.leaves(result.state.trees() | {"progress": None}) for result in (broken, straight))
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)
    a, b = (read_json_lines(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert [line["loss"] for line in a] == [line["loss"] for line in b]
    assert [line["step"] for line in a] == list(range(1, 13))


def test_metrics_come_in_order_and_before_the_samples_of_the_same_step(step, quiet):
    recorder = Recorder()
    hook = SampleHook(every=5, sample=lambda at, state: {"samples": np.zeros((2, 3, 4, 4, 3))}, fps=4.0)
    state = step.plan.create(jax.random.key(0))
    report = Report(writers=(recorder,), console=quiet, flops_per_step=1e3)
    result = train(state, step, tiny.batches(), hooks=(hook,), report=report)
    scalars = [event[1] for event in recorder.events if event[0] == "scalars"]
    assert scalars == list(range(1, 13))
    for at in (5, 10):
        videos = ("videos", at, "samples", (2, 3, 4, 4, 3), 4.0)
        assert recorder.events.index(videos) == recorder.events.index(("scalars", at)) + 1
    assert result.metrics["loss"] == recorder.values[12]["loss"]
    assert not result.stopped
    assert recorder.values[12]["speed/tokens_per_second"] > 0
    assert recorder.values[12]["speed/mfu"] > 0


def test_a_signal_ends_the_run_with_a_checkpoint(step, tmp_path, quiet):
    class Signals:
        every = 3

        def __call__(self, at, state, writers):
            if at == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = run(step, tmp_path, quiet, hooks=(Signals(),))
    assert result.stopped
    assert int(result.state.step) == 4
    assert signal.getsignal(signal.SIGTERM) is before
    assert not run(step, tmp_path, quiet).stopped


def test_data_that_ends_too_soon_is_named(step, quiet):
    batches = iter([tiny.batch_of(8, 0), tiny.batch_of(8, 8)])
    with pytest.raises(DataError, match="ended after 2 batches, 10 more are needed"):
        train(step.plan.create(jax.random.key(0)), step, batches, report=Report(console=quiet))


def test_a_batch_of_the_wrong_size_is_named(step):
    with pytest.raises(DataError, match=r"shape \(6, 8\).*batch_size / hosts = 8"):
        PrefetchToDevice(iter([{"x": np.zeros((6, 8))}]), step, remaining=1).take()


def test_a_finished_run_has_nothing_left_to_do(step, tmp_path, quiet):
    run(step, tmp_path, quiet)
    data = tiny.batches()
    result = run(step, tmp_path, quiet, data=data)
    assert int(result.state.step) == 12
    assert result.metrics == {}


def test_progress_is_lines_in_a_log_and_a_bar_on_a_terminal():
    out = io.StringIO()
    display = make_display("vae", 100, console=Console(file=out))
    assert isinstance(display, Lines)
    for at in range(1, 101):
        display.update(at, {"loss": 1 / at, "speed/tokens_per_second": 1234.0, "speed/mfu": 0.5})
    display.close()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3, "not a line for every step"
    assert lines[-1] == "vae  100/100  0:00 left  loss 0.01  1,234 tokens/s  MFU 50%"
    display = make_display("vae", 100, console=Console(file=out, force_terminal=True))
    assert isinstance(display, Bar)
    display.update(50, {"loss": 0.5})
    display.close()
    assert "50/100" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_is_measured_without_compilation(monkeypatch, terminal):
    """2000 steps of 0.35 s, of which the first one compiles for 33 s: twelve minutes, never 18 hours."""
    now, out = [1000.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = make_display("vae", 2000, console=Console(file=out, force_terminal=terminal, width=200))
    for step in range(1, 40):
        now[0] += 33.0 if step == 1 else 0.35
        if step == 1:
            jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 32.0)
        display.update(step, {})
        if terminal:
            display._bar.refresh()
    now[0] += 20.0  # a sample on the way compiles too
    jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 20.0)
    display.update(40, {})
    if terminal:
        display._bar.refresh()
    display.close()
    told = re.findall(r"(?:(\d+):)?(\d+):(\d\d) left", out.getvalue())
    seconds = [3600 * int(hours or 0) + 60 * int(minutes) + int(rest) for hours, minutes, rest in told]
    assert seconds
    assert all(600 < left < 800 for left in seconds)
    assert terminal or "compiled in 0:32" in out.getvalue()


def test_a_batch_that_the_devices_cannot_share_is_named(step, monkeypatch):
    feed = PrefetchToDevice(tiny.batches(), step, remaining=1)
    monkeypatch.setattr(feed, "_num_shards", 3)
    with pytest.raises(ConfigError, match=r"batch_size=8 must be a multiple .* = 1 \* 3"):
        feed.take()
