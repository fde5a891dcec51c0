"""Prompts come from three kinds of files; what is wrong with one is said with its line."""

import pytest

from vdit.cli.prompts import read_prompts
from vdit.errors import TextError

WANTED = ["a red circle", 'a "blue" cross, moving']


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", 'a red circle\n\n  a "blue" cross, moving \n'),
    ("a.jsonl", '{"prompt": "a red circle"}\n\n"a \\"blue\\" cross, moving"\n'),
    ("a.jsonl", '{"file": "x", "caption": "a red circle"}\n{"text": "a \\"blue\\" cross, moving"}'),
    ("a.csv", 'file,caption\nx,a red circle\ny,"a ""blue"" cross, moving"\n'),
])  # fmt: skip
def test_the_same_prompts(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_prompts(tmp_path / name) == WANTED


@pytest.mark.parametrize(("name", "data", "named"), [
    ("a.txt", b" \n", "holds no prompt"),
    ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
    ("a.md", b"a", "ends in '.md'"),
    ("a.jsonl", b'"a"\n{"prompt"}\n', "line 2 is not JSON"),
    ("a.jsonl", b'{"prompts": "a"}\n', "line 1: has no text"),
    ("a.jsonl", b'{"prompt": 3}\n', "line 1: has no text"),
    ("a.csv", b"file\nx\n", "line 2: has no text"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, name, data, named):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TextError, match=named) as error:
        read_prompts(tmp_path / name)
    assert name in str(error.value)
