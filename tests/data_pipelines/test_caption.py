"""The caption stage: answers become captions, are kept, and a clip without one keeps what it had."""

from fractions import Fraction

import pytest

from data_pipelines.caption import CaptionClips, CaptionOptions
from data_pipelines.clips import ClipOptions, Encoded, encode_clip
from data_pipelines.records import ClipRecord
from data_pipelines.select import Row
from tests.data_pipelines.footage import RATE, scene
from vdit.errors import ConfigError
from vdit.language.captioning import Caption
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


def test_a_model_needs_its_server(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
        CaptionOptions(model="m").captioner()
