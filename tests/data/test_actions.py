"""Actions from a library of videos through latents on disk into packed rows."""

import dataclasses
import json

import numpy as np
import pytest

from vdit.data import (
    Clips,
    DataConfig,
    EncodeSpec,
    LatentStore,
    TokenSpec,
    encode_clips,
    group_actions,
    row_iterator,
    write_latents,
)
from vdit.data.clips import DecodedClip
from vdit.data.packing import CondShape, PackItem, RowShape, build_rows
from vdit.errors import ConfigError, DataError, ShapeError

TOKENS = TokenSpec(patch=(1, 2, 2), stride=4)


class Letters:
    max_length = 8

    def encode(self, text):
        return [1, *(2 + ord(letter) % 50 for letter in text)]


class Steered:
    """Videos that are elastic, whose actions tell item, frame and number; none for items of `without`."""

    label, height, width, fps, seconds, elastic = 0, 16, 16, 8.0, float("inf"), True

    def __init__(self, items=6, width=2, without=(), item=0):
        self.broken: dict[str, str] = {}
        self.items, self.numbers, self.without, self.item, self.id = items, width, without, item, f"clip {item}"

    def __len__(self):
        return self.items

    def name(self, item):
        return f"clip {item}"

    def open(self, item, rng):
        return Steered(self.items, self.numbers, self.without, item)

    def read(self, *, start, fps, frames, size):
        video = np.full((frames, *size, 3), self.item, np.uint8)
        video[:, :, 0] = 255  # the mirror image has it on the other side
        actions = actions_of(self.item, frames, self.numbers)
        actions = None if self.item in self.without else actions
        return DecodedClip(video=video, captions=(f"{self.item}",), actions=actions)


def actions_of(item, frames, width=2):
    return 100.0 * item + np.arange(frames)[:, None] + 0.25 * np.arange(width)


def config_of(**changes):
    return DataConfig(**({"pixel_budgets": (256,), "frames": (1, 9, 17), "actions": 2, "threads": 0, "row_tokens": 12,
                          "max_text_per_row": 24, "max_frames_per_row": 9, "max_clips_per_row": 4, "buffer_clips": 8,
                          "streams": 1} | changes))


def encode(video):
    """uint8 [1 t h w 3] -> [1 1+(t-1)/4 h/8 w/8 3]."""
    return video[:, ::4, ::8, ::8].astype(np.float32)


@pytest.mark.parametrize(("latents", "patch_frames"), [(5, 1), (1, 1), (6, 2), (6, 3)])
def test_a_slot_has_the_actions_of_the_video_frames_that_it_stands_for(latents, patch_frames):
    stride, a = 4, 3
    frames = 1 + (latents - 1) * stride
    actions = 1 + np.arange(frames * a, dtype=np.float32).reshape(frames, a)
    groups = group_actions(actions, stride, patch_frames)
    assert groups.shape == (latents // patch_frames, patch_frames * stride * a)
    by_latent = groups.reshape(latents, stride, a)
    assert not by_latent[0, :-1].any()
    np.testing.assert_array_equal(by_latent[0, -1], actions[0])
    for i in range(1, latents):
        np.testing.assert_array_equal(by_latent[i], actions[1 + (i - 1) * stride : 1 + i * stride])


@pytest.mark.parametrize(("shape", "stride", "patch"), [((8, 2), 4, 1), ((9,), 4, 1), ((9, 2), 4, 2), ((9, 2), 0, 1),
                                                        ((0, 2), 1, 1)])
def test_actions_that_do_not_fill_the_slots_are_refused(shape, stride, patch):
    with pytest.raises(ShapeError, match="actions of"):
        group_actions(np.zeros(shape), stride, patch)


@pytest.mark.parametrize("patch_frames", [1, 3])
def test_from_a_library_to_the_slots_of_rows_and_back(tmp_path, patch_frames):
    """Each frame of tokens of each clip in each row has the actions of its own frames, to the last bit."""
    config = config_of(frames=(9,), epochs=1) if patch_frames == 3 else config_of(epochs=1)
    encode_clips(Clips(Steered(), config), encode, tmp_path / "out", EncodeSpec(samples=6, threads=1))
    store, seen = LatentStore(tmp_path / "out"), 0
    tokens = TokenSpec(patch=(patch_frames, 2, 2), stride=4)
    for rows in row_iterator(config, store, Letters(), tokens, seed=0, batch_rows=2):
        assert rows.cond["action"].shape == (2, 9, 8 * patch_frames)
        assert rows.cond["action"].dtype == np.float32
        assert not rows.cond["action"][rows.frame_segment_ids == 0].any()
        for b in range(2):
            for number in range(1, rows.segment_ids[b].max() + 1):
                tokens = rows.segment_ids[b] == number
                item, slots = int(rows.values[b][tokens][0, 3]), np.unique(rows.frame_index[b][tokens])
                frames = 1 + (len(slots) * patch_frames - 1) * 4
                expected = group_actions(actions_of(item, frames), 4, patch_frames)
                np.testing.assert_array_equal(rows.cond["action"][b, slots], expected)
                seen += 1
    assert seen == 6


def test_a_store_gives_back_actions_as_float32_whatever_the_latents_are(tmp_path):
    items = [{"latent": np.ones((2, 1, 1, 3)), "id": "a", "actions": np.array([[0.0], [1 / 3]] * 4)},
             {"latent": np.ones((2, 1, 1, 3)), "id": "b"}]
    write_latents(tmp_path / "out", items, dtype="float16")
    first, second = (LatentStore(tmp_path / "out")[i] for i in range(2))
    assert first["actions"].dtype == np.float32
    np.testing.assert_array_equal(first["actions"], items[0]["actions"].astype(np.float32))
    assert "actions" not in second
    for wrong in (np.zeros(4), np.full((4, 1), np.nan)):
        with pytest.raises(DataError, match=r"'a' has actions of shape .*give \[t a\], all finite"):
            write_latents(tmp_path / "other", [items[0] | {"actions": wrong}])


def test_clips_with_actions_are_never_mirrored_and_others_are():
    config = config_of(hflip=1.0, actions=0)
    clips = Clips(Steered(without=(1, 2, 4)), config)
    for i in range(6):
        mirrored = bool((clips[i]["video"][:, :, -1] == 255).all())
        assert mirrored == (i in (1, 2, 4))
        assert ("actions" in clips[i]) != mirrored


def test_without_actions_in_the_config_rows_have_none_and_places_are_those_of_before(tmp_path):
    config = config_of(actions=0)
    encode_clips(Clips(Steered(), config), encode, tmp_path / "out", EncodeSpec(samples=6, threads=1))
    iterator = row_iterator(config, LatentStore(tmp_path / "out"), Letters(), TOKENS, seed=0, batch_rows=2)
    assert set(next(iterator).cond) == {"label"}
    assert not {"actions", "stride"} & set(iterator.get_state()["identity"])


def test_a_place_saved_with_other_actions_is_refused(tmp_path):
    encode_clips(Clips(Steered(), config_of()), encode, tmp_path / "out", EncodeSpec(samples=6, threads=1))

    def rows(config):
        store = LatentStore(tmp_path / "out")
        return row_iterator(config, store, Letters(), TOKENS, seed=0, batch_rows=2)

    state = json.loads(json.dumps(rows(config_of()).get_state()))
    rows(config_of()).set_state(state)
    with pytest.raises(DataError, match="actions was 2, is None"):
        rows(config_of(actions=0)).set_state(state)


def test_samples_without_actions_or_of_another_width_are_refused_when_encoded_and_when_read(tmp_path):
    missing, wide = r"'clip 1' has no actions.*actions=2 asks for 2", r"'clip 0' has 3 numbers.*set data.actions=3"
    for name, library, message in (("a", Steered(without=(1,)), missing), ("b", Steered(width=3), wide)):
        with pytest.raises(DataError, match=message):
            encode_clips(Clips(library, config_of()), encode, tmp_path / "refused", EncodeSpec(samples=6, threads=1))
        encode_clips(Clips(library, config_of(actions=0)), encode, tmp_path / name, EncodeSpec(samples=6, threads=1))
        store = LatentStore(tmp_path / name)
        rows = row_iterator(config_of(prefetch=0), store, Letters(), TOKENS, seed=0, batch_rows=2)
        with pytest.raises(DataError, match=message.replace("clip 0", "clip [0-9]")):
            next(rows)


def test_another_stride_than_that_of_the_latents_is_refused(tmp_path):
    config = config_of(frames=(9,), prefetch=0)
    encode_clips(Clips(Steered(), config), encode, tmp_path / "out", EncodeSpec(samples=6, threads=1))
    with pytest.raises(DataError, match=r"actions of 9 frames, its latents stand for 5: .*stride 2"):
        next(row_iterator(config, LatentStore(tmp_path / "out"), Letters(), dataclasses.replace(TOKENS, stride=2),
                          seed=0, batch_rows=2))


def test_actions_that_do_not_belong_to_the_frames_are_refused():
    class Short(Steered):
        def open(self, item, rng):
            return Short(self.items, self.numbers, self.without, item)

        def read(self, **view):
            shot = super().read(**view)
            return DecodedClip(video=shot.video, captions=shot.captions, actions=shot.actions[1:])

    with pytest.raises(DataError, match=r"actions of shape \(\d+, 2\) for"):
        Clips(Short(), config_of())[0]


def test_clips_with_and_without_actions_do_not_share_a_batch():
    def clip(action):
        return PackItem(values=np.zeros((2, 1)), grid=(2, 1, 1), text=np.ones(1, np.int32),
                        cond={} if action is None else {"action": action})

    action = CondShape("action", "frame", (2,), "float32")
    limits = RowShape(tokens=4, text=4, frames=4, clips=2, conditions=(action,))
    for other in (None, np.zeros((2, 3), np.float32)):
        with pytest.raises(DataError, match="all clips of a batch"):
            build_rows([[clip(np.zeros((2, 2), np.float32)), clip(other)]], limits)


def test_a_number_of_actions_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"data.actions=-1"):
        DataConfig(actions=-1)
