"""Order, shards, restarts: what every iterator of the pipeline promises."""

import json
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest

from vdit.data import (
    DataConfig,
    LatentStore,
    TokenSpec,
    WorldsSource,
    open_source,
    row_iterator,
    row_use,
    useful,
    video_batches,
    write_latents,
)
from vdit.data.data_source import Source
from vdit.data.streams import Order
from vdit.errors import ConfigError, DataError

PATCH = (1, 2, 2)
COUNT = 90


class Letters:
    """A tokenizer of one id a letter; 1 is BOS."""

    max_length = 12

    def encode(self, text):
        return [1, *(2 + ord(letter) % 50 for letter in text)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)

    def items():
        for i in range(COUNT):
            t, h, w = int(rng.choice([1, 2, 3])), *(int(v) for v in 2 * rng.integers(1, 4, 2))
            yield {"latent": rng.normal(size=(t, h, w, 3)), "captions": [f"s{i}", "a long caption of it"],
                   "id": str(i), "label": i + 1}

    path = tmp_path_factory.mktemp("latents") / "out"
    write_latents(path, items())
    return LatentStore(path)


def config_of(**changes):
    return DataConfig(**({"row_tokens": 64, "max_text_per_row": 64, "max_clips_per_row": 16, "buffer_clips": 20,
                          "threads": 2, "read_ahead": 4} | changes))


def rows_of(store, config=None, seed=3, batch_rows=2, **more):
    config = config or config_of()
    return row_iterator(config, store, Letters(), TokenSpec(patch=PATCH, **more), seed=seed, batch_rows=batch_rows)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def labels(batches):
    return Counter(int(v) for rows in batches for v in rows.cond["label"].ravel() if v)


def test_one_pass_holds_every_item_once(store):
    batches = list(rows_of(store, config_of(epochs=1)))
    assert labels(batches) == Counter(range(1, COUNT + 1))
    assert {tuple(x.shape for x in jax.tree.leaves(rows)) for rows in batches} == {
        tuple(x.shape for x in jax.tree.leaves(batches[0]))}


def test_the_order_depends_on_the_seed_and_on_nothing_else(store):
    first = take(rows_of(store), 8)
    assert same(first, take(rows_of(store, config_of(threads=4, read_ahead=9, prefetch=0)), 8))
    assert not same(first, take(rows_of(store, seed=4), 8))


def test_another_pass_has_another_order(store):
    one = Order(items=40, seed=0).dataset()
    passes = [[one[place + 40 * e] for place in range(40)] for e in range(2)]
    assert sorted(passes[0]) == list(range(40))
    assert sorted(passes[1]) == list(range(40, 80))
    assert [i + 40 for i in passes[0]] != passes[1]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_restored_iterator_goes_on_bit_for_bit_from_any_place(store, prefetch):
    config = config_of(prefetch=prefetch)
    iterator, reference, states = rows_of(store, config), [], []
    for _ in range(25):
        states.append(json.dumps(iterator.get_state()))
        reference.append(next(iterator))
    assert max(map(len, states)) < 1000
    for stop in np.random.default_rng(0).permutation(24)[:10]:
        restored = rows_of(store, config)
        take(restored, int(stop) % 3)  # where it was before does not matter
        restored.set_state(json.loads(states[stop]))
        assert same(take(restored, 25 - int(stop)), reference[stop:])


def test_the_tail_of_a_finite_pass_survives_a_restart(store):
    config = config_of(epochs=1)
    iterator, states, batches = rows_of(store, config), [], []
    while True:
        states.append(iterator.get_state())
        try:
            batches.append(next(iterator))
        except StopIteration:
            break
    for stop, state in enumerate(states):
        restored = rows_of(store, config)
        restored.set_state(state)
        rest = list(restored)
        assert len(rest) == len(batches) - stop
        assert same(rest, batches[stop:]) if rest else stop == len(batches)


def test_a_place_saved_with_other_settings_is_refused(store):
    state = rows_of(store).get_state()
    for other in (rows_of(store, seed=4), rows_of(store, config_of(row_tokens=128)),
                  rows_of(store, config_of(streams=1)), rows_of(store, batch_rows=4)):
        with pytest.raises(DataError, match=r"cannot be resumed.* was .* is "):
            other.set_state(state)


def test_orbax_saves_and_restores_the_place(store, tmp_path):
    from orbax.checkpoint import v1 as ocp

    iterator = rows_of(store)
    take(iterator, 5)
    ocp.save_checkpointables(tmp_path / "step", {"data": iterator})
    expected = take(iterator, 4)
    restored = rows_of(store)
    ocp.load_checkpointables(tmp_path / "step", {"data": restored})
    assert same(take(restored, 4), expected)


def test_captions_begin_with_bos_are_cut_to_the_limit_and_vary(store):
    texts, iterator = Counter(), rows_of(store)
    for rows in take(iterator, 20):
        starts = rows.text_position == 0
        assert (rows.text[starts & (rows.text_segment_ids > 0)] == 1).all()
        for b in range(2):
            for number in range(1, int(rows.segment_ids[b].max()) + 1):
                texts[int((rows.text_segment_ids[b] == number).sum())] += 1
    assert max(texts) == Letters.max_length  # the long caption, cut
    assert min(texts) < 6  # the short one
    assert iterator.truncated >= texts[Letters.max_length] > 0


def test_latents_are_normalised_by_the_given_statistics(store):
    mean, std = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 8.0])
    plain, scaled = next(rows_of(store)), next(rows_of(store, mean=mean, std=std))
    expected = (plain.values.reshape(2, 64, 4, 3) - mean) / std
    held = plain.segment_ids > 0
    np.testing.assert_allclose(scaled.values.reshape(2, 64, 4, 3)[held], expected[held], atol=1e-5)
    assert not scaled.values[~held].any()
    with pytest.raises(ConfigError, match="give both or neither"):
        rows_of(store, mean=mean)


def test_rows_are_full_and_the_budget_that_binds_can_be_seen(store):
    full = take(rows_of(store, config_of(max_text_per_row=160)), 30)
    assert np.mean([useful(rows) for rows in full]) > 0.98
    short_of_text = [row_use(rows) for rows in take(rows_of(store, config_of(max_text_per_row=24)), 30)]
    use = {key: np.mean([u[key] for u in short_of_text]) for key in ("tokens", "text", "frames", "clips")}
    assert max(use, key=use.get) == "text"
    assert use["tokens"] < 0.9


class Flaky(Source):
    """Items 1, 4, 7, ... cannot be read."""

    def __init__(self, bad=lambda item: item % 3 == 1):
        super().__init__()
        self.bad = bad

    def __len__(self):
        return 12

    def read(self, item, epoch):
        if self.bad(item):
            raise DataError(f"item {item} is broken")
        return {"latent": np.full((1, 2, 2, 1), item, np.float32), "captions": [], "label": item}


def test_broken_items_are_skipped_counted_and_reported():
    source = Flaky()
    assert [source[i]["label"] for i in range(12)] == [0, 2, 2, 3, 5, 5, 6, 8, 8, 9, 11, 11]
    assert source.report() == {str(i): f"item {i} is broken" for i in (1, 4, 7, 10)}


def test_a_source_that_is_all_broken_raises_instead_of_looping():
    with pytest.raises(DataError, match=r"none of 12 items.*is broken"):
        next(rows_of(Flaky(bad=lambda item: True)))


@pytest.fixture(scope="module")
def worlds():
    config = DataConfig(pixel_budgets=(32 * 32, 48 * 48), frames=(1, 5), aspects=(1.0, 1.5),
                        source=WorldsSource(count=20),
                        threads=2)
    return open_source(config, seed=7)


def test_rows_refuse_videos_and_name_the_mend(worlds):
    with pytest.raises(DataError, match="encode it first"):
        next(rows_of(worlds))


def test_video_batches_are_windows_of_one_size_deterministic_and_resumable(worlds):
    def batches():
        return video_batches(worlds.config, worlds, size=(24, 40), frames=5, batch_size=3, seed=1)

    iterator = batches()
    first = take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    later = take(iterator, 9)  # into the second pass
    assert {(b["video"].shape, b["video"].dtype.name) for b in first} == {((3, 5, 24, 40, 3), "uint8")}
    assert same(first, take(batches(), 3))
    restored = batches()
    restored.set_state(state)
    assert same(take(restored, 9), later)
    assert not same(later[0], first[0])


def test_iterators_that_live_to_the_end_make_no_noise():
    """Python takes the names of a module away before it takes away what the module holds."""
    code = """if True:
        from vdit.data import DataConfig, packing, pipeline
        from vdit.data.packing import RowShape

        order = pipeline.Order(items=4, seed=0, streams=1).dataset()
        config = DataConfig(threads=1, read_ahead=2)
        limits = RowShape(tokens=4, text=4, frames=4, clips=4)
        pipeline.kept = pipeline.VideoBatches(order, lambda *_: {}, config, rows=range(1), batch_size=1, identity={})
        packing.kept = packing.PackedRows({0: order}, lambda *_: None, limits, config, rows_each=1, identity={})
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
