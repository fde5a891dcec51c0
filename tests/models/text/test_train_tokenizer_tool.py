import importlib.util
import json
from pathlib import Path

import pytest

from vdit.models.text import load_tokenizer

TOOL = Path(__file__).resolve().parents[3] / "tools" / "train_tokenizer.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("train_tokenizer_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CAPTIONS = ["a red circle, moving left", "a blue\u2028square"]
LINES = [json.dumps({"file": "x", "caption": caption}, ensure_ascii=False) for caption in CAPTIONS]


@pytest.mark.parametrize(("name", "text"), [
    ("c.jsonl", "\n".join(LINES) + "\n"),
    ("c.csv", 'file,caption\nx,"a red circle, moving left"\ny,a blue\u2028square\n'),
    ("c.txt", "\n".join(CAPTIONS) + "\n\n"),
])
def test_every_kind_of_caption_file_trains(tool, tmp_path, capsys, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert tool.read_captions(path) == CAPTIONS
    assert tool.main([str(path), str(tmp_path / "out.model"), "--vocab-size", "300"]) == 0
    assert "300 pieces from 2 captions" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "out.model").vocab_size == 300


@pytest.mark.parametrize(("name", "text", "message"), [
    ("c.jsonl", b'{"caption": "a"}\n{"caption"', "line 2: is not JSON"),
    ("c.jsonl", b"[1]", "line 1: is [1]"),
    ("c.jsonl", b'{"file": "a"}', "line 1: has no text under"),
    ("c.csv", b"", "must name the columns"),
    ("c.txt", b"\n\n", "no caption with a letter"),
    ("c.txt", b"\xff\xfea", "is not UTF-16"),
    ("c.txt", None, "cannot be read"),
])
def test_bad_files_end_with_one_line_and_code_2(tool, tmp_path, capsys, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text)
    assert tool.main([str(path), str(tmp_path / "out.model")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.model").exists()
