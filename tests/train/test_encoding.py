"""Latents follow their videos: what changed is encoded again and said; what a transformer was trained with stays."""

import io
import shutil
import types

import numpy as np
import pytest
from rich.console import Console

from tests.data.test_folder import write_film
from vdit.cli.main import main
from vdit.cli.train import folder_experiment
from vdit.config import apply_overrides
from vdit.data.latents import LatentStore
from vdit.errors import ConfigError, DataError
from vdit.train import encoding, stages
from vdit.train.logging import Logging, TrainingVideos
from vdit.train.workspace import Workspace
from vdit.video.write import write_video

TINY = ("data.pixel_budgets=1024", "data.frames=(1,5)", "data.fps=6.0", "data.size_multiple=16",
        "latents.latent_frames=0")


class Halves:
    """A VAE that takes no time: what it encodes to can be told from the video. Counts the videos."""

    made = 0

    def __init__(self, config, params, statistics):
        self.channels = config.latent_channels

    def encode(self, video, latent_frames=None):
        Halves.made += 1
        small = video[:, ::4, ::16, ::16].astype(np.float32) / 255
        return np.tile(small.mean(-1, keepdims=True), self.channels)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """encode(): the latents stage on three films with captions, as the same command run again; what it printed."""
    monkeypatch.setattr(encoding, "load_params", lambda folder: {"vae": {"w": np.ones(3)}})
    monkeypatch.setattr(encoding, "VideoVAE", Halves)
    films = tmp_path / "films"
    films.mkdir()
    for number, name in enumerate("abc"):
        write_film(films / f"{name}.mp4", frames=12 + number)
        (films / f"{name}.txt").write_text(f"film {name}")
    space = Workspace(tmp_path / "run")

    def encode(*more, strict=False, experiment=None):
        printed = io.StringIO()
        overrides = [*TINY, *(more or ["latents.samples=12"])]
        experiment = experiment or apply_overrides(folder_experiment(films), overrides)
        watch = types.SimpleNamespace(note=lambda line: None)
        logging = Logging(monitor=watch, console=Console(file=printed, width=10_000))
        Halves.made = 0
        encoding.encode_latents(experiment, space, logging, TrainingVideos(experiment, logging, strict=strict))
        return Halves.made, printed.getvalue()

    return types.SimpleNamespace(encode=encode, films=films, space=space)


def content(space):
    store = LatentStore(space.latents)
    return [(s["id"], s["captions"], s["latent"].tobytes()) for s in map(store.__getitem__, range(len(store)))]


def test_the_same_videos_are_not_encoded_again(run):
    assert run.encode()[0] == 12
    before = content(run.space)
    assert run.encode() == (0, "")
    (run.films / "a.mp4").touch()  # another time, the same content
    assert run.encode() == (0, "")
    assert content(run.space) == before


def test_what_changed_is_encoded_again_and_named(run):
    run.encode()
    before = content(run.space)
    (run.films / "a.txt").write_text("another text")
    write_film(run.films / "b.mp4", frames=20, fps=10)
    run.space.tokenizer.write_bytes(b"of the old captions")
    made, printed = run.encode()
    assert made == 8  # of a and b, and of no other
    assert "1 with other captions ('a.mp4'), 1 with other content ('b.mp4')" in printed
    after = content(run.space)
    assert [a == b for a, b in zip(before, after)] == [a[0] == "c.mp4" for a in before]
    assert {captions[0] for _, captions, _ in after} == {"another text", "film b", "film c"}
    assert not run.space.tokenizer.exists()
    assert sorted(path.name for path in run.space.root.iterdir()) == ["latents", "statistics.json"]
    fresh = Workspace(run.space.root.with_name("fresh"))
    run.space.root.rename(fresh.root)
    assert run.encode()[0] == 12
    assert content(run.space) == after  # as if they had been encoded for the first time


def test_a_video_more_or_less_draws_all_cuts_again(run):
    run.encode()
    write_film(run.films / "d.mp4")
    made, printed = run.encode()
    assert (made, "1 new ('d.mp4')" in printed) == (12, True)
    (run.films / "d.mp4").unlink()
    made, printed = run.encode()
    assert (made, "1 gone ('d.mp4')" in printed) == (12, True)


def test_a_folder_that_draws_as_many_as_it_has_videos_may_grow(run):
    run.encode("latents.samples=3")
    write_film(run.films / "d.mp4")
    assert run.encode("latents.samples=4")[0] == 4
    with pytest.raises(ConfigError, match="another data config"):
        run.encode("latents.samples=4", "data.pixel_budgets=2304")


def test_what_a_transformer_was_trained_with_stays(run, monkeypatch):
    run.encode()
    statistics = run.space.statistics()
    run.space.tokenizer.write_bytes(b"")
    monkeypatch.setattr(encoding, "last_step", lambda folder: 7)
    write_film(run.films / "a.mp4", frames=24, fps=24)
    made, printed = run.encode()
    assert made == 4
    assert "7 steps" in printed
    assert all((run.space.statistics()[name] == statistics[name]).all() for name in statistics)
    assert run.space.tokenizer.exists()
    write_film(run.films / "d.mp4")
    before = content(run.space)
    with pytest.raises(DataError, match=r"d\.mp4.* 12 latents .* 13"):
        run.encode("latents.samples=13")
    assert content(run.space) == before


def test_an_update_that_was_stopped_goes_on(run, monkeypatch):
    run.encode("latents.samples=48")
    before = content(run.space)
    (run.films / "a.txt").write_text("another text")
    usual = Halves.encode

    def dies(self, video, latent_frames=None):
        if Halves.made == 13:
            raise KeyboardInterrupt
        return usual(self, video)

    monkeypatch.setattr(Halves, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        run.encode("latents.samples=48")
    assert content(run.space) == before  # until all is there
    monkeypatch.setattr(Halves, "encode", usual)
    assert 0 < run.encode("latents.samples=48")[0] < 16
    assert {captions[0] for _, captions, _ in content(run.space)} == {"another text", "film b", "film c"}


def test_latents_of_an_older_vdit_are_taken_as_they_are_and_watched_from_then_on(run):
    run.encode()
    (run.space.latents / "videos.json").unlink()
    assert run.encode() == (0, "")
    (run.films / "a.txt").write_text("another text")
    assert run.encode()[0] == 12


@pytest.mark.parametrize("text", [
    "{", '{"videos": 3}', '{"videos": "3", "files": {}}', '{"videos": 3, "files": {"a": 1}}'
])  # fmt: skip
def test_a_damaged_record_is_named(run, text):
    run.encode()
    (run.space.latents / "videos.json").write_text(text)
    with pytest.raises(DataError, match=r"videos\.json"):
        run.encode()


def test_the_videos_may_be_gone(run):
    experiment = apply_overrides(folder_experiment(run.films), [*TINY, "latents.samples=12"])
    run.encode(experiment=experiment)
    run.films.rename(run.films.with_name("moved"))
    made, printed = run.encode(experiment=experiment)
    assert made == 0
    assert f"{run.films} is not there any more" in printed
    assert len(content(run.space)) == 12


def test_one_summary_says_what_was_found_and_strict_refuses(run):
    (run.films / "a.txt").unlink()
    (run.films / "c.mp4").write_bytes(b"no video")
    (run.films / "videos.csv").write_text("")
    made, printed = run.encode()
    assert made == 12
    assert printed.count("data: 3 videos in ") == 1
    assert "2 used: 1 with captions, 1 without; 1 not used" in printed
    assert "not used: c.mp4: " in printed
    assert "no caption: a.mp4" in printed
    assert "skipped" not in printed  # it has been said
    shutil.rmtree(run.space.latents)
    with pytest.raises(DataError, match="strict"):
        run.encode(strict=True)
    (run.films / "captions.csv").write_text("file,caption\na.mp4,a\n")
    made, printed = run.encode()
    assert "data: 3 videos in " in printed
    assert printed.count("captions file does not name it") == 2


def test_a_tokenizer_of_no_captions_is_refused_before_anything_is_trained(run):
    for name in "abc":
        (run.films / f"{name}.txt").unlink()
    experiment = apply_overrides(folder_experiment(run.films), [*TINY, "latents.samples=3"])
    logging = Logging(tensorboard=False, console=Console(quiet=True))
    with pytest.raises(DataError, match=r"none of the 3 videos .* has a caption"):
        stages.run(experiment, run.space, logging=logging)
    assert not run.space.root.exists()


def test_strict_leaves_nothing_behind_when_it_refuses(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    write_video(tmp_path / "videos" / "a.mp4", np.zeros((9, 32, 32, 3), np.uint8), fps=8)
    (tmp_path / "videos" / "a.txt").write_text("a black square")
    assert main(["train", "--data", str(tmp_path / "videos"), "--workdir", str(tmp_path / "run"), "--strict"]) == 2
    out = capsys.readouterr()
    assert "broken.mp4" in out.out
    assert "--strict" in out.err
    assert not (tmp_path / "run").exists()
