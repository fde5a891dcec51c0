"""A crash costs one call, whatever it is."""

import os
import signal
import time

import pytest

from data_pipelines.isolate import Isolated, IsolationError
from vdit.errors import VideoError


def die(file):
    """Dies at the first call, as long as the file says so."""
    with open(file) as lives:
        left = int(lives.read())
    if left:
        with open(file, "w") as lives:
            lives.write(str(left - 1))
        os.kill(os.getpid(), signal.SIGSEGV)
    return "alive"


def refuse():
    raise VideoError("no such frame")


@pytest.fixture(scope="module")
def isolated():
    process = Isolated(seconds=60)
    yield process
    process.close()


def test_values_and_errors_come_back(isolated):
    assert isolated.call(max, 3, 7) == 7
    first = isolated.call(os.getpid)
    assert first == isolated.call(os.getpid) != os.getpid()
    with pytest.raises(VideoError, match="no such frame"):
        isolated.call(refuse)
    assert isolated.call(os.getpid) == first


@pytest.mark.parametrize(("deaths", "result"), [(2, "alive"), (3, None)])
def test_a_process_that_dies_is_tried_three_times(isolated, tmp_path, deaths, result):
    (tmp_path / "left").write_text(str(deaths))
    if result is None:
        with pytest.raises(IsolationError, match="SIGSEGV"):
            isolated.call(die, str(tmp_path / "left"))
    else:
        assert isolated.call(die, str(tmp_path / "left")) == result
    assert isolated.call(max, 1, 2) == 2


def test_a_call_that_never_ends_is_stopped():
    process = Isolated(seconds=3)
    assert process.call(max, 1, 2) == 2
    begun = time.monotonic()
    process.seconds = 0.5
    with pytest.raises(IsolationError, match=r"0\.5 s"):
        process.call(time.sleep, 60)
    assert time.monotonic() - begun < 20
    process.close()
