"""The roll call: hosts that do not come, or do not fit together, are named on all hosts that came."""

import re
import socket
import threading
import time

import pytest

from tests.dist.job import free_port
from vdit.dist.rendezvous import roll_call, split_address
from vdit.errors import ConfigError, HostsError

SAME = {"the experiment": "e1", "the version of jax": "0.10.2"}


def call(hosts, port, *, seconds=1.0, first_late=0.0):
    """hosts: (process id, processes, about) each -> {place in the list: what it raised, or None}."""
    answers = {}

    def one(place, process_id, processes, about):
        time.sleep(first_late if process_id == 0 else 0)
        try:
            roll_call(f"127.0.0.1:{port}", processes, process_id, about, seconds=seconds)
            answers[place] = None
        except (ConfigError, HostsError) as error:
            answers[place] = error

    threads = [threading.Thread(target=one, args=(i, *host)) for i, host in enumerate(hosts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def test_hosts_that_fit_together_go_on_in_any_order_and_the_port_is_free_again():
    port = free_port()
    for late in (0.0, 0.5):
        answers = call([(i, 3, SAME) for i in range(3)], port, seconds=10, first_late=late)
        assert answers == {0: None, 1: None, 2: None}
    socket.create_server(("", port)).close()


def test_missing_hosts_are_named_on_all_that_came():
    port = free_port()
    answers = call([(0, 4, SAME), (2, 4, SAME)], port)
    assert {type(error) for error in answers.values()} == {HostsError}
    assert {str(error) for error in answers.values()} == {
        f"2 of 4 hosts came within 1 s; missing: process 1, 3 (coordinator 127.0.0.1:{port}): "
        "start them, or set VDIT_PROCESSES=2"
    }


def test_without_the_first_host_the_others_say_so():
    port = free_port()
    (error,) = call([(1, 2, SAME)], port).values()
    assert isinstance(error, HostsError)
    assert f"process 1 did not reach process 0 at 127.0.0.1:{port} within 1 s (Connection refused)" in str(error)


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ([(0, 3, SAME), (1, 3, SAME), (1, 3, SAME)], r"VDIT_PROCESS_ID=1 was given to two processes .*number them"),
        ([(0, 2, SAME), (1, 3, SAME)], r"process 1 \(.*\) was started with VDIT_PROCESSES=3, process 0 .* with 2"),
        (
            [(0, 3, SAME), (1, 3, SAME), (2, 3, SAME | {"the experiment": "e2"})],
            r"the experiment is not the same on all hosts: process 2 \(.*\) has e2, the others have e1",
        ),
        (
            [(0, 3, SAME | {"the version of jax": "0.9"}), (1, 3, SAME), (2, 3, SAME)],
            r"the version of jax is not the same on all hosts: process 0 \(.*\) has 0.9, the others have 0.10.2",
        ),
    ],
)  # fmt: skip
def test_hosts_that_do_not_fit_together_are_named_on_all(hosts, words):
    answers = call(hosts, free_port(), seconds=10)
    assert {type(error) for error in answers.values()} == {ConfigError}
    (message,) = {str(error) for error in answers.values()}
    assert re.search(words, message)


def test_strangers_at_the_port_are_not_hosts():
    port = free_port()

    def stranger():
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(b"PRI * HTTP/2.0\r\n\r\n")
                    return
            except OSError:
                time.sleep(0.02)

    thread = threading.Thread(target=stranger)
    thread.start()
    answers = call([(0, 2, SAME), (1, 2, SAME)], port, seconds=10)
    thread.join()
    assert answers == {0: None, 1: None}


def test_a_port_in_use_is_named():
    with socket.create_server(("", 0)) as taken:
        (error,) = call([(0, 2, SAME)], taken.getsockname()[1]).values()
    assert "process 0 cannot listen on port" in str(error)


def test_addresses():
    assert split_address("first:1234") == ("first", 1234)
    assert split_address("[::1]:80") == ("::1", 80)
    for wrong in ("first", "first:", ":80", "first:99999"):
        with pytest.raises(ConfigError, match="give host:port"):
            split_address(wrong)
