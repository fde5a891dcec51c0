"""`vdit caption` as a user calls it: a server that misbehaves, a kill, and a folder that `vdit train` reads."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.data_paths import shared_data
from tests.language.stub import ANSWERS, FAULTS, Stub
from tests.loopback import serve_buckets
from vdit import paths
from vdit.cli.main import main
from vdit.data.captions import read_captions
from vdit.data.config import DataConfig
from vdit.data.data_source import FolderSource
from vdit.data.pipeline import TokenSpec, ToPackItem
from vdit.language.base import Completion, parts_of
from vdit.video.read import write_video

CODE = "import sys; from vdit.cli.main import main; sys.exit(main())"


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write_video(tmp_path / f"{i}.mp4", np.full((4, 16, 16, 3), 40 * i, np.uint8), fps=8)
    return tmp_path


def caption(stub, folder, monkeypatch, *more):
    monkeypatch.setenv("OPENAI_BASE_URL", stub.base)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    arguments = ["caption", str(folder), "--endpoint", "m", "--frames", "2", "--cache", str(folder.parent / "cache")]
    return main([*arguments, *more])


def test_captions_are_written_and_read_for_training(folder, monkeypatch, capsys):
    with Stub(["refusal", "refusal"]) as stub:
        assert caption(stub, folder, monkeypatch, "--concurrency", "1", "--price", "1,2") == 2
        assert len(stub.requests) == 5
        err = capsys.readouterr().err
        assert "0.mp4: a refusal" in err
        assert "500 in, 100 out, cost 0.0007" in err
        entries = {entry.file: entry for entry in read_captions(folder).entries}
        assert not entries["0.mp4"].captioned
        assert entries["1.mp4"].captions[0] == "A dog runs."
        assert (len(entries["1.mp4"].captions), entries["1.mp4"].synthetic) == (2, 2)
        assert read_captions(folder).notes == []
        assert "A dog runs." in (folder / "captions.html").read_text()
        assert caption(stub, folder, monkeypatch) == 0  # nothing left to ask about
        assert len(stub.requests) == 5
        assert caption(stub, folder, monkeypatch, "--retry") == 0
    assert len((folder / "captions.jsonl").read_text().splitlines()) == 4


def test_captions_that_are_there_stay_and_training_mixes_both(folder, monkeypatch):
    own = "file,caption\n0.mp4,a grey square\n"
    (folder / "captions.csv").write_text(own)
    with Stub() as stub:
        assert caption(stub, folder, monkeypatch) == 0
    assert (folder / "captions.csv").read_text() == own
    assert not (folder / "captions.jsonl").exists()
    entry = next(entry for entry in read_captions(folder).entries if entry.file == "0.mp4")
    assert (entry.captions[0], len(entry.captions), entry.synthetic) == ("a grey square", 3, 2)
    assert len(read_captions(folder).entries) == 4

    class Words:
        max_length = 64

        def encode(self, text):
            return [len(text)]

    sample = {"latent": np.zeros((1, 2, 2, 1)), "captions": list(entry.captions), "synthetic": entry.synthetic}
    for prob, long, expected in ((0.0, 1.0, {0}), (1.0, 0.0, {1}), (1.0, 1.0, {2}), (0.5, 0.5, {0, 1, 2})):
        config = DataConfig(synthetic_prob=prob, long_caption_prob=long)
        item = ToPackItem([sample] * 64, Words(), TokenSpec(patch=(1, 1, 1)), config, seed=0)
        lengths = [len(text) for text in entry.captions]
        assert {lengths.index(int(item(i, i).text[0])) for i in range(64)} == expected


def test_missing_asks_about_videos_without_captions_alone(folder, monkeypatch):
    (folder / "2.txt").write_text("a lighter square")
    with Stub() as stub:
        assert caption(stub, folder, monkeypatch, "--missing") == 0
    records = [json.loads(line) for line in (folder / "synthetic_captions.jsonl").read_text().splitlines()]
    assert sorted(record["file"] for record in records) == ["0.mp4", "1.mp4", "3.mp4"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--out", "captions.txt"], ".jsonl"),
        (["--price", "cheap"], "cheap"),
        (["--language", "klingon"], "klingon"),
        (["--prompt", "nowhere.md"], "nowhere.md"),
        (["--frames", "0"], "0"),
    ],
)
def test_wrong_options_are_one_line_before_any_request(folder, monkeypatch, capsys, more, word):
    with Stub() as stub:
        assert caption(stub, folder, monkeypatch, *more) == 2
    assert word in capsys.readouterr().err
    assert stub.requests == []
    assert not (folder / "captions.jsonl").exists()


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_clips_with_a_server_that_misbehaves_killed_and_resumed(tmp_path, real):
    """27 clips, 13 kinds of misbehaviour, two kills: every clip ends with one caption, and no answer is paid twice."""
    if real:
        for path in shared_data("clips").iterdir():
            if path.suffix != ".jsonl":
                (tmp_path / path.name).symlink_to(path)
    else:
        for i in range(27):
            write_video(tmp_path / f"{i:02}.mp4", np.full((2, 16, 16, 3), 9 * i, np.uint8), fps=8)
    clips = sorted(tmp_path.iterdir())
    steps = [*FAULTS, *ANSWERS]
    assert len(steps) >= 12

    def plan(number, body):
        """Every other request is answered well, so that a second try of a bad answer is."""
        return steps[number // 2] if number % 2 == 0 and number // 2 < len(steps) else None

    with Stub(plan) as stub:
        stub.slow = 1.5
        environment = os.environ | {"OPENAI_BASE_URL": stub.base, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", CODE, "caption", str(tmp_path), "--endpoint", "m", "--frames", "2", "--side",
                   "64", "--timeout", "1", "--concurrency", "2"]  # fmt: skip
        out = tmp_path / "captions.jsonl"
        for records in (4, 14):
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
            deadline = time.monotonic() + 120
            while process.poll() is None and not (out.exists() and out.read_bytes().count(b"\n") >= records):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        paid = len(stub.requests)
        again = subprocess.run([*command, "--retry"], env=environment, capture_output=True, text=True, timeout=120,
                               check=False)  # fmt: skip
        assert again.returncode == 0, again.stderr
    assert done.returncode in (0, 2), done.stderr  # 2 where two bad answers met one clip
    assert len(stub.requests) <= paid + 4
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(record["file"] for record in records) == [path.name for path in clips]
    assert all(record["caption"] and record["detailed"] for record in records)
    entries = read_captions(tmp_path).entries
    assert len(entries) == len(clips)
    assert all(entry.synthetic == 2 for entry in entries)


@pytest.fixture(scope="module")
def bucket():
    yield from serve_buckets()


def test_videos_and_captions_in_a_bucket(bucket, folder, monkeypatch):
    for path in folder.glob("*.mp4"):
        paths.copy_file(path, f"gs://vdit-test/clips/{path.name}")
    for _ in range(2):  # the second call finds all of them done
        with Stub() as stub:
            monkeypatch.setenv("OPENAI_BASE_URL", stub.base)
            command = ["caption", "gs://vdit-test/clips", "--endpoint", "m", "--frames", "2", "--cache", str(folder)]
            assert main(command) == 0
    assert len(read_captions("gs://vdit-test/clips").entries) == 4
    assert stub.requests == []
    assert paths.exists("gs://vdit-test/clips/captions.html")


def test_a_folder_source_says_which_captions_a_model_wrote(folder):
    (folder / "captions.csv").write_text("file,caption\n0.mp4,a square\n1.mp4,a square\n")
    record = {"file": "0.mp4", "caption": "grey", "detailed": "a grey square", "provenance": {"model": "m"}}
    (folder / "synthetic_captions.jsonl").write_text(json.dumps(record) + "\n")
    config = DataConfig(source=FolderSource(path=str(folder)), pixel_budgets=(256,), frames=(1,))
    source = config.source.open(config, seed=0)
    samples = {sample["id"]: sample for sample in (source[i] for i in range(len(source)))}
    assert (samples["0.mp4"]["captions"], samples["0.mp4"]["synthetic"]) == (["a square", "grey", "a grey square"], 2)
    assert "synthetic" not in samples["1.mp4"]


def test_public_weights_are_asked_a_question_at_a_time_in_batches(folder, monkeypatch):
    asked = []

    class Model:
        name = "SmolVLM2"

        def complete(self, requests, options):
            asked.append((len(requests), options.max_tokens))
            questions = [parts_of(request.messages[-1])[1] for request in requests]
            answers = {"short": "A grey square.", "detailed": "A grey square in the light.", "camera": "It is still."}
            word = lambda text: next(k for k in ("camera move in", "short", "detailed") if k in text)  # noqa: E731
            return [Completion(text=answers[word(text).split()[0]]) for text in questions]

    monkeypatch.setattr("vdit.pretrained.lm.open_lm", lambda path: Model())
    command = ["caption", str(folder), "--lm", "SmolVLM2", "--frames", "2", "--batch", "3", "--max-tokens", "64"]
    assert main(command) == 0
    assert asked == [(9, 64), (3, 64)]  # 3 videos and 1, three questions each
    records = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert all((record["caption"], record["camera"]) == ("A grey square.", "It is still.") for record in records)
