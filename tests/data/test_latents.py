import json

import numpy as np
import pytest

from vdit.data.latents import LatentStore, write_latents
from vdit.errors import DataError
from vdit.models.vae.statistics import constant_channels, normalise


def items_of(count=7, channels=4):
    rng = np.random.default_rng(0)
    for i in range(count):
        t, h, w = (int(v) for v in rng.integers(1, 5, 3))
        yield {"latent": rng.normal(1.0, 2.0, (t, h, w, channels)).astype(np.float32), "id": f"clip-{i}",
               "captions": [f"short {i}", f"long Ünïcode {i}"], "fps": 8.0 + i, "label": i, "size": [64, 96]}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_what_is_written_is_read_back(tmp_path, dtype, tolerance):
    index = write_latents(tmp_path / "out", items_of(), dtype=dtype, vae="abc", shard_bytes=600)
    store = LatentStore(tmp_path / "out")
    assert len(store) == 7
    assert len(index["shards"]) > 1
    assert store.index["vae"] == "abc"
    for got, expected in zip((store[i] for i in range(7)), items_of()):
        assert str(got["latent"].dtype) == dtype
        latent = got.pop("latent").astype(np.float32)
        np.testing.assert_allclose(latent, expected.pop("latent"), rtol=tolerance)
        assert got == expected


def test_the_statistics_are_those_of_every_latent(tmp_path):
    write_latents(tmp_path / "out", items_of(), dtype="float32")
    everything = np.concatenate([item["latent"].reshape(-1, 4) for item in items_of()])
    store = LatentStore(tmp_path / "out")
    np.testing.assert_allclose(store.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(store.std, everything.std(0), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 5.0, 300.0])
def test_a_channel_that_never_varies_is_known_and_stays_finite(tmp_path, value):
    items = [item | {"latent": np.concatenate([item["latent"], np.full_like(item["latent"][..., :1], value)], -1)}
             for item in items_of()]
    index = write_latents(tmp_path / "out", items, shard_bytes=600)
    assert len(index["shards"]) > 1
    assert constant_channels(index) == [4]
    store = LatentStore(tmp_path / "out")
    unit = normalise(store[0]["latent"].astype(np.float32), {"mean": store.mean, "std": store.std})
    np.testing.assert_allclose(unit[..., 4], 0, atol=1e-6)
    assert np.isfinite(unit).all()


@pytest.mark.parametrize(("std", "named"), [(0.0, "channel 2"), (-1.0, "channel 2"), (float("nan"), "NaN"),
                                            (float("inf"), "channel 2"), (None, "channel 2")])  # fmt: skip
def test_statistics_by_which_nothing_can_be_normalised_are_refused(tmp_path, std, named):
    write_latents(tmp_path / "out", items_of())
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    index["std"][2] = std
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=rf"index\.json.*{named}"):
        LatentStore(tmp_path / "out")


def test_nothing_appears_when_writing_fails(tmp_path):
    def failing():
        yield from items_of(3)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_latents(tmp_path / "out", failing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("items", "message"), [
    ([], "no latents to write"),
    ([{"latent": np.zeros((2, 3, 4))}], r"give \[t h w c\]"),
    ([{"latent": np.full((1, 1, 1, 1), 1e9)}], "not finite as float16"),
    ([{"latent": np.full((1, 1, 1, 1), np.nan), "id": "a.mp4"}], "'a.mp4' .* NaN"),
    ([*items_of(1, 4), *items_of(1, 8)], "8 channels, those before it 4"),
])
def test_latents_that_cannot_be_stored_are_refused(tmp_path, items, message):
    with pytest.raises(DataError, match=message):
        write_latents(tmp_path / "out", items)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_never_overwritten(tmp_path):
    write_latents(tmp_path / "out", items_of())
    with pytest.raises(DataError, match="exists already"):
        write_latents(tmp_path / "out", items_of())


def damage_index(folder):
    (folder / "index.json").write_text("{")


def other_format(folder):
    (folder / "index.json").write_text(json.dumps({"format": "other"}))


def remove_index(folder):
    (folder / "index.json").unlink()


def remove_shard(folder):
    next(folder.glob("*.arrayrecord")).unlink()


def truncate_shard(folder):
    file = next(folder.glob("*.arrayrecord"))
    file.write_bytes(file.read_bytes()[:-100])


def garble_shard(folder):
    file = next(folder.glob("*.arrayrecord"))
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(("harm", "message"), [
    (damage_index, "is damaged"), (other_format, "has format 'other'"), (remove_index, "holds no latents"),
    (remove_shard, "is missing"), (truncate_shard, "its index says"),
    (garble_shard, "write the folder again"),
])
def test_a_damaged_store_is_refused_when_opened(tmp_path, harm, message):
    write_latents(tmp_path / "out", items_of())
    harm(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        LatentStore(tmp_path / "out")


@pytest.mark.parametrize("damage", [
    {"shards": None}, {"shards": [{}]}, {"shards": [{"file": "../x", "records": 7, "bytes": 1}]}, {"count": 8},
    {"count": "7"}, {"count": 0, "shards": []}, {"channels": None}, {"vae": 3}, {"mean": None}, {"mean": [0.0]},
])  # fmt: skip
def test_an_index_of_wrong_types_is_refused(tmp_path, damage):
    index = write_latents(tmp_path / "out", items_of())
    (tmp_path / "out" / "index.json").write_text(json.dumps(index | damage))
    with pytest.raises(DataError, match=r"index\.json"):
        LatentStore(tmp_path / "out")


def test_a_damaged_record_is_skipped_counted_and_reported(tmp_path):
    write_latents(tmp_path / "out", items_of(), dtype="float32")
    file = next((tmp_path / "out").glob("*.arrayrecord"))
    data = bytearray(file.read_bytes())
    needle = data.find(b"clip-2")
    target = needle if needle >= 0 else len(data) // 3
    data[target + 1] ^= 0xFF
    file.write_bytes(bytes(data))
    store = LatentStore(tmp_path / "out")
    ids = [store[i]["id"] for i in range(7)]
    broken = store.report()
    assert len(broken) == 1
    assert "is damaged" in next(iter(broken.values()))
    number = int(next(iter(broken)).split("[")[1][:-1])
    assert ids[number] == f"clip-{number + 1}"
    assert sum(a == f"clip-{i}" for i, a in enumerate(ids)) == 6
