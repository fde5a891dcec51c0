"""The caption stage: answers become captions, are kept, and a clip without one keeps what it had."""

from fractions import Fraction

import pytest

from data_pipelines.caption import CaptionClips, CaptionOptions
from data_pipelines.clips import ClipOptions, Encoded, encode_clip
from data_pipelines.records import ClipRecord
from data_pipelines.select import Row
from tests.data_pipelines.footage import RATE, scene
from tests.tiny import base_experiment
from vdit.errors import ConfigError, VditError
from vdit.language.base import Completion, Frames
from vdit.language.captioning import Caption
from vdit.language.prompts import CaptionPrompts
from vdit.train.workspace import Workspace
from vdit.video.write import write_video


class Model:
    """Answers with the number of the question; refuses the second."""

    def __init__(self):
        self.asked = 0

    def caption(self, videos):
        answers = []
        for video in videos:
            self.asked += 1
            assert video.pixels.shape[0] == 4
            answers.append(Caption(problem="a refusal") if self.asked == 2 else
                           Caption(short=f"scene {self.asked}", detailed=f"a longer caption of {self.asked}"))
        return answers


@pytest.fixture
def clips(tmp_path):
    made = []
    for kind in range(3):
        film = tmp_path / f"film{kind}.mkv"
        write_video(film, scene(kind, 12), fps=RATE)
        clip = ClipRecord(path=str(film), end=Fraction(12, RATE), size=(48, 64)).with_measures(fps=float(RATE))
        made.append(encode_clip(Row(clip=clip, name=film.name, captions=("of the film",)), ClipOptions(), tmp_path))
    return made


def test_answers_are_captions_and_are_paid_for_once(clips, tmp_path, monkeypatch):
    model = Model()
    monkeypatch.setattr(CaptionOptions, "captioner", lambda self: model)
    broken = Encoded(row=clips[0].row, error="cannot be read")
    told = []
    for _ in range(2):
        stage = CaptionClips(CaptionOptions(model="m", frames=4), str(tmp_path / "answers"))
        stage.setup()
        told.append([made.row.captions for made in stage.process([*clips, broken])])
    assert told[0] == [("scene 1", "a longer caption of 1"), ("of the film",), ("scene 3", "a longer caption of 3"),
                       told[0][3]]  # fmt: skip
    assert told[1][:3] == told[0][:3]
    assert model.asked == 3
    stage = CaptionClips(CaptionOptions(model="another", frames=4), str(tmp_path / "answers"))
    stage.setup()
    assert len(list(stage.process(clips))) == 3
    assert model.asked == 6  # of another model


@pytest.mark.parametrize("by", ["lm", "run"])
def test_weights_that_are_here_caption_too(clips, tmp_path, monkeypatch, by):
    """A model's own frames; answers of other weights at the same place are asked for again."""
    weights, shown = tmp_path / "weights", []
    weights.mkdir()
    (weights / "config.json").write_text("{}")

    class Answers:
        name, frames, max_tokens = "own", 3, 99
        prompts = CaptionPrompts(name="own", questions={"short": "What is this?"})

        def complete(self, requests, options):
            shown.extend(part.pixels.shape[0] for request in requests for message in request.messages
                         for part in message["content"] if isinstance(part, Frames))  # fmt: skip
            return [Completion(text=f"Waves move over sand number {len(shown)}.", finish_reason="stop", tokens_in=1,
                               tokens_out=1) for _ in requests]  # fmt: skip

    monkeypatch.setattr("vdit.pretrained.lm.open_lm", lambda path: Answers())
    monkeypatch.setattr("vdit.generate.captions.load_captioner", lambda run: Answers())
    step = {"step": 1}
    monkeypatch.setattr("vdit.train.pretrained.step_identity", lambda folder: dict(step))
    options = CaptionOptions(model=str(weights), by=by)
    asked = []
    for _ in range(3):
        stage = CaptionClips(options, str(tmp_path / "answers"))
        stage.setup()
        made = list(stage.process(clips))
        assert all(one.row.captions[0].startswith("Waves move over sand") for one in made)
        asked.append(len(shown))
        if len(asked) == 2:  # other weights
            step["step"] = 2
            (weights / "config.json").write_text("{ }")
    assert set(shown) == {8 if by == "lm" else 3}
    assert asked[0] == asked[1] > 0
    assert asked[2] == 2 * asked[0]


def test_weights_that_are_not_there_are_told_before_anything_is_read(tmp_path):
    for by in ("lm", "run"):
        with pytest.raises(VditError, match="no-such"):
            CaptionOptions(model=str(tmp_path / "no-such"), by=by).check()
    base = tmp_path / "base"
    Workspace(base).save_experiment(base_experiment())
    with pytest.raises(ConfigError, match="no captioner"):
        CaptionOptions(model=str(base), by="run").check()
    for wrong in ({"by": "hand"}, {"frames": 0}):
        with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
            CaptionOptions(model="m", **wrong)


def test_a_model_needs_its_server(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        CaptionOptions(model="m").captioner()
