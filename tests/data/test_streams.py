"""The same batches from any number of hosts, before and after any restarts: nothing lost, nothing twice."""

import json
import time
from collections import Counter

import jax
import numpy as np
import pytest

from vdit.data import DataConfig, ProcessShard, TokenSpec, row_iterator, video_batches
from vdit.data.data_source import Source
from vdit.data.streams import Order, Reader, make_pool, own_streams, stream_count
from vdit.errors import ConfigError, DataError


class Numbers(Source):
    """Latents of many sizes; item i has the label i + 1, also as the value of every number of it."""

    def __init__(self, items):
        super().__init__()
        self.items = items

    def __len__(self):
        return self.items

    def read(self, item, epoch):
        rng = np.random.default_rng(item)
        shape = (int(rng.integers(1, 4)), *(2 * rng.integers(1, 4, 2)), 1)
        return {"latent": np.full(shape, item + 1, np.float32), "captions": ["ab"[: item % 3]], "label": item + 1}

    def crops(self, *, size, frames):
        return [{"video": np.full((frames, *size, 3), index % 251, np.uint8)} for index in range(8 * len(self))]


class Letters:
    max_length = 8

    def encode(self, text):
        return [1, *map(ord, text)]


def rows_of(items, batch_rows, index=0, count=1, **changes):
    config = DataConfig(**({"row_tokens": 48, "max_text_per_row": 32, "max_clips_per_row": 8,
                            "max_frames_per_row": 16, "buffer_clips": 6,
                            "threads": 1, "prefetch": 0} | changes))
    return row_iterator(config, Numbers(items), Letters(), TokenSpec(patch=(1, 2, 2)), seed=7, batch_rows=batch_rows,
                        shard=ProcessShard(index=index, count=count))


def join(parts):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def merged(places):
    """What the checkpointer gives to every host: the streams of all that saved, as JSON."""
    places = [json.loads(json.dumps(place)) for place in places]
    return places[0] | {"streams": {key: value for place in places for key, value in place["streams"].items()}}


class Hosts:
    """`count` hosts that read together, from a merged place or from the start."""

    def __init__(self, make, count, place=None):
        self.iterators = [make(index, count) for index in range(count)]
        for iterator in self.iterators if place is not None else ():
            iterator.set_state(place)

    def take(self, batches):
        return [join([next(iterator) for iterator in self.iterators]) for _ in range(batches)]

    def place(self):
        return merged([iterator.get_state() for iterator in self.iterators])


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in leaves)


def labels(batches):
    return Counter(int(v) for rows in batches for v in rows.cond["label"].ravel() if v)


@pytest.mark.parametrize("seed", range(4))
def test_batches_are_the_same_on_any_hosts_whatever_restarts(seed):
    rng = np.random.default_rng(seed)
    streams = int(rng.choice([4, 6, 8]))
    batch_rows, items = streams * int(rng.integers(1, 3)), int(rng.integers(streams, 60))
    counts = [n for n in range(1, streams + 1) if streams % n == 0]

    def make(index, count):
        return rows_of(items, batch_rows, index, count, streams=streams, threads=int(rng.integers(0, 3)),
                       prefetch=int(rng.integers(0, 2)), read_ahead=int(rng.integers(0, 5)))

    expected, place, done = Hosts(make, 1).take(10), None, 0
    while done < 10:
        hosts = Hosts(make, int(rng.choice(counts)), place)
        steps = min(int(rng.integers(1, 5)), 10 - done)
        assert same(hosts.take(steps), expected[done : done + steps])
        place, done = hosts.place(), done + steps


@pytest.mark.parametrize("seed", range(6))
def test_every_item_comes_once_in_each_pass_through_restarts_with_clips_waiting(seed):
    rng = np.random.default_rng(seed)
    streams, passes = int(rng.choice([1, 2, 4])), int(rng.integers(1, 4))
    items = int(rng.integers(streams, 50))
    counts = [n for n in (1, 2, 4) if streams % n == 0]
    seen, place, left = Counter(), None, True
    while left:
        count = int(rng.choice(counts))
        hosts = [rows_of(items, 2 * streams, i, count, streams=streams, epochs=passes) for i in range(count)]
        for host in hosts if place is not None else ():
            host.set_state(place)
        for _ in range(int(rng.integers(1, 4))):
            given = [rows for host in hosts if (rows := next(host, None)) is not None]
            seen += labels(given)
            left = bool(given)
        place = merged([host.get_state() for host in hosts])
    assert seen == Counter({item + 1: passes for item in range(items)})


@pytest.mark.parametrize(("items", "streams"), [(40, 1), (40, 3), (41, 8), (16, 16)])
def test_streams_are_disjoint_and_together_complete_in_every_pass(items, streams):
    seen = []
    for stream in range(streams):
        order = Order(items=items, seed=5, streams=streams, epochs=3).dataset(stream)
        seen += [order[place] for place in range(len(order))]
    assert sorted(seen) == list(range(3 * items))


def test_each_row_of_a_batch_is_of_one_stream_and_a_host_runs_whole_streams():
    whole = Hosts(lambda i, n: rows_of(40, 8, i, n, streams=4), 1).take(3)
    for stream in range(4):
        alone = rows_of(40, 8, stream, 4, streams=4)
        for rows in whole:
            mine = jax.tree.map(lambda leaf: leaf[2 * stream : 2 * stream + 2], rows)  # noqa: B023
            assert same(next(alone), mine)
    halves = [own_streams(8, ProcessShard(index=i, count=2), batch_rows=8) for i in range(2)]
    assert [list(half) for half in halves] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_place_is_small_and_says_nothing_of_the_hosts():
    iterator = rows_of(10**6, 16, buffer_clips=256)
    next(iterator)
    place = iterator.get_state()
    assert set(place["streams"]) == {str(stream) for stream in range(16)}
    assert len(json.dumps(place)) < 16 * 256 * 8
    halves = [rows_of(10**6, 16, i, 2, buffer_clips=256) for i in range(2)]
    for half in halves:
        next(half)
    assert merged([half.get_state() for half in halves]) == place


def test_the_number_of_streams_follows_the_batch_and_the_items_and_never_the_hosts():
    assert [stream_count(0, batch_rows=b, items=1000) for b in (1, 6, 16, 24, 34, 256)] == [1, 6, 16, 12, 2, 16]
    assert stream_count(0, batch_rows=16, items=5) == 4
    assert stream_count(64, batch_rows=256, items=1000) == 64


@pytest.mark.parametrize(("arguments", "message"), [
    ((40, 8, 0, 3), r"data.streams=8 cannot be shared by 3 groups of hosts: .*divides 8.*multiple of 3"),
    ((5, 8, 0, 8), r"data.streams=4 cannot be shared by 8"),
    ((40, 8, 2, 2), r"shard index=2: must be 0 to count - 1 \(1\)"),
])
def test_hosts_that_cannot_share_the_streams_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        rows_of(*arguments)


def test_streams_that_the_batch_or_the_items_do_not_allow_are_refused():
    with pytest.raises(ConfigError, match=r"data.streams=3 must divide the batch of 8 rows"):
        rows_of(40, 8, streams=3)
    with pytest.raises(DataError, match=r"5 items for data.streams=8"):
        rows_of(5, 8, streams=8)
    with pytest.raises(ConfigError, match=r"a batch of 8 cannot be shared by 3 groups of hosts"):
        videos(8, 0, 3)


def test_places_of_older_runs_and_of_some_of_the_hosts_are_refused_with_the_mend():
    old = {"reader": {"next_index": 8}, "waiting": [], "identity": {"shard_count": 1}}
    with pytest.raises(DataError, match=r"older vdit.*start a new run from its weights \(start_from\)"):
        rows_of(40, 8).set_state(old)
    with pytest.raises(DataError, match="older vdit"):
        videos(4).set_state({"next_index": 8})
    part = rows_of(40, 8, 0, 2).get_state()
    with pytest.raises(DataError, match=r"lacks the streams \[4, 5, 6, 7\]"):
        rows_of(40, 8, 1, 2).set_state(part)


def videos(batch_size, index=0, count=1, items=22, **changes):
    config = DataConfig(**({"threads": 2, "prefetch": 0} | changes))
    return video_batches(config, Numbers(items), size=(2, 2), frames=1, batch_size=batch_size, seed=1,
                         shard=ProcessShard(index=index, count=count))


def test_batches_of_videos_are_the_same_on_any_hosts_and_complete():
    expected, place, done = Hosts(lambda i, n: videos(4, i, n), 1).take(12), None, 0
    for count, steps in ((1, 2), (2, 3), (4, 1), (1, 2), (4, 4)):
        hosts = Hosts(lambda i, n: videos(4, i, n), count, place)
        assert same(hosts.take(steps), expected[done : done + steps])
        place, done = hosts.place(), done + steps
    assert place["streams"] == {"0": {"batches": 12}}
    shown = Counter(int(v) for batch in expected[:11] for v in batch["video"][:, 0, 0, 0, 0])
    assert shown == Counter(range(44))  # two passes of 22 items, each as drawn in its pass
    assert len(list(videos(4, epochs=1))) == 5
    assert len(list(videos(4, 1, 2, epochs=1))) == 5


def test_readers_share_their_threads_and_read_ahead_in_order():
    pool, threads = make_pool(2), set()

    def read(index, place):
        import threading

        threads.add(threading.get_ident())
        time.sleep(0.001 * (index % 3))
        return index, place

    orders = [Order(items=12, seed=0, streams=4, epochs=2).dataset(stream) for stream in range(4)]
    readers = [Reader(order, read, pool, 3) for order in orders]
    for place in range(6):
        assert [next(reader) for reader in readers] == [(order[place], place) for order in orders]
    assert all(next(reader, None) is None for reader in readers)
    assert len(threads) == 2


def test_a_reader_that_fails_stands_where_it_failed():
    def read(index, place):
        raise DataError(f"broken at {place}")

    reader = Reader(Order(items=4, seed=0).dataset(), read, make_pool(1), 2)
    for _ in range(2):
        with pytest.raises(DataError, match="broken at 0"):
            next(reader)
    assert reader.place == 0
