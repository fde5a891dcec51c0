"""Paths in buckets, against servers on loopback: the same calls for gs:// and s3:// as for a local folder."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from etils import epath

from tests.loopback import serve_buckets
from vdit import buckets, paths
from vdit.errors import BucketError, ConfigError, DataError, OutputError, WeightsError
from vdit.outputs import check_folder

NAME = "vdit-test"


server = pytest.fixture(scope="module")(serve_buckets)


@pytest.fixture(params=["gs", "s3"])
def root(request, server, tmp_path, monkeypatch):
    """The URL of an empty bucket."""
    monkeypatch.setenv("VDIT_FILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "_PAUSE", 0.01)
    server.reset()
    return f"{request.param}://{NAME}"


def test_names_of_buckets_are_told_from_local_ones():
    assert paths.path("gs://a-bucket/x") == epath.Path("gs://a-bucket/x")
    assert str(paths.path(Path("s3://a-bucket/x"))) == "s3://a-bucket/x"  # pathlib has lost a slash
    assert isinstance(paths.path("runs/x"), Path)
    assert not paths.is_remote("./gs/x")
    assert paths.is_hub("hf://org/name")
    assert not paths.is_hub("runs/hf")


def test_files_come_back_as_they_were_written(root):
    paths.write_atomic(f"{root}/run/notes/a.json", '{"a": 1}')
    assert paths.read_json(f"{root}/run/notes/a.json", limit=100) == {"a": 1}
    assert paths.files_below(f"{root}/run") == {"notes/a.json": 8}
    assert paths.names_in(f"{root}/run") == ["notes"]
    assert paths.is_dir(f"{root}/run/notes")
    assert not paths.is_file(f"{root}/run/notes")
    assert paths.is_file(f"{root}/run/notes/a.json")
    assert not paths.exists(f"{root}/run/b")
    assert paths.file_size(f"{root}/run/notes/a.json") == 8


def test_a_limit_holds_before_anything_is_transferred(root):
    paths.write_atomic(f"{root}/big.json", b" " * 1000)
    with pytest.raises(DataError, match="1000"):
        paths.read_bytes(f"{root}/big.json", limit=999)


def test_a_folder_moves_with_the_named_files_last(root, server):
    for name in ("index.json", "a", "z/b"):
        paths.write_atomic(f"{root}/unfinished/{name}", name)
    server.asked.clear()
    paths.move_folder(f"{root}/unfinished", f"{root}/done", last=("index.json",))
    assert server.names_of(NAME) == ["done/a", "done/index.json", "done/z/b"]
    paths.remove_folder(f"{root}/done", first=("index.json",))
    gone = [key for method, key in server.asked if method == "DELETE" and key.startswith("done/")]
    assert gone[0] == "done/index.json"
    assert server.names_of(NAME) == []


def test_a_copy_is_taken_again_when_the_original_changes(root, server):
    url = f"{root}/videos/a.mp4"
    paths.write_atomic(url, b"one")
    first = paths.local_copy(url)
    assert first.read_bytes() == b"one"
    assert first.suffix == ".mp4"
    before = len(server.asked)
    assert paths.local_copy(url) == first
    assert not [what for what in server.asked[before:] if what[0] == "GET" and "mp4" not in what[1]]
    paths.write_atomic(url, b"two")
    assert paths.local_copy(url).read_bytes() == b"two"


def test_a_folder_is_copied_whole(root):
    files = {"a.txt": b"1", "x/y/b.bin": b"22"}
    for name, data in files.items():
        paths.write_atomic(f"{root}/model/{name}", data)
    folder = paths.local_folder(f"{root}/model")
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert folder.name == "model"


def test_the_cache_holds_its_limit_and_drops_the_least_recently_used(tmp_path):
    cache = buckets.Cache(tmp_path, 100, grace=0.0)
    write = lambda part: part.write_bytes(bytes(40))  # noqa: E731
    files = [cache.get(f"key {i}", "file", 40, write) for i in range(2)]
    for age, file in zip((20, 10), files):
        os.utime(file, (time.time() - age,) * 2)
    assert cache.get("key 0", "file", 40, write) == files[0]  # used: now the younger one
    time.sleep(0.01)
    cache.get("key 2", "file", 40, write)
    assert files[0].exists()
    assert not files[1].exists()
    assert cache.used() <= 100
    with pytest.raises(ConfigError, match="101"):
        cache.get("key 3", "file", 101, write)


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    cache = buckets.Cache(tmp_path, 100)
    with pytest.raises(ConnectionError):
        cache.get("key", "file", 40, lambda part: part.write_bytes(bytes(39)))
    assert cache.used() == 0


def test_several_threads_may_ask_for_one_file(root):
    paths.write_atomic(f"{root}/a.bin", bytes(100_000))
    found = []
    threads = [threading.Thread(target=lambda: found.append(paths.local_copy(f"{root}/a.bin").read_bytes()))
               for _ in range(8)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [bytes(100_000)] * 8


def test_a_missing_bucket_is_named(root):
    url = root.replace(NAME, "no-such-bucket") + "/a.json"
    for read in (paths.local_copy, paths.file_size, paths.local_folder):
        with pytest.raises(WeightsError, match="no-such-bucket"):
            read(url, error=WeightsError)
    with pytest.raises(BucketError, match="no-such-bucket") as caught:
        paths.write_atomic(url, "x")
    assert not caught.value.transient


def test_a_missing_object_is_not_a_missing_bucket(root):
    with pytest.raises(DataError) as caught:
        paths.read_bytes(f"{root}/absent", limit=10)
    assert f"{root}/absent" in str(caught.value)
    assert "no bucket" not in str(caught.value)


def test_a_missing_right_is_named(root, server):
    server.deny = lambda method, key: method in ("PUT", "POST")
    with pytest.raises(BucketError, match="right") as caught:
        paths.write_atomic(f"{root}/a", "x")
    assert isinstance(caught.value, OSError)
    assert not caught.value.transient
    server.deny = lambda method, key: True
    with pytest.raises(DataError, match="right"):
        paths.read_bytes(f"{root}/a", limit=10)


def test_a_connection_that_breaks_in_the_middle_is_made_again(root, server):
    data = os.urandom(300_000)
    server.cut = 1
    paths.write_atomic(f"{root}/a.bin", data)
    server.cut = 1
    assert paths.read_bytes(f"{root}/a.bin", limit=1 << 20) == data
    server.cut = 1
    assert paths.local_copy(f"{root}/a.bin").read_bytes() == data
    assert server.cut == 0


def test_only_one_of_several_creates_a_key(root):
    assert buckets.create(f"{root}/lock", b"mine")
    assert not buckets.create(f"{root}/lock", b"theirs")
    assert paths.read_bytes(f"{root}/lock", limit=10) == b"mine"


def test_a_local_file_is_written_whole(tmp_path):
    paths.write_atomic(tmp_path / "new" / "a.txt", "text", sync=True)
    assert (tmp_path / "new" / "a.txt").read_text() == "text"
    (tmp_path / "file").write_text("")
    with pytest.raises((OSError, OutputError)):
        paths.write_atomic(tmp_path / "file" / "a", "x")
    assert [file.name for file in tmp_path.rglob("*.part")] == []


def test_without_a_login_a_folder_at_google_is_refused_at_once(monkeypatch):
    class Store:  # what gcsfs is where it finds no credentials; anything else would be a request
        credentials = SimpleNamespace(method="anon")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(buckets, "store", lambda url: Store())
    with pytest.raises(OutputError, match=r"gs://b/curated: .*gcloud auth"):
        check_folder("gs://b/curated")
