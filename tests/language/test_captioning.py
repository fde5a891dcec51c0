"""Captions of videos: frames by time, a second try, records that are never lost or doubled, answers paid for once."""

import concurrent.futures
import contextlib
import json
import re

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.language.stub import GERMAN, GOOD, REFUSAL, Stub
from vdit.errors import ConfigError, DataError, LanguageError, OutputError
from vdit.language.base import Completion, Frames, GenerationOptions, Request, user
from vdit.language.cache import CachedModel
from vdit.language.captioning import Captioner, sample_frames
from vdit.language.folder import Pace, caption_videos
from vdit.language.prompts import CaptionPrompts, PromptFile
from vdit.language.records import CaptionFile, is_written_here
from vdit.video.read import write_video

FRAMES = Frames(pixels=np.zeros((2, 16, 16, 3), np.uint8))


class Scripted:
    """A model that gives these answers in turn, then the last one for ever."""

    name = "scripted"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def complete(self, requests, options):
        done = []
        for request in requests:
            self.asked.append((request, options))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            if not isinstance(answer, Completion):
                answer = Completion(text=answer, tokens_in=10, tokens_out=5)
            done.append(answer)
        return done


def captioner(*answers, prompts="caption.md", **more):
    return Captioner(model=Scripted(*answers), prompts=CaptionPrompts.of(PromptFile.shipped(prompts)), **more)


def test_a_good_answer_is_taken_and_a_bad_one_asked_for_once_more():
    one = captioner(GOOD, REFUSAL, GOOD)
    first, second = one.caption([FRAMES, FRAMES])
    assert (first.short, first.camera, first.problem, first.tries) == ("A dog runs.", "static", None, 1)
    assert (second.short, second.problem, second.tries) == ("A dog runs.", None, 2)
    assert (second.tokens_in, second.tokens_out) == (20, 10)
    (_, usual), (_, again) = one.model.asked[0], one.model.asked[2]
    assert usual.temperature == 0
    assert again.temperature > 0
    assert again.seed != usual.seed


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (REFUSAL, "refusal"),
        (GERMAN, "language"),
        ("", "empty"),
        (Completion(text=GOOD[:60], finish_reason="length"), "too long"),
        (Completion(text="", finish_reason="filter"), "refusal"),
    ],
)
def test_what_stays_bad_is_marked_and_is_no_caption(answer, problem):
    [caption] = captioner(answer).caption([FRAMES])
    assert problem in caption.problem
    assert (caption.short, caption.detailed, caption.tries) == ("", "", 2)


def test_a_small_model_is_asked_one_question_at_a_time():
    one = captioner("A dog.", "A brown dog runs over grass.", "static", prompts="caption_steps.md")
    [caption] = one.caption([FRAMES])
    assert (caption.short, caption.detailed, caption.camera) == ("A dog.", "A brown dog runs over grass.", "static")
    assert len(one.model.asked) == 3


def test_the_example_of_the_docs_runs(clips, monkeypatch, capsys):
    page = (ROOT / "docs" / "captioning.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with Stub() as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.base)
        exec(code.replace("dog.mp4", str(clips / "b.mp4")), {})
    assert capsys.readouterr().out.startswith("A dog runs.")


def test_prompt_files_are_checked(tmp_path):
    good = tmp_path / "mine.md"
    good.write_text("# system\nBe brief.\n\n# short\nWhat?\n")
    prompts = CaptionPrompts.of(PromptFile.read(good))
    assert (prompts.instruction, prompts.questions) == ("Be brief.", {"short": "What?"})
    assert prompts.name.startswith("mine.md@")
    for text in ("no heading", "# short\n", "# short\na\n# short\nb", "text\n# short\na"):
        good.write_text(text)
        with pytest.raises(LanguageError, match=r"mine\.md"):
            PromptFile.read(good)
    for text in ("# camera\na", "# caption\na\n# short\nb", "# system\na"):
        with pytest.raises(ConfigError, match="give"):
            CaptionPrompts.of(PromptFile.parse(text, "mine.md"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three videos whose frames are as bright as their number."""
    folder = tmp_path_factory.mktemp("clips")
    for name, count in (("a.mp4", 40), ("b.mp4", 5), ("c.mp4", 12)):
        frames = np.broadcast_to((np.arange(count) * 5).astype(np.uint8)[:, None, None, None], (count, 32, 48, 3))
        write_video(folder / name, np.ascontiguousarray(frames), fps=8)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_frames_are_sampled_evenly_by_time(clips):
    frames = sample_frames(clips / "a.mp4", count=4, side=24)
    assert frames.pixels.shape == (4, 16, 24, 3)
    assert np.allclose(frames.times, [0.625, 1.875, 3.125, 4.375], atol=0.07)
    assert np.allclose(frames.pixels.mean((1, 2, 3)), [25, 75, 125, 175], atol=6)
    assert len(sample_frames(clips / "b.mp4", count=8, side=24).pixels) == 5


def videos(clips, *names):
    return {name: clips / name for name in names}


def test_a_folder_is_captioned_once_and_failures_have_no_record(clips, tmp_path):
    out = tmp_path / "captions.jsonl"
    every = videos(clips, "a.mp4", "b.mp4", "broken.mp4", "c.mp4")
    one = captioner(GOOD, REFUSAL, REFUSAL, GOOD)
    with CaptionFile.opened(out) as file:
        tally = caption_videos(every, one, file, Pace(frames=2))
    assert (tally.captioned, tally.done) == (2, 4)
    assert list(tally.marked) == ["b.mp4"]
    assert list(tally.failed) == ["broken.mp4"]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["file"] for record in records] == ["a.mp4", "b.mp4", "c.mp4"]
    assert records[0]["provenance"]["model"] == "scripted"
    assert records[0]["provenance"]["frames"] == 2
    assert "caption" not in records[1]
    assert is_written_here(out)
    with CaptionFile.opened(out) as file:
        assert caption_videos(every, captioner(GOOD), file, Pace()).done == 1  # the broken one alone
    with CaptionFile.opened(out, again=True) as file:
        assert caption_videos(every, captioner(GOOD), file, Pace()).captioned == 1
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(record["file"] for record in records if "caption" in record) == ["a.mp4", "b.mp4", "c.mp4"]


def test_records_are_in_the_order_of_the_videos_where_two_are_ready_at_once(clips, tmp_path, monkeypatch):
    wait = concurrent.futures.wait
    monkeypatch.setattr(concurrent.futures, "wait", lambda futures, return_when: wait(futures))  # for all of them
    out, names = tmp_path / "captions.jsonl", [f"{i}.mp4" for i in range(16)]
    with CaptionFile.opened(out) as file:
        caption_videos({name: clips / "a.mp4" for name in names}, captioner(GOOD), file, Pace(frames=1))
    assert [json.loads(line)["file"] for line in out.read_text().splitlines()] == names


def test_a_model_that_is_away_ends_the_work_with_what_is_done_written(clips, tmp_path):
    out = tmp_path / "captions.jsonl"
    many = {f"{i}.mp4": clips / "b.mp4" for i in range(9)}
    one = captioner(GOOD, GOOD, LanguageError("no server"))
    with CaptionFile.opened(out) as file, pytest.raises(LanguageError, match="no server"):
        caption_videos(many, one, file, Pace(frames=1))
    assert len(out.read_text().splitlines()) == 2
    assert len(one.model.asked) < 9


def test_a_record_that_a_kill_cut_is_written_again(tmp_path):
    out = tmp_path / "captions.jsonl"
    with CaptionFile.opened(out) as file:
        file.add({"file": "a", "caption": "x", "provenance": {}})
    whole = out.read_bytes()
    for cut in range(1, len(whole)):
        out.write_bytes(whole + whole.replace(b'"a"', b'"b"')[:cut])
        with CaptionFile.opened(out) as file:
            assert list(file.records) == ["a"]
            file.add({"file": "b", "caption": "y", "provenance": {}})
        assert [json.loads(line)["file"] for line in out.read_text().splitlines()] == ["a", "b"]


def test_captions_of_others_are_not_touched(tmp_path):
    out = tmp_path / "captions.jsonl"
    for text, error in (('{"file": "a", "caption": "mine"}\n', OutputError), ("[1]\n", DataError), ("{\n", DataError)):
        out.write_text(text)
        with pytest.raises(error, match=r"captions\.jsonl"), CaptionFile.opened(out):
            pass
        assert out.read_text() == text
        assert not is_written_here(out)


def test_two_processes_do_not_write_one_file(tmp_path):
    out = tmp_path / "captions.jsonl"
    with CaptionFile.opened(out), pytest.raises(OutputError, match="another process"), CaptionFile.opened(out):
        pass
    assert not out.exists()  # nothing was written, and nothing is left


def test_answers_are_paid_for_once(tmp_path):
    request, options = Request(messages=(user("hello", FRAMES),)), GenerationOptions(max_tokens=5)
    model = Scripted("one", "two", "three", "four")
    cached = CachedModel(model=model, folder=tmp_path, identity="here")
    ask = lambda cached, options=options: cached.complete([request], options)[0].text  # noqa: E731
    assert [ask(cached), ask(cached)] == ["one", "one"]
    assert ask(cached, GenerationOptions(max_tokens=5, seed=1)) == "two"
    assert ask(CachedModel(model=model, folder=tmp_path, identity="elsewhere")) == "three"
    assert cached.complete([request], options)[0].tokens_in == 0
    for file in tmp_path.rglob("*.json"):
        with contextlib.suppress(OSError):
            file.write_text('{"text": 1}')
    assert ask(cached) == "four"  # a damaged answer is asked for again
    fresh = CachedModel(model=Scripted("five"), folder=tmp_path, identity="here", fresh=True)
    assert ask(fresh) == "five"
    assert ask(cached) == "five"
