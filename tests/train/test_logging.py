"""Writers of figures and sample videos."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from vdit.errors import ConfigError, ShapeError
from vdit.train.logging import JsonLines, Speed, TensorBoard, WandB, encode_gif, read_json_lines, video_grid


def test_a_resumed_file_is_that_of_a_run_that_was_never_stopped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path)
    for step in range(1, 6):
        first.scalars(step, {"loss": 1.0 / step})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    second = JsonLines(path, resume_step=3)
    for step in range(4, 8):
        second.scalars(step, {"loss": 1.0 / step})
    second.close()
    assert read_json_lines(path) == [{"step": step, "loss": 1.0 / step} for step in range(1, 8)]


def test_lines_can_be_read_while_the_run_goes_on(tmp_path):
    writer = JsonLines(tmp_path / "metrics.jsonl")
    writer.scalars(1, {"loss": 2.0})
    assert read_json_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    writer.close()


def test_figures_that_are_not_finite_survive_the_file(tmp_path):
    writer = JsonLines(tmp_path / "metrics.jsonl")
    writer.scalars(1, {"loss": float("nan")})
    writer.close()
    assert np.isnan(read_json_lines(tmp_path / "metrics.jsonl")[0]["loss"])


def test_tensorboard_holds_figures_and_moving_samples(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    board = TensorBoard(tmp_path)
    board.scalars(3, {"loss": 0.5})
    videos = np.random.default_rng(0).uniform(-1, 1, (3, 4, 6, 8, 3))
    board.videos(3, "samples", videos, fps=8)
    board.close()
    values = {}
    data = next(tmp_path.glob("events*")).read_bytes()
    while data:  # records: uint64 length, uint32 sum of it, the event, uint32 sum of that
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        values |= {value.tag: (event.step, value) for value in event.summary.value}
    assert values["loss"][0] == 3
    assert values["loss"][1].simple_value == 0.5
    gif = Image.open(io.BytesIO(values["samples"][1].image.encoded_image_string))
    assert gif.n_frames == 4
    assert gif.size == (2 * 8 + 2, 2 * 6 + 2)


def test_the_grid_shows_every_video_at_its_place():
    videos = np.stack([np.full((2, 3, 4, 3), level, np.float32) for level in (-1.0, 0.0, 1.0)])
    grid = video_grid(videos, columns=2, gap=1)
    assert grid.shape == (2, 7, 9, 3)
    assert (grid[:, :3, :4] == 0).all()
    assert (grid[:, :3, 5:] == 128).all()
    assert (grid[:, 4:, :4] == 255).all()
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\)"):
        video_grid(np.zeros((2, 3, 4)))


def test_a_gif_keeps_its_frames_and_pace():
    frames = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    gif = Image.open(io.BytesIO(encode_gif(frames, fps=10)))
    assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (5, 100, 0)


def test_speed_counts_steps_tokens_and_flops(monkeypatch):
    now = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr("vdit.train.logging.time.perf_counter", lambda: next(now))
    speed = Speed(flops_per_step=100.0, peak_flops=50.0)
    for tokens in (30.0, 50.0):
        speed.add(tokens)
    assert speed.report() == {
        "speed/steps_per_second": 0.2,
        "speed/tokens_per_second": 8.0,
        "speed/mfu": pytest.approx(0.4),
    }


def test_without_wandb_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install"):
        WandB(project="x")


DAMAGES = [b"[1, 2]\n", b"3\n", b'{"loss": 1}\n', b'{"step": "x"}\n', b"\xff\xfe\n", b"\0\0\0\n"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_lines_are_read_up_to_the_first_that_is_damaged(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n\n' + damage + b'{"step": 3, "loss": 1.0}\n')
    assert read_json_lines(path) == [{"step": 1, "loss": 2.0}]
    JsonLines(path, resume_step=5).close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'
