"""`vdit train --data`: a model of a user's own videos learns every task that the commands offer."""

import pytest

from vdit.cli.train import find_experiment
from vdit.config import to_json
from vdit.experiment.canvases import EVERY_TASK
from vdit.experiment.experiment import Experiment
from vdit.sampling.config import sampling_config


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "dog.mp4").touch()  # counted, not read
    return str(tmp_path / "videos")


def test_a_folder_of_videos_trains_on_canvases_of_every_task(videos):
    experiment = find_experiment(None, videos)
    assert all(fraction > 0 for fraction in experiment.canvases.fractions())
    assert experiment.canvases.window > 0  # else what is longer than a window is encoded again at each
    assert sampling_config(experiment).conditioning == "clean"


@pytest.mark.parametrize("name", ["tfds_video", "clips", "wan_lora"])
def test_an_experiment_on_a_folder_trains_on_canvases_unless_it_says_what_on_or_begins_with_weights(videos, name):
    plain, asked = find_experiment(name), find_experiment(name, videos)
    says = plain.canvases.gives or plain.start_from is not None
    assert asked.canvases == (plain.canvases if says else EVERY_TASK)
    assert (asked.data.path, asked.holdout) == (videos, ())


def test_a_run_keeps_to_its_own_canvases_on_other_videos(videos, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "experiment.json").write_text(to_json(Experiment(name="before")))
    asked = find_experiment(str(run), videos)
    assert not asked.canvases.gives
    assert asked.data.path == videos
