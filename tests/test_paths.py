"""Reading files from outside: what is refused, and that nothing waits or fills the memory."""

import os
import socket

import pytest

from vdit.errors import CheckpointError, DataError, VditError, WeightsError
from vdit.paths import open_regular, parse_json, read_bytes, read_json, read_text


def test_a_regular_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf{}")
    assert read_bytes(tmp_path / "a", limit=5) == b"\xef\xbb\xbf{}"
    assert read_json(tmp_path / "a", limit=5) == {}
    (tmp_path / "link").symlink_to("a")
    assert read_text(tmp_path / "link", limit=5, encoding="utf-8-sig") == "{}"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "missing", "broken link", "loop", "NUL"])
def test_only_regular_files_are_opened(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("x")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to("x")
    elif kind == "NUL":
        path = f"{path}\0"
    for read in (open_regular, lambda p, error: read_bytes(p, limit=10, error=error)):
        with pytest.raises(WeightsError, match="x"):
            read(path, error=WeightsError)


def test_a_file_over_its_limit_is_refused_unread(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # a hole: a terabyte that takes no room
    with pytest.raises(CheckpointError, match=f"{1 << 40} bytes"):
        read_bytes(tmp_path / "large", limit=1000, error=CheckpointError)
    with pytest.raises(DataError, match="limit of 10 "):
        read_bytes("/proc/self/status", limit=10)  # says that it has 0 bytes


def test_text_of_another_encoding_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="0xe9"):
        read_text(tmp_path / "a", limit=10)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * 100_000, "64"),
        ("[" * 66 + "]" * 66, "64"),
        ('{"a":' * 66 + "1" + "}" * 66, "64"),
        ('{"a": 1, "a": 2}', "'a'"),
        ("[NaN]", "NaN"),
        ("[-1" + "0" * 64 + "]", "65 digits"),
        ("9" * 10_000, "10000 digits"),
        ('["\\ud800"]', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("", "JSON"),
        ("{'a': 1}", "JSON"),
        ("1 2", "JSON"),
        (b"\xff\xfe\xfd", "JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_is_refused(text, named):
    with pytest.raises(WeightsError, match=named) as caught:
        parse_json(text, name="file.json", error=WeightsError, fix="download it again")
    assert str(caught.value).startswith("file.json: ")
    assert str(caught.value).isprintable()


def test_json_that_is_read():
    unlimited = 10**30  # what transformers writes into tokenizer_config.json
    text = f'{{"a": [{unlimited}, -Infinity, 1.5, null, "\\ud83d\\ude00"], "b": {{"a": 18446744073709551615}}}}'
    assert parse_json(text, name="") == {"a": [unlimited, -float("inf"), 1.5, None, "😀"], "b": {"a": (1 << 64) - 1}}
    assert parse_json("[" * 65 + "]" * 65, name="")


@pytest.mark.parametrize("text", ["two\nlines\r\nand\x1b[31m red\0", "half \ud800 of it", "x" * 10**7, "\n"])
def test_an_error_is_one_short_printable_line(text):
    message = str(VditError(text))
    assert message.isprintable()
    assert len(message) < 2500
