"""Any file of a step may be truncated, deleted, or have a bit flipped: it is found, named, and never used."""

import contextlib
import json
import os
import random
import shutil
import signal
import time

import pytest

from tests.checkpoint.runs import Source, abstract, assert_same, make_run, trees
from vdit.checkpoint import MANIFEST, Checkpointer, find_step, load_meta, load_params, load_trees
from vdit.checkpoint import restore as tree_reading
from vdit.checkpoint.integrity import files_in, process_shard
from vdit.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(saved, tmp_path):
    """A copy to break."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def harm(file, how, rng):
    content = bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)


def some_damage(folder, seed, count):
    """`count` of all (file, way to harm it), the manifest's first: every way for every file is possible."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    ways = [(file, how) for file in files for how in ("flip", "truncate", "delete")]
    ways = [(file, how) for file, how in ways if file.stat().st_size or how == "delete"]
    first = [way for way in ways if way[0].name == MANIFEST and way[1] != "delete"]
    rest = [way for way in ways if way[0].name != MANIFEST]
    random.Random(seed).shuffle(rest)
    return (first + rest)[:count]


def test_every_file_harmed_in_every_way_is_found_and_named(copied):
    """Reading for inference: the newest good step with a warning, nothing renamed; a step asked for is refused."""
    rng, whole = random.Random(0), copied.with_name("whole")
    shutil.copytree(copied / "3", whole)
    for file, how in some_damage(copied / "3", seed=0, count=10**6):
        name, heard = str(file.relative_to(copied / "3")), []
        harm(file, how, rng)
        assert find_step(copied, warn=heard.append) == copied / "2", (name, how)
        words = f"step 3 is damaged: {name} is {'missing' if how == 'delete' else 'damaged'} (1 file in all)"
        if name != MANIFEST:  # which may seem to be of old by its last line
            assert heard == [f"{copied}: {words}; step 2 is used instead"]
        assert len(heard) == 1
        with pytest.raises(CheckpointError, match=r"3: .*(damaged|missing).*; take another step"):
            find_step(copied, 3)
        shutil.copy2(whole / name, file)
    assert find_step(copied, warn=pytest.fail) == copied / "3"


@pytest.mark.parametrize("seed", range(6))
def test_training_goes_on_from_the_step_before_and_keeps_the_damaged_one(copied, seed):
    rng = random.Random(seed)
    file, how = some_damage(copied / "3", seed=seed, count=10**6)[rng.randrange(100)]
    harm(file, how, rng)
    source, heard = Source(), []
    with Checkpointer(copied, warn=heard.append) as checkpointer:
        assert_same(checkpointer.restore(abstract(trees()), data=source), trees(2))
        assert source.place == {"next_index": 20}
        assert checkpointer.latest_step() == 2
        checkpointer.save(3, trees(3))  # its name is free again
    assert len(heard) == 1
    assert f"{file.name} is" in heard[0]
    assert heard[0].endswith("set aside as 3.damaged; going on from step 2")
    assert sorted(entry.name for entry in copied.iterdir()) == ["2", "3", "3.damaged"]
    assert_same(load_params(copied, ema=False), trees(3)["params"])


def test_reading_says_which_step_it_took_and_changes_nothing(copied, capsys):
    harm(copied / "3" / "optimizer" / "_METADATA", "flip", random.Random(1))
    assert_same(load_params(copied), trees(2)["ema"])
    assert_same(load_trees(copied, abstract({"params": trees()["params"]}))["params"], trees(2)["params"])
    assert load_meta(copied)["config"] == {"dit": {"depth": 4}}
    said = capsys.readouterr().err
    assert said.count("step 3 is damaged: optimizer/_METADATA is damaged") == 1, "once is enough"
    assert sorted(entry.name for entry in copied.iterdir()) == ["2", "3"]
    with pytest.raises(CheckpointError, match=r"run/3: optimizer/_METADATA is damaged \(1 file in all\); take another"):
        load_params(copied, step=3)


def test_without_a_good_step_all_are_named_and_nothing_begins_anew(copied):
    os.remove(copied / "3" / "params" / "manifest.ocdbt")
    harm(copied / "2" / "meta" / "meta.json", "flip", random.Random(2))
    words = r"no step can be used: step 3 is damaged: params/manifest.ocdbt is missing.*; step 2 is damaged: meta/meta"
    for _ in range(2):  # nor the second time
        with Checkpointer(copied) as checkpointer, pytest.raises(CheckpointError, match=words):
            checkpointer.latest_step()
    with pytest.raises(CheckpointError, match=words):
        load_params(copied)


def test_a_second_damaged_step_of_the_same_number_is_kept_too(copied):
    (copied / "3.damaged").mkdir()
    os.remove(copied / "3" / "_CHECKPOINT_METADATA")
    with Checkpointer(copied, warn=str) as checkpointer:
        assert checkpointer.latest_step() == 2
    assert sorted(entry.name for entry in copied.iterdir()) == ["2", "3.damaged", "3.damaged-2"]


def test_a_step_whose_save_was_cut_short_before_its_seal_is_used_and_sealed(copied):
    os.remove(copied / "3" / MANIFEST)
    assert_same(load_params(copied), trees(3)["ema"])
    assert not (copied / "3" / MANIFEST).exists(), "reading writes nothing"
    heard = []
    with Checkpointer(copied, warn=heard.append) as checkpointer:
        assert_same(checkpointer.restore(abstract(trees()), data=Source()), trees(3))
    assert len(heard) == 1
    assert "cut short" in heard[0]
    harm(copied / "3" / "data" / "host_0_of_1.json", "flip", random.Random(3))
    assert find_step(copied, warn=str) == copied / "2"


@pytest.mark.parametrize("lost", ["params/d", "ema/manifest.ocdbt", "optimizer/_METADATA", "data", "meta/meta.json"])
def test_a_step_without_seal_that_cannot_be_read_is_not_used(copied, lost):
    os.remove(copied / "3" / MANIFEST)
    if (copied / "3" / lost).is_dir():
        shutil.rmtree(copied / "3" / lost)
    else:
        os.remove(copied / "3" / lost)
    heard = []
    with Checkpointer(copied, warn=heard.append) as checkpointer:
        assert_same(checkpointer.restore(abstract(trees())), trees(2))
    assert "step 3 is damaged" in heard[0]
    assert (copied / "3.damaged").is_dir()


def test_shares_of_hosts_are_all_files_once_and_alike_in_bytes(saved):
    sizes = {f"file{number}": 1000 * (number % 7) + (90_000 if number < 8 else 0) for number in range(100)}
    for count in (1, 2, 3, 4):
        shares = [process_shard(sizes, index, count) for index in range(count)]
        assert sorted(name for names in shares for name in names) == sorted(sizes)
        loads = [sum(sizes[name] for name in names) for names in shares]
        assert max(loads) - min(loads) <= max(sizes.values())
    assert sorted(process_shard(files_in(saved / "3"), 0, 1)) == sorted(files_in(saved / "3"))


def test_a_manifest_of_old_without_a_sum_of_its_own_still_serves(copied):
    manifest = copied / "3" / MANIFEST
    listed = json.loads(manifest.read_text())
    del listed[MANIFEST]
    manifest.write_text(json.dumps(listed, indent=1))
    assert find_step(copied, warn=pytest.fail) == copied / "3"
    harm(copied / "3" / "ema" / "_sharding", "flip", random.Random(4))
    assert find_step(copied, warn=str) == copied / "2"


def test_a_signal_while_reading_is_not_swallowed(copied, monkeypatch):
    """Orbax catches what a signal handler raises, KeyboardInterrupt too, and goes on without what it was reading."""
    real = tree_reading.ocp.metadata

    class Stopped(BaseException):
        pass

    def handle(*_):
        raise Stopped

    def interrupted(*args, **options):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
        return real(*args, **options)

    before = signal.signal(signal.SIGUSR1, handle)
    monkeypatch.setattr(tree_reading.ocp, "metadata", interrupted)
    try:
        with pytest.raises(Stopped):
            load_params(copied)
    finally:
        signal.signal(signal.SIGUSR1, before)
