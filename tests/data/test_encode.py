"""Videos to latents on disk to rows."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vdit.data import (
    DataConfig,
    EncodeSpec,
    LatentStore,
    ProcessShard,
    WorldsSource,
    encode_clips,
    open_source,
)
from vdit.data.data_source import Source
from vdit.errors import DataError


def halve(video):
    """uint8 [1 t h w 3] -> [1 1+(t-1)/4 h/8 w/8 3] in [-1, 1], by leaving out."""
    assert video.dtype == np.uint8
    return video[:, ::4, ::8, ::8].astype(np.float32) / 127.5 - 1


def test_clips_are_encoded_in_order_with_what_is_known_of_them(tmp_path):
    config = DataConfig(
        pixel_budgets=(32 * 32, 48 * 48), frames=(1, 9), aspects=(1.0, 1.5), source=WorldsSource(count=5), threads=2
    )
    source, seen = open_source(config, seed=3), []
    index = encode_clips(source, halve, tmp_path / "out", EncodeSpec(samples=8, vae="v"),
                         progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 8) for i in range(1, 9)]
    assert index["count"] == 8
    store = LatentStore(tmp_path / "out")
    for i in range(8):
        video, stored = source[i], store[i]
        del video["view"]
        expected = halve(video.pop("video")[None])[0]
        np.testing.assert_allclose(stored.pop("latent"), expected, atol=1e-3)
        assert stored == video


class Walls(Source):
    """Short clips whose item can be seen in every pixel. `dies` at an item as a kill would, before it is read."""

    def __init__(self, items, dies=None):
        super().__init__()
        self.items, self.dies, self.made = items, dies, []

    def __len__(self):
        return self.items

    def read(self, item, epoch):
        if item == self.dies:
            raise KeyboardInterrupt
        self.made.append(item)
        return {"video": np.full((1, 8, 8, 3), item, np.uint8), "captions": [f"wall {item}"], "id": str(item)}


def encode_walls(path, source=None, key=None, **more):
    spec = EncodeSpec(dtype="float32", threads=1, key=key)
    return encode_clips(Walls(100) if source is None else source, halve, path, spec, **more)


def content(path):
    store = LatentStore(path)
    return [(sample["id"], sample["captions"], sample["latent"].tobytes()) for sample in map(store.__getitem__,
                                                                                          range(len(store)))]


@pytest.mark.parametrize("hosts", [2, 3, 9])
def test_the_latents_do_not_depend_on_the_number_of_hosts(tmp_path, hosts):
    encode_walls(tmp_path / "one")
    barrier = threading.Barrier(hosts)
    with ThreadPoolExecutor(hosts) as pool:
        sources = [Walls(100) for _ in range(hosts)]
        work = [pool.submit(encode_walls, tmp_path / "several", source, shard=ProcessShard(index=i, count=hosts),
                            wait=lambda name: barrier.wait(20)) for i, source in enumerate(sources)]
        indices = [each.result() for each in work]
    assert content(tmp_path / "several") == content(tmp_path / "one")
    assert all(index == LatentStore(tmp_path / "one").index for index in indices)  # and the same statistics
    assert sorted(item for source in sources for item in source.made) == list(range(100))
    shown = sorted(path.name for path in (tmp_path / "several").iterdir())
    assert shown == sorted(path.name for path in (tmp_path / "one").iterdir())
    assert all(name.startswith(("latents-", "index")) for name in shown)


def test_an_interrupted_encode_goes_on_with_the_parts_that_are_complete_on_any_number_of_hosts(tmp_path):
    encode_walls(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encode_walls(tmp_path / "out", Walls(100, dies=70))
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyboardInterrupt):
        encode_walls(tmp_path / "out", Walls(100, dies=99), shard=ProcessShard(index=0, count=2))
    assert encode_walls(tmp_path / "out", other := Walls(100), shard=ProcessShard(index=1, count=2)) is None
    seen, last = [], Walls(100)
    encode_walls(tmp_path / "out", last, progress=lambda done, total: seen.append((done, total)))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    # In parts of 16: 0 to 63 were whole, 64 to 79 the first of two hosts made then, 80 to 95 the second.
    assert other.made == list(range(80, 96))
    assert last.made == list(range(96, 100))
    assert seen == [(done, 100) for done in range(97, 101)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_what_was_encoded_with_other_settings_or_is_damaged_is_not_used(tmp_path):
    def stop():
        with pytest.raises(KeyboardInterrupt):
            encode_walls(tmp_path / "out", Walls(100, dies=70), key="a")

    stop()
    encode_walls(tmp_path / "out", again := Walls(100), key="b")
    assert again.made == list(range(100))
    shutil.rmtree(tmp_path / "out")
    stop()
    file = sorted(tmp_path.rglob("latents-*"))[1]
    file.write_bytes(file.read_bytes()[:-9])
    encode_walls(tmp_path / "out", again := Walls(100), key="a")
    assert again.made == [*range(16, 32), *range(64, 100)]


def test_a_folder_that_hosts_do_not_share_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr("vdit.data.latents.PATIENCE", 0.3)
    for host, message in ((0, "latents-00001.arrayrecord of another host does not appear"), (1, "index.json of an")):
        with pytest.raises(DataError, match=message):
            encode_walls(tmp_path / str(host) / "out", shard=ProcessShard(index=host, count=2), wait=lambda name: None)


def test_nothing_to_encode_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no latents to write"):
        encode_walls(tmp_path / "out", Walls(0))
