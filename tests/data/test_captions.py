"""Captions of a folder: what is certain is read as it was meant, everything else is refused by file and line."""

import codecs
import json
import os
import unicodedata
from pathlib import Path

import pytest

from tests.data_paths import shared_data
from vdit.cli.batch import read_prompts
from vdit.data import tables
from vdit.data.captions import COLUMNS, read_captions
from vdit.errors import DataError, TextError


def fill(folder, *names, **files):
    """Empty videos, and files by name, "_" for the dot: text or bytes."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / ".".join(name.rsplit("_", 1))).write_bytes(data)


def captions_of(folder, **options):
    return {entry.file: entry.captions for entry in read_captions(folder, **options).entries}


TWO = {"a.mp4": ("a dog runs",), "b.mp4": ("a cat",)}


@pytest.mark.parametrize("files", [
    *({"captions_jsonl": f'{{"{file}": "a.mp4", "{text}": "a dog runs"}}\n{{"{file}": "b.mp4", "{text}": "a cat"}}'}
      for file, text in [("file", "text"), ("File Name", "Prompt"), ("video-path", "Caption"),
                         ("path", "description")]),
    {"captions_jsonl": '{"file": "a.mp4", "path": "/elsewhere", "caption": "a dog runs", "text": "long", "fps": 8}\n'
                       '{"file": "b.mp4", "caption": "", "text": "a cat"}'},
    {"captions_csv": "file , caption\r\na.mp4, a dog runs\r\n\r\nb.mp4,a cat\r\n"},
    {"captions_csv": "\ufeffcaption;file\na dog runs;a.mp4\na cat;b.mp4\n"},
    {"captions_csv": ",file,caption\n0,a.mp4,a dog runs\n1,./b.mp4,a cat\n"},
    {"captions_tsv": "caption\tfile\na dog runs\ta.mp4\na cat\tb.mp4"},
    {"metadata_csv": 'file_name,text,width\na.mp4,"a dog runs",8\nb.mp4,a cat,8\n'},
    {"metadata_jsonl": '{"file_name": "a.mp4", "text": "a dog runs"}\n{"file_name": "b.mp4", "text": "a cat"}\n'},
    {"videos_txt": "a.mp4\nb.mp4\n", "prompt_txt": "a dog runs\na cat\n"},
    {"videos_txt": "a.mp4\r\nb.mp4", "prompts_txt": "a dog runs\r\na cat\r\n\r\n"},
    {"a_txt": "a dog runs", "b_txt": "\n a cat \n"},
    {"a_txt": codecs.BOM_UTF8 + b"a dog runs", "b_txt": "a cat".encode("utf-16")},
    {"a_txt": codecs.BOM_UTF16_BE + "a dog runs".encode("utf-16-be"), "b_txt": "a cat".encode("utf-32")},
])  # fmt: skip
def test_the_usual_layouts_say_the_same(tmp_path, files):
    fill(tmp_path, "a.mp4", "b.mp4", **files)
    assert captions_of(tmp_path) == TWO


@pytest.mark.parametrize(("name", "data", "caption"), [
    ("c.csv", 'file,caption\na.mp4,"a dog runs\r\nalong"\n', "a dog runs\nalong"),
    ("c.csv", 'file,caption\na.mp4,"a ""dog"", runs"\n', 'a "dog", runs'),
    ("c.csv", "file,caption\na.mp4,a dog\u2028runs\x85on\x1c\n", "a dog\u2028runs\x85on"),
    ("c.jsonl", '{"file": "a.mp4", "caption": "a dog\u2028runs\x85on"}', "a dog\u2028runs\x85on"),
    ("c.json", '[{"file": "a.mp4",\n "caption": "a dog"}]', "a dog"),
    ("c.csv", "file,caption\na.mp4," + "dog " * 50_000, ("dog " * 50_000).strip()),
    ("c.csv", b"file,caption\na.mp4,a dog\x92s ball \x96 red\n", "a dog\u2019s ball \u2013 red"),
    ("c.csv", "file,caption\na.mp4,perché 狗\n".encode("utf-16"), "perché 狗"),
])  # fmt: skip
def test_a_caption_comes_whole_in_captions_and_in_prompts_files(tmp_path, name, data, caption):
    fill(tmp_path, "a.mp4", **{name.replace(".", "_"): data})
    limit = tables.csv.field_size_limit()
    assert captions_of(tmp_path, captions=name) == {"a.mp4": (caption,)}
    assert [wish.prompt for wish in read_prompts(tmp_path / name)] == [caption]
    assert tables.csv.field_size_limit() == limit


@pytest.mark.parametrize(("name", "data", "named"), [
    ("c.csv", "file,caption\na.mp4,a dog, running\n", ("line 2", "3", "2")),
    ("c.csv", "file,caption\nb.mp4,a cat\na.mp4\n", ("line 3",)),
    ("c.csv", 'file,caption\na.mp4,"a dog\nb.mp4,a cat\n', ("line 2",)),
    ("c.csv", 'file,caption\na.mp4,"a dog" runs\n', ("line 2",)),
    ("c.csv", "a.mp4,a dog\n", ("line 1", "a.mp4,a dog")),
    ("c.csv", "file,caption,Caption\na.mp4,a,b\n", ("line 1", "'caption'")),
    ("c.csv", "file,text,prompt\na.mp4,a,b\n", ("line 2", "'text'", "'prompt'")),
    ("c.csv", "file,words\na.mp4,a dog\n", ("'words'",)),
    ("c.csv", b"file,caption\na.mp4,perch\xe9\n", ("line 2", "0xe9", "UTF-8")),
    ("c.csv", "file,caption\na.mp4,a\n".encode("utf-16-le"), ("line 1", "NUL")),
    ("c.csv", "file,caption\n", ("c.csv",)),
    ("c.jsonl", '{"file": "a.mp4", "caption": "a", "caption": "b"}', ("line 1", "'caption'")),
    ("c.jsonl", '{"file": "a.mp4", "caption": "\\u0000"}', ("line 1", "caption")),
    ("c.jsonl", '{"file": "a.mp4", "caption": "\\ud800"}', ("line 1",)),
    ("c.jsonl", '{"file": "a.mp4", "caption": ' + "[" * 100_000, ("line 1",)),
    ("c.jsonl", '{"file": "a.mp4", "caption": [["a"]]}', ("line 1",)),
    ("c.jsonl", '{"file": "a.mp4", "caption": "a", "label": ' + "9" * 400 + "}", ("line 1",)),
    ("c.jsonl", '{"file": "a.mp4", "caption": "a"}\n\n{"file": "./a.mp4", "caption": "b"}', ("line 3", "'a.mp4'")),
    ("c.txt", "a dog\n", ("videos.txt",)),
    ("c.md", "a dog\n", ("'.md'",)),
])  # fmt: skip
def test_what_is_not_certain_is_refused_with_file_and_line(tmp_path, name, data, named):
    fill(tmp_path, "a.mp4", **{name.replace(".", "_"): data})
    with pytest.raises(DataError) as error:
        read_captions(tmp_path, name)
    assert all(part in str(error.value) for part in named), error.value
    assert str(error.value).isprintable()


def test_lists_of_different_lengths_are_refused(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4", videos_txt="a.mp4\nb.mp4\n", prompt_txt="a dog\n")
    with pytest.raises(DataError, match=r"2 lines .* 1"):
        read_captions(tmp_path)


def test_what_the_captions_leave_out_is_told(tmp_path):
    fill(tmp_path, "a.mp4", "b.mp4", "in/c.webm", "readme.txt", captions_csv="file,caption,fps\na.mp4,a dog,8\n",
         metadata_csv="file_name,text\na.mp4,another\n")
    read = read_captions(tmp_path)
    assert read.found == ["a.mp4", "b.mp4", "in/c.webm"]
    assert read.unnamed == ["b.mp4", "in/c.webm"]
    assert [next(word for word in ("metadata.csv", "'fps'", "1 .txt") if word in note) for note in read.notes] == [
        "metadata.csv", "'fps'", "1 .txt"]
    (tmp_path / "picture.JPG").write_bytes(b"")
    assert "2 other files are not read: 1 .jpg, 1 .txt" in read_captions(tmp_path).notes[-1]
    (tmp_path / "picture.JPG").unlink()
    for name in ("captions.csv", "metadata.csv"):
        (tmp_path / name).unlink()
    (tmp_path / "a.txt").write_text("short\nlonger\n")
    read = read_captions(tmp_path)
    assert [entry.captions for entry in read.entries] == [("short", "longer"), ("",), ("",)]
    assert ["1 .txt" in note for note in read.notes] == [True, True]
    assert "'readme.txt'" in read.notes[1]


def test_names_are_found_however_they_are_written(tmp_path):
    name = unicodedata.normalize("NFD", "é.mp4")
    fill(tmp_path, name, "in/b.mp4", captions_csv="file,caption\né.mp4,one\nin\\b.mp4,two\n")
    assert captions_of(tmp_path) == {name: ("one",), "in/b.mp4": ("two",)}
    (tmp_path / "captions.csv").write_text(f"file,caption\n{tmp_path}/in/b.mp4,two\n")
    assert captions_of(tmp_path) == {"in/b.mp4": ("two",)}
    (tmp_path / "captions.csv").unlink()
    (tmp_path / "é.txt").write_text("one")
    assert captions_of(tmp_path)[name] == ("one",)


def test_linked_folders_are_read_once(tmp_path):
    folder, elsewhere = tmp_path / "videos", tmp_path / "elsewhere"
    fill(folder, "z/a.mp4")
    fill(elsewhere, "b.mp4", b_txt="a cat")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder / "z")
    (elsewhere / "back").symlink_to(folder)
    assert captions_of(folder) == {"linked/b.mp4": ("a cat",), "z/a.mp4": ("",)}


def test_only_regular_files_are_read(tmp_path):
    fill(tmp_path, "a.mp4")
    os.mkfifo(tmp_path / "captions.csv")
    with pytest.raises(DataError, match=r"captions\.csv"):
        read_captions(tmp_path)
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(TextError, match=r"p\.txt"):
        read_prompts(tmp_path / "p.txt")


def test_the_documentation_names_every_column():
    told = (Path(__file__).resolve().parents[2] / "docs" / "captions.md").read_text()
    assert all(f"`{name}`" in told for names in COLUMNS.values() for name in names)


@pytest.mark.parametrize("folder", ["captions_csv_comma", "captions_csv_multiline", "captions_txt_encoding",
                                    "captions_u2028", "captions_wrong_key"])  # fmt: skip
def test_files_that_went_wrong(folder):
    """Each is read whole, or refused by its name: no caption is empty, cut, or has letters that its file has not."""
    for captions in [path for path in shared_data("faults", folder).iterdir() if path.is_dir()]:
        if folder == "captions_csv_comma":
            with pytest.raises(DataError, match=r"captions\.csv, line 2"):
                read_captions(captions)
            continue
        read = captions_of(captions)
        assert set(read) >= {"a.mp4", "b.mp4"}
        assert all(text for texts in read.values() for text in texts)
        shown = json.dumps(list(read.values()))
        assert not [bad for bad in ("\\ufffd", "\\u0000", "runsalong") if bad in shown]
