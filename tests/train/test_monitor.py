"""What a process tells of itself: where its time goes, what it does when nothing moves, traces on demand."""

import io
import os
import signal
import threading
import time

import jax
import pytest
from rich.console import Console

from tests import tiny
from vdit.dist.mesh import make_mesh
from vdit.errors import ConfigError
from vdit.train.loop import Report, train
from vdit.train.monitor import KINDS, HangDetector, Profiler, RunMonitor, StepTimer, parse_steps
from vdit.train.state import plan_state
from vdit.train.step import make_train_step


@pytest.fixture(scope="module")
def step():
    return make_train_step(tiny.loss_fn, plan_state(tiny.init_params, tiny.train_config(stall_seconds=0.4)))


def run(step, watch, data=None, writers=(), **more):
    state = step.plan.create(jax.random.key(0))
    report = Report(console=Console(file=io.StringIO()), writers=writers)
    return train(state, step, data or tiny.batches(), report=report, monitor=watch, **more)


def test_all_time_is_booked_once(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = StepTimer()
    for kind, seconds in (("compute", 3.0), ("input", 1.0), ("compute", 2.0)):
        now[0] += seconds
        clock.book(kind)
    now[0] += 4.0
    nothing = {"checkpoint": 0.0, "evaluate": 0.0, "sample": 0.0}
    assert clock.take() == nothing | {"input": 1.0, "compute": 5.0, "other": 4.0}
    assert sum(clock.take().values()) == 0
    now[0] += 1.0
    clock.book("sample")
    assert clock.whole() == nothing | {"input": 1.0, "compute": 5.0, "sample": 1.0, "other": 4.0}


class Recorder:
    def __init__(self):
        self.values = {}

    def scalars(self, step, values):
        self.values[step] = dict(values)

    def flush(self):
        pass


def test_a_slow_reader_shows_as_time_waiting_for_data(step):
    class Slow:
        def __init__(self):
            self._batches = tiny.batches()

        def __next__(self):
            time.sleep(0.05)
            return next(self._batches)

    fast, slow = Recorder(), Recorder()
    for recorder, data in ((fast, tiny.batches()), (slow, Slow())):
        with RunMonitor() as watch:
            run(step, watch, data, writers=(recorder,))
    for recorder in (fast, slow):
        for at in range(2, 12):
            shares = {name: value for name, value in recorder.values[at].items() if name.startswith("time/")}
            assert set(shares) == {f"time/{kind}" for kind in KINDS}
            assert sum(shares.values()) == pytest.approx(1)
    assert sum(slow.values[at]["time/input"] for at in range(2, 12)) / 10 > 0.7
    assert slow.values[12]["time/input"] < 0.5, "nothing is read beyond the last batch"


def test_the_log_tells_where_a_run_stood_and_why_it_ended(step, tmp_path):
    with RunMonitor(tmp_path) as watch:
        run(step, watch)
    log = (tmp_path / "host_0.log").read_text()
    assert "train: from step 0 as host 0 of 1; mesh data=1 fsdp=1 sequence=1 tensor=1 of cpu; here devices [0]" in log
    assert "train: left at step 12; input" in log
    assert log.endswith("ended: done\n")
    with pytest.raises(ZeroDivisionError), RunMonitor(tmp_path):
        raise ZeroDivisionError("by me")
    assert (tmp_path / "host_0.log").read_text().endswith("ended: ZeroDivisionError: by me\n")


def test_a_reader_that_hangs_is_a_stall_that_shows_the_stacks_of_all_threads(step, tmp_path, capsys):
    class Hangs:
        count = 0

        def __next__(self):
            self.count += 1
            if self.count == 5:
                self.where_it_hangs()
            return tiny.batch_of(8, self.count)

        def where_it_hangs(self):
            until = time.monotonic() + 20
            while "where_it_hangs" not in log.read_text() and time.monotonic() < until:
                time.sleep(0.02)

    log = tmp_path / "host_0.log"
    with RunMonitor(tmp_path) as watch:
        run(step, watch, Hangs())
    text = log.read_text()
    assert "warning: no step finished for" in text
    assert "here: step 4: waiting for data" in text
    assert "Current thread" in text
    assert "in where_it_hangs" in text
    assert "went on after" in text
    assert "vdit: warning: no step finished for" in capsys.readouterr().err


def test_the_first_step_may_take_its_time_and_so_may_steps_that_are_always_slow():
    calls = []
    stall = HangDetector(0.05, lambda seconds, usual: calls.append(seconds), lambda seconds: None)
    time.sleep(0.3)
    assert not calls, "nothing has been compiled yet"
    for _ in range(3):
        stall.moved()
        time.sleep(0.1)
    time.sleep(0.1)
    assert not calls, "slow, but not ten times slower than usual"
    stall.close()


def test_a_trace_of_the_steps_that_were_asked_for(step, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append(("stop",)))
    seen = []

    class Notes:
        every = 1

        def __call__(self, at, state, writers):
            seen.append((at, len(events)))
            if at == 6:
                (tmp_path / "ask").write_text("2\n")
            if at == 9:
                os.kill(os.getpid(), signal.SIGUSR1)

    profiler = Profiler(tmp_path / "traces", steps=(3, 4), ask=tmp_path / "ask")
    with RunMonitor(tmp_path, profiler=profiler) as watch:
        run(step, watch, hooks=(Notes(),))
    assert events == [("start", str(tmp_path / "traces")), ("stop",)] * 3
    after = dict(seen)
    assert (after[2], after[3], after[4]) == (0, 1, 2), "steps 3 and 4"
    assert (after[7], after[8], after[9]) in ((2, 3, 4), (3, 3, 4)), "two steps after the file came"
    assert (after[10], after[11], after[12]) == (5, 5, 6), "three steps after the signal"
    assert not (tmp_path / "ask").exists()
    assert "a profiler trace up to step 4 is in" in (tmp_path / "host_0.log").read_text()


def test_a_trace_that_cannot_be_written_costs_a_line(step, tmp_path, capsys):
    (tmp_path / "file").touch()
    with RunMonitor(profiler=Profiler(tmp_path / "file" / "traces", steps=(3, 4))) as watch:
        result = run(step, watch)
    assert int(result.state.step) == 12
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / "file" / "traces") in said


@pytest.mark.parametrize("text", ["20", "5:3", "0:2", "a:b", "-1:3"])
def test_steps_of_a_trace(text):
    assert parse_steps("20:25") == (20, 25)
    with pytest.raises(ConfigError, match="give the first and the last step"):
        parse_steps(text)


def test_watching_needs_no_main_thread(step):
    results = []

    def work():
        with RunMonitor() as watch:
            results.append(run(step, watch))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not results[0].stopped
    assert make_mesh().size == 1
