"""What is made at once must fit into the host's memory, and how long a video is does not count."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from tests import tiny
from tests.data_paths import shared_data
from vdit.cli import reconstruct
from vdit.cli.main import main
from vdit.errors import ShapeError
from vdit.generate import editing, host_memory, sliding
from vdit.generate.editing import Edit, Part
from vdit.generate.host_memory import check_memory, free_memory, needed_memory
from vdit.generate.inputs import claimed_frames, open_input, read_input
from vdit.generate.sliding import Run
from vdit.video.read import probe
from vdit.video.write import write_video

FILES = {"a": {"frames": 12, "fps": 6}, "b": {"frames": 9, "fps": 12}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, asked in FILES.items():
        write_video(folder / f"{name}.mkv", np.zeros((asked["frames"], 16, 16, 3), np.uint8), fps=asked["fps"])
    return folder


def test_what_is_needed_grows_with_frames_and_pixels():
    second = needed_memory(81, (352, 640))
    assert needed_memory(81, (352, 1280)) > 1.9 * second
    assert second < needed_memory(162, (352, 640)) < 2 * second


def test_the_free_memory_of_this_machine_is_known_or_unknown_but_never_absurd():
    free = free_memory()
    assert free is None or 2**20 < free < 2**50


def test_what_does_not_fit_is_refused_in_one_line_with_both_numbers_and_what_helps(monkeypatch):
    needed = needed_memory(81, (352, 640))
    monkeypatch.setattr(host_memory, "free_memory", lambda: needed - 2**20)
    with pytest.raises(ShapeError, match=r"81 frames of 352x640 .* need about .* GiB .* are free: give ") as raised:
        check_memory(81, (352, 640))
    assert "\n" not in str(raised.value)
    for there, said in ((needed, True), (4 * needed, False), (None, False)):
        monkeypatch.setattr(host_memory, "free_memory", lambda there=there: there)
        assert (check_memory(81, (352, 640)) is not None) == said


@pytest.mark.parametrize("asked", [
    {}, {"fps": 8.0}, {"fps": 24.0}, {"seconds": 0.5}, {"start": 0.5, "fps": 8.0}, {"max_frames": 4}, {"last": 3},
    {"fps": 8.0, "seconds": 9.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", list(FILES))
def test_the_frames_that_a_file_claims_are_those_that_are_read(files, name, asked):
    path = files / f"{name}.mkv"
    claimed, read = claimed_frames(path, **asked), read_input(path, **asked)
    assert len(read.frames) <= claimed <= len(read.frames) + 1
    if not {"start", "last"} & set(asked):
        opened = open_input(path, **asked)
        assert (opened.count, opened.size, opened.fps) == (claimed, read.size, read.fps)
        for _ in range(2):  # it may be read again
            frames = np.concatenate(list(opened), axis=1)[0]
            np.testing.assert_array_equal(np.round((frames + 1) * 127.5), read.frames)


@pytest.mark.parametrize("command", [
    ("extend", "a.mkv", "", "--after", "40"), ("loop", ""), ("edit", "a.mkv", ""), ("connect", "a.mkv", "b.mkv", ""),
    ("animate", "a.mkv", ""), ("rollout", "a.mkv", "", "--frames", "40"),
    ("inpaint", "a.mkv", "", "--outpaint", "64x64"),
])  # fmt: skip
def test_every_command_says_so_before_it_reads_its_video(files, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(files)
    monkeypatch.setattr("vdit.generate.open_generator", lambda folder, mesh, **options: tiny.Noise(tiny.experiment()))
    monkeypatch.setattr("vdit.generate.inputs.iter_frames", lambda *args, **options: pytest.fail("read"))
    monkeypatch.setattr(host_memory, "free_memory", lambda: host_memory.FIXED + 1000)
    name, *words = command
    assert main([name, "RUN", *words, "--out", str(tmp_path / "o.mp4")]) == 2
    error = capsys.readouterr().err
    assert "of host memory, and" in error
    assert error.count("\n") == 1


class Steps:
    """Frames of any number, none of which is kept."""

    def __init__(self, count, size=(16, 16)):
        self.count, self.size = count, size

    def __iter__(self):
        for start in range(0, self.count, 32):
            yield np.full((1, min(32, self.count - start), *self.size, 3), 0.5, np.float32)


def latents_only(task, mesh, parameters, prompts, key, noise, given):
    return np.asarray(given.canvas.latents)


@pytest.mark.parametrize("verb", ["extend", "loop", "connect", "edit", "inpaint"])
def test_a_longer_video_takes_no_more_memory(verb, monkeypatch):
    monkeypatch.setattr("vdit.generate.generator.sample", latents_only)
    makes = tiny.Noise(tiny.experiment()) if verb in ("extend", "loop", "connect") else tiny.generator(window=9)
    mask = np.zeros((16, 16), bool)
    mask[:8] = True

    def pieces(count):
        run, video = Run.of(makes, "a"), Steps(count)
        if verb == "extend":
            return sliding.extend(run, video, before=30, after=30)
        if verb == "loop":
            return sliding.loop(run, video, passage=8)
        if verb == "connect":
            return sliding.connect(run, video, Steps(count), frames=8)
        part = Part(masks=lambda frames: np.broadcast_to(mask, (frames, 16, 16))) if verb == "inpaint" else None
        return editing.edit(run, video, Edit(levels=(0.5,), part=part))

    peaks = []
    for count in (70, 330, 660):  # the first compiles; from the second on all buffers are full
        tracemalloc.start()
        total = sum(piece.shape[1] for piece in pieces(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == {"extend": count + 60, "loop": count + 8, "connect": 2 * count + 8}.get(verb, count)
    assert peaks[2] < 1.2 * peaks[1] + 2**18


def test_reconstruct_streams_and_keeps_the_sound(tmp_path):
    chunks = []
    vae = SimpleNamespace(
        config=SimpleNamespace(spatial_stride=8, temporal_stride=4),
        encode_chunk=lambda video, cache: (chunks.append(video.shape[1]) or video, None),
        decode_chunk=lambda video, cache: (video, None),
    )
    path = shared_data("clips", "moviepy_sintel_snow.mp4")
    row = reconstruct._reconstruct(vae, path, tmp_path / "a.mp4", area=256, fps=None, frames=None)
    assert probe(tmp_path / "a.mp4").sound
    assert chunks[0] == 13
    assert set(chunks[1:-1]) == {16}
    assert sum(chunks) == row["frames"]
    assert row["frames"] % 4 == 1
    assert 0 <= row["frames_left_out"] < 4
    assert row["psnr"] == float("inf")
