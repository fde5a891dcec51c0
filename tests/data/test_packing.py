"""Rows: the invariants of vdit.types.Row, nothing lost, and how full they are."""

import dataclasses
import importlib.util
import itertools
from collections import Counter
from pathlib import Path

import grain
import numpy as np
import pytest

from vdit.data.config import DataConfig
from vdit.data.packing import Balance, CondShape, PackedRows, PackItem, RowShape, build_rows, check_fits, choose
from vdit.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
LABEL = CondShape("label", "clip", (), "int32")
LIMITS = RowShape(tokens=100, text=40, frames=24, clips=12, conditions=(LABEL,))


def clips_of(count, seed=0, width=2):
    """Clips whose values and text are all different numbers, so that each can be told."""
    rng = np.random.default_rng(seed)
    clips, token = [], 1
    for i in range(count):
        grid = tuple(int(v) for v in (rng.integers(1, 5), rng.integers(1, 5), rng.integers(1, 5)))
        n = int(np.prod(grid))
        values = np.arange(token, token + n, dtype=np.float32)[:, None].repeat(width, 1)
        text = 1000 * i + np.arange(int(rng.integers(1, 9)), dtype=np.int32)
        clips.append(PackItem(values=values, grid=grid, text=text, cond={"label": i + 1}, place=i, name=f"c{i}"))
        token += n
    return clips


def packed(clips, limits=LIMITS, batch_rows=3, buffer_rows=8, buffer_clips=32):
    config = DataConfig(row_tokens=limits.tokens, buffer_rows=buffer_rows, buffer_clips=buffer_clips, threads=2,
                        read_ahead=4)
    return PackedRows({0: grain.MapDataset.range(len(clips))}, lambda index, place: clips[index], limits,
                      config, rows_each=batch_rows, identity={})


def test_every_token_is_in_exactly_one_row_once_and_rows_keep_their_invariants():
    clips = clips_of(300)
    seen = Counter()
    for rows, b in itertools.product(packed(clips), range(3)):
        clip, text_segment_ids = rows.segment_ids[b], rows.text_segment_ids[b]
        frame_segment_ids = rows.frame_segment_ids[b]
        padding = clip == 0
        assert not rows.values[b][padding].any()
        assert not rows.position[b][padding].any()
        assert not rows.frame_index[b][padding].any()
        assert not rows.text[b][text_segment_ids == 0].any()
        assert not rows.text_position[b][text_segment_ids == 0].any()
        assert (frame_segment_ids[rows.frame_index[b]][~padding] == clip[~padding]).all()
        count = int(clip.max())
        assert not rows.cond["label"][b][count:].any()
        for number in range(1, count + 1):
            original = clips[rows.cond["label"][b, number - 1] - 1]
            mine = clip == number
            np.testing.assert_array_equal(rows.values[b][mine], original.values)
            expected = np.stack(np.unravel_index(np.arange(len(original.values)), original.grid), 1)
            np.testing.assert_array_equal(rows.position[b][mine], expected)
            slots = rows.frame_index[b][mine]
            assert (slots - slots.min() == expected[:, 0]).all()
            assert (frame_segment_ids == number).sum() == original.grid[0]
            np.testing.assert_array_equal(rows.text[b][text_segment_ids == number], original.text)
            np.testing.assert_array_equal(rows.text_position[b][text_segment_ids == number],
                                          np.arange(len(original.text)))
            seen[original.place] += 1
    assert seen == Counter(range(len(clips)))


def test_no_clip_waits_for_more_rows_than_the_buffer_holds_clips():
    waiting = set(range(400))
    for rows in packed(clips_of(400, seed=1), batch_rows=1, buffer_clips=16):
        places = set((rows.cond["label"][0][rows.cond["label"][0] > 0] - 1).tolist())
        assert min(waiting) in places  # the oldest leaves with every row ...
        assert max(places) < 400 - len(waiting) + 16  # ... and at most 16 wait
        waiting -= places
    assert not waiting


def test_the_longest_waiting_clip_goes_first_and_the_row_is_filled_by_a_subset():
    needs = np.array([[30, 1, 1, 1], [50, 1, 1, 1], [45, 1, 1, 1], [25, 1, 1, 1]])
    assert choose(needs, (100, 40, 24, 12)) == [0, 2, 3]


def test_the_other_budgets_are_kept_even_when_tokens_would_fit():
    needs = np.array([[10, 20, 1, 1], [90, 21, 1, 1], [80, 20, 1, 1], [10, 1, 24, 1]])
    assert choose(needs, (100, 40, 24, 12)) == [0, 2]
    assert choose(np.array([[10, 1, 1, 1]] * 5), (100, 40, 24, 3)) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_a_row_is_as_full_as_the_best_subset_that_holds_the_first_clip(seed):
    rng = np.random.default_rng(seed)
    sizes = [rng.integers(5, 60, 9), rng.integers(1, 3, 9), rng.integers(1, 3, 9), np.ones(9, int)]
    needs = np.stack(sizes, axis=1)
    limits = np.array((100, 40, 24, 12))
    best = max(total[0] for r in range(9) for rest in itertools.combinations(range(1, 9), r)
               if ((total := needs[[0, *rest]].sum(0)) <= limits).all())
    assert needs[choose(needs, limits.tolist())].sum(0)[0] == best


def test_a_clip_that_no_row_holds_is_refused_with_its_sizes():
    clip = PackItem(values=np.zeros((120, 2)), grid=(2, 6, 10), text=np.ones(3, np.int32), name="long.mp4")
    message = r"'long.mp4' has 120 tokens \(2 x 6 x 10\).*row holds 100.*row_tokens to 120"
    with pytest.raises(DataError, match=message):
        check_fits(clip, LIMITS)
    with pytest.raises(DataError, match="120 tokens"):
        next(packed([clip]))
    with pytest.raises(DataError, match="overflows row 0"):
        build_rows([[clip]], LIMITS)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_packing", ROOT / "tools" / "bench" / "packing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row_tokens", [4096, 8192])
def test_rows_of_a_realistic_mix_are_over_98_percent_useful(bench, row_tokens):
    config = DataConfig(row_tokens=row_tokens, max_text_per_row=row_tokens // 4, max_frames_per_row=512,
                        max_clips_per_row=128)
    clips = bench.mix(700, row_tokens, width=1)
    useful, _, _ = bench.ours(clips, RowShape.of(config), config)
    assert useful > 0.98


def streams_of(clips, streams, *, balance, own=None):
    """Batches of one row of each stream; `own`: only these streams, as a host of several has them."""
    orders = {number: grain.MapDataset.range(len(clips))[number::streams] for number in own or range(streams)}
    config = DataConfig(row_tokens=100, buffer_rows=8, buffer_clips=32, threads=0, read_ahead=0)
    return PackedRows(orders, lambda index, place: dataclasses.replace(clips[index], place=place), LIMITS, config,
                      rows_each=1, identity={}, balance=balance)


def costs(rows):
    """Pairs of tokens that attend to each other, of each row."""
    return [sum(np.bincount(row[row > 0]) ** 2) for row in np.asarray(rows.segment_ids)]


def spread(batches):
    """How much longer the row that costs most takes than the mean row of its batch, on average."""
    return float(np.mean([max(costs(rows)) / np.mean(costs(rows)) for rows in batches]))


def test_balanced_batches_hold_the_same_rows_and_rows_that_cost_the_same():
    clips = clips_of(4000)
    plain, balanced = (list(streams_of(clips, 8, balance=balance)) for balance in (None, Balance(rows=16)))
    told = lambda batches: Counter(tuple(row) for rows in batches for row in rows.values[..., 0].tolist())  # noqa: E731
    rows, again = told(plain), told(balanced)
    blank = (0.0,) * LIMITS.tokens
    assert rows.keys() - {blank} == again.keys() - {blank}
    assert spread(balanced[:32]) - 1 < 0.4 * (spread(plain[:32]) - 1)


def test_ranks_come_in_an_order_of_their_own():
    """Cost does not rise or fall with the steps: every window has its own shuffle, the same on every host."""
    ranks = [Balance(rows=16).rank(number) for number in range(64)]
    windows = [ranks[k : k + 16] for k in range(0, 64, 16)]
    assert all(sorted(window) == list(range(16)) for window in windows)
    assert len({tuple(window) for window in windows}) == 4
    assert ranks == [Balance(rows=16).rank(number) for number in range(64)]
    assert ranks != [Balance(rows=16, seed=1).rank(number) for number in range(64)]


@pytest.mark.parametrize("count", [600, 37])
def test_balanced_batches_do_not_depend_on_the_number_of_hosts_and_resume_anywhere(count):
    clips, balance = clips_of(count), Balance(rows=4)
    whole = [rows.values for rows in streams_of(clips, 4, balance=balance)]
    hosts = [[rows.values for rows in streams_of(clips, 4, balance=balance, own=own)] for own in ([0, 1], [2, 3])]
    for step, values in enumerate(whole):
        mine = [host[step] if step < len(host) else np.zeros((2, *values.shape[1:])) for host in hosts]
        np.testing.assert_array_equal(np.concatenate(mine), values)
    for stop in (1, 3, 4, 6):
        first = streams_of(clips, 4, balance=balance)
        for _ in range(min(stop, len(whole))):
            next(first)
        second = streams_of(clips, 4, balance=balance)
        second.set_state(first.get_state())
        rest = [rows.values for rows in second]
        assert len(rest) == len(whole) - min(stop, len(whole))
        for ours, theirs in zip(rest, whole[stop:]):
            np.testing.assert_array_equal(ours, theirs)
