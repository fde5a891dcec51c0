"""What a video needs of the host's memory is said, and refused, before anything is read or made."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests import tiny
from tests.data_paths import shared_data
from vdit.cli import reconstruct
from vdit.cli.main import main
from vdit.errors import ShapeError
from vdit.generate import host_memory
from vdit.generate.host_memory import HELD, check_memory, free_memory, needed_memory
from vdit.generate.inputs import claimed_frames, read_input
from vdit.video.read import write_video

FILES = {"a": {"frames": 12, "fps": 6}, "b": {"frames": 9, "fps": 12}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, asked in FILES.items():
        write_video(folder / f"{name}.mkv", np.zeros((asked["frames"], 16, 16, 3), np.uint8), fps=asked["fps"])
    return folder


def test_what_is_needed_grows_with_frames_and_pixels():
    second = needed_memory("extend", 240, (352, 640))
    assert 3.3e9 < needed_memory("extend", 480, (352, 640)) < 3.7e9, "20 s: 3.7 GB with the process itself, 0.4 GB"
    assert needed_memory("extend", 240, (352, 1280)) > 1.5 * second
    assert needed_memory("extend", 240, (352, 640), videos=2) > second


def test_the_free_memory_of_this_machine_is_known_or_unknown_but_never_absurd():
    free = free_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize("work", list(HELD))
def test_what_does_not_fit_is_refused_in_one_line_with_both_numbers_and_what_helps(monkeypatch, work):
    needed = needed_memory(work, 480, (352, 640))
    monkeypatch.setattr(host_memory, "free_memory", lambda: needed - 2**20)
    with pytest.raises(ShapeError, match=r"480 frames of 640x352 .* need about .* GiB .* are free: give ") as raised:
        check_memory(work, 480, (352, 640))
    assert "\n" not in str(raised.value)
    for there, said in ((needed, True), (4 * needed, False), (None, False)):
        monkeypatch.setattr(host_memory, "free_memory", lambda there=there: there)
        assert (check_memory(work, 480, (352, 640)) is not None) == said


@pytest.mark.parametrize("asked", [
    {}, {"fps": 8.0}, {"fps": 24.0}, {"seconds": 0.5}, {"start": 0.5, "fps": 8.0}, {"max_frames": 4}, {"last": 3},
    {"fps": 8.0, "seconds": 9.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", list(FILES))
def test_the_frames_that_a_file_claims_are_those_that_are_read(files, name, asked):
    path = files / f"{name}.mkv"
    claimed, read = claimed_frames(path, **asked), len(read_input(path, **asked).frames)
    assert read <= claimed <= read + 1


@pytest.mark.parametrize("command", [
    ("extend", "a.mkv", "", "--after", "10m"), ("loop", "", "--frames", "30000"), ("edit", "a.mkv", ""),
    ("connect", "a.mkv", "b.mkv", ""), ("animate", "a.mkv", "", "--frames", "30000"),
    ("rollout", "a.mkv", "", "--frames", "40"),
    ("inpaint", "a.mkv", "", "--outpaint", "64x64"), ("edit", "a.mkv", "", "--box", "0,0,8,8"),
])  # fmt: skip
def test_every_command_says_so_before_it_reads_its_video(files, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(files)
    monkeypatch.setattr("vdit.generate.open_generator", lambda folder, mesh, **options: tiny.Noise(tiny.experiment()))
    monkeypatch.setattr("vdit.generate.inputs.read_video", lambda *args, **options: pytest.fail("read"))
    monkeypatch.setattr(host_memory, "free_memory", lambda: host_memory.FIXED + 30 * 12 * 16 * 16)
    name, *words = command
    words = ["20000" if word == "10m" else word for word in words]
    assert main([name, "RUN", *words, "--out", str(tmp_path / "o.mp4")]) == 2
    error = capsys.readouterr().err
    assert "of host memory, and" in error
    assert error.count("\n") == 1


def test_reconstruct_says_so_before_it_reads_and_names_sound_that_it_leaves_out(files, tmp_path, monkeypatch):
    vae = SimpleNamespace(
        config=SimpleNamespace(spatial_stride=8, temporal_stride=4), encode=lambda video, latent_frames: video.shape,
        decode=lambda shape, latent_frames: np.zeros(shape, np.float32),
    )  # fmt: skip
    asked = {"area": 256, "fps": None, "frames": None}
    path = shared_data("odd_videos", "exo_sample_h264_mpeg_audio.ts")
    row = reconstruct._reconstruct(vae, path, tmp_path / "a.mp4", **asked)
    assert row["sound_left_out"]
    assert not reconstruct._reconstruct(vae, files / "a.mkv", tmp_path / "b.mp4", **asked)["sound_left_out"]
    monkeypatch.setattr(host_memory, "free_memory", lambda: host_memory.FIXED)
    monkeypatch.setattr("vdit.video.read.read_video", lambda *args, **options: pytest.fail("read"))
    with pytest.raises(ShapeError, match="of host memory"):
        reconstruct._reconstruct(vae, files / "a.mkv", tmp_path / "c.mp4", **asked)
