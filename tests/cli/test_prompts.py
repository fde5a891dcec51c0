"""Prompts from files of three kinds, with what each wants otherwise, and one line for what is wrong."""

import json

import pytest

from vdit.cli.batch import PromptSpec, read_prompts
from vdit.cli.parser import duration
from vdit.errors import TextError

WANTED = ["a red circle", 'a "blue" cross, moving']
FULL = PromptSpec(
    prompt="a dog, runs", negative="blurred", seed=7, frames=duration("33"), size=(64, 96), out="b/dog.mp4"
)


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", 'a red circle\n\n  a "blue" cross, moving \n'),
    ("a.jsonl", '{"prompt": "a red circle"}\n\n"a \\"blue\\" cross, moving"\n'),
    ("a.jsonl", '{"file": "x", "caption": "a red circle"}\n{"text": "a \\"blue\\" cross, moving"}'),
    ("a.csv", 'file,caption\nx,a red circle\ny,"a ""blue"" cross, moving"\n'),
])  # fmt: skip
def test_the_same_prompts(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_prompts(tmp_path / name) == [PromptSpec(prompt=prompt) for prompt in WANTED]


@pytest.mark.parametrize(("name", "text"), [
    ("a.jsonl", '{"prompt": "a dog, runs", "negative": "blurred", "seed": 7, "frames": 33, "size": "64x96", '
                '"out": "b/dog.mp4"}\n{"prompt": "a", "seed": null}'),
    ("a.jsonl", '{"text": "a dog, runs", "negative": "blurred", "seed": 7, "frames": 33, "size": [64, 96], '
                '"out": "b/dog.mp4"}\n"a"'),
    ("a.csv", 'out,prompt,seed,size,frames,negative\nb/dog.mp4,"a dog, runs",7,64x96,33,blurred\n,a,,,,\n'),
])  # fmt: skip
def test_a_line_may_say_more(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_prompts(tmp_path / name) == [FULL, PromptSpec(prompt="a")]


@pytest.mark.parametrize(("name", "data", "named"), [
    ("a.txt", b" \n", "holds no prompt"),
    ("a.txt", b"\xff\xfe\x00", "not UTF-16"),
    ("a.md", b"a", "ends in '.md'"),
    ("a.jsonl", b'"a"\n{"prompt"}\n', "line 2: is not JSON"),
    ("a.jsonl", b'{"prompts": "a"}\n', "line 1: has no text"),
    ("a.jsonl", b'{"prompt": 3}\n', "line 1: has no text"),
    ("a.csv", b"file\nx\n", "line 1: .*'file'"),
    ("a.csv", b"prompt,seed\na,1\na, dog,2\n", "line 3: has more fields"),
    ("a.csv", b"prompt,sede\na,1\n", "line 2: field 'sede' is unknown; nearest: seed"),
    ("a.csv", b"prompt,seed\na,-1\n", "line 2: seed is '-1', must be a whole number from 0 up"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, name, data, named):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TextError, match=named) as error:
        read_prompts(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize(("field", "value", "named"), [
    ("guidence", 3, r"field 'guidence' is unknown.*\(fields: prompt, negative, seed, frames, size, out\)"),
    ("seed", 1.5, "seed is 1.5, must be a whole number from 0 up"),
    ("seed", True, "seed is True"),
    ("seed", 10**22, "seed is 10000000000000000000000, must be a whole number from 0 to 18446744073709551615"),
    ("seed", "1" + "0" * 22, "seed is 10000000000000000000000, must be a whole number from 0 to 18446744073709551615"),
    ("frames", 0, "frames: .0. must be a duration above 0"),
    ("size", "64", "HEIGHTxWIDTH"),
    ("size", [64, 96, 3], "HEIGHTxWIDTH"),
    ("negative", 3, "negative is 3, must be a text"),
    ("out", "../a.mp4", "must be the name of a file in the folder"),
    ("out", "/a.mp4", "must be the name of a file in the folder"),
    ("out", "a\0.mp4", "NUL"),
    ("out", ".", "must be the name of a file in the folder"),
    ("frames", "2 s", "frames: .2 s. must be a number of frames"),
    ("frames", True, "frames: .True. must be a number of frames"),
    ("out", "", "must be the name of a file in the folder"),
])  # fmt: skip
def test_a_wrong_field_is_named(tmp_path, field, value, named):
    (tmp_path / "a.jsonl").write_text('"a"\n' + json.dumps({"prompt": "a", field: value}))
    with pytest.raises(TextError, match=f"line 2: .*{named}"):
        read_prompts(tmp_path / "a.jsonl")
