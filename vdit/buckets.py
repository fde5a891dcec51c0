"""What lies in a bucket: gs:// through gcsfs, s3:// through s3fs, and a bounded cache of it on the local disk.

vdit.paths is the module to call; this one is its half for names in buckets. Every name here is a URL as a string.

A key of a bucket is written whole or not at all, so it needs no temporary name. There are no folders, only keys with
slashes, and nothing is renamed: `move` copies within the bucket and then deletes. Listings are never cached, since
tensorstore and other hosts write beside these libraries.

The cache: `VDIT_FILE_CACHE` (default ~/.cache/vdit/files) holds at most `VDIT_FILE_CACHE_GIB` (default 64). A file is
stored under the digest of its URL and version, written beside and renamed, so that several processes may share the
folder. The files that were not used for the longest time go first; one that was handed out in the last minute stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import importlib.util
import logging
import math
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from vdit.errors import BucketError, ConfigError, DataError, VditError, install_command

T = TypeVar("T")

_LIBRARY = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme -> (package, extra)
_ATTEMPTS, _PAUSE = 4, 0.5  # of a transfer that ends in the middle; seconds before the second one
_THREADS = 8  # transfers of a folder's files at a time
_GRACE = 60.0  # seconds in which a file that was handed out is opened
GIB = 1 << 30


def require(url: str) -> None:
    """DataError unless the library that reads such URLs is installed."""
    package, extra = _LIBRARY[_scheme(url)]
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{url}: needs {package}: {install_command(extra)}")


@functools.cache
def _store(scheme: str) -> Any:
    """The library's file system, with every cache of listings off: in epath's own instance too."""
    import fsspec

    for logger in ("gcsfs", "s3fs", "gcsfs.retry"):  # they log a traceback for what they raise anyway
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    for name in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    if scheme == "s3":
        return fsspec.filesystem("s3", skip_instance_cache=True)
    # The question for a bucket's type goes to a gRPC service, which an emulator does not have.
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    return fsspec.filesystem("gcs", skip_instance_cache=True)


def store(url: str) -> Any:
    """The fsspec file system of a URL."""
    require(url)
    return _store(_scheme(url))


def check_login(url: str) -> None:
    """PermissionError where nobody is logged in to Google: an attempt to write would be repeated for minutes."""
    if _scheme(url) != "gs" or os.environ.get("STORAGE_EMULATOR_HOST"):
        return
    files = store(url)
    if not getattr(files, "_endpoint", None) and files.credentials.method == "anon":
        raise PermissionError("no login to Google was found")


def _scheme(url: str) -> str:
    return url.partition("://")[0]


# what is there


def info(url: str) -> dict[str, Any] | None:
    """What is known of a key; None where there is none."""
    with failures(url, OSError):
        try:
            found = _again(lambda: store(url).info(url))
        except FileNotFoundError:
            _check_bucket(url)
            return None
    return found if found.get("type") == "file" else None


def is_dir(url: str) -> bool:
    """Whether any key lies below the URL. The bucket itself always is one."""
    with failures(url, OSError):
        bucket, _, key = url.partition("://")[2].partition("/")
        if not key.strip("/"):
            _check_bucket(url)
            return bool(bucket)
        return bool(names(url))


def names(url: str) -> list[str]:
    """Names directly below a URL, sorted."""
    base = url.rstrip("/").partition("://")[2] + "/"
    try:
        found = _again(lambda: store(url).ls(url.rstrip("/") + "/", detail=False, refresh=True))
    except FileNotFoundError:
        _check_bucket(url)
        return []
    tails = (key.partition("://")[2] if "://" in key else key for key in found)
    return sorted({name for tail in tails if (name := tail.removeprefix(base).strip("/")) and "/" not in name})


def sizes(url: str) -> dict[str, int]:
    """Key relative to the URL -> bytes, of every key below it; sorted."""
    base = url.rstrip("/").partition("://")[2] + "/"
    try:
        found = _again(lambda: store(url).find(url.rstrip("/") + "/", detail=True))
    except FileNotFoundError:
        _check_bucket(url)
        return {}
    files = {key: int(about.get("size") or 0) for key, about in found.items() if about.get("type") == "file"}
    return {key.removeprefix(base): files[key] for key in sorted(files) if key.startswith(base) and key != base}


def size(url: str) -> int:
    """Bytes of a key; FileNotFoundError where there is none."""
    return int(_found(url)["size"])


def version(url: str) -> tuple | None:
    """Changes with the content of a key; None where there is none."""
    found = info(url)
    return None if found is None else _version(found)


def versions(url: str) -> tuple:
    """Changes with every key below a URL, and its content."""
    with failures(url, OSError):
        found = _again(lambda: store(url).find(url.rstrip("/") + "/", detail=True))
    return tuple((key, _version(about)) for key, about in sorted(found.items()))


def _version(found: dict[str, Any]) -> tuple:
    told = (found.get(key) for key in ("generation", "ETag", "etag", "md5Hash", "updated", "LastModified"))
    return found.get("size"), *(str(value) for value in told if value is not None)


def _found(url: str) -> dict[str, Any]:
    found = info(url)
    if found is None:
        raise FileNotFoundError(f"{url}: there is no such object")
    return found


def _check_bucket(url: str) -> None:
    """FileNotFoundError that names the bucket where it is the bucket that is not there."""
    bucket = url.partition("://")[2].partition("/")[0]
    try:
        _again(lambda: store(url).ls(f"{_scheme(url)}://{bucket}/", detail=False, refresh=True))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no bucket {bucket!r}") from None


# reading and writing


def read(url: str) -> bytes:
    """All bytes of a key."""
    expected = size(url)

    def whole() -> bytes:
        data = store(url).cat_file(url)
        if len(data) != expected:
            raise ConnectionError(f"{len(data)} of {expected} bytes came")
        return data

    return _again(whole)


def digest(url: str) -> str:
    """The sha256 of a key, read in blocks."""
    expected = size(url)

    def whole() -> str:
        sha, count = hashlib.sha256(), 0
        with store(url).open(url, "rb", cache_type="readahead", block_size=8 << 20) as file:
            while block := file.read(8 << 20):
                sha.update(block)
                count += len(block)
        if count != expected:
            raise ConnectionError(f"{count} of {expected} bytes came")
        return sha.hexdigest()

    with failures(url, OSError):
        return _again(whole)


def put(url: str, data: bytes) -> None:
    """Writes a key: all of it, or nothing."""
    _again(lambda: store(url).pipe_file(url, data))


def create(url: str, data: bytes) -> bool:
    """Writes a key that is not there yet; False where it is, whoever wrote it."""
    try:
        store(url).pipe_file(url, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:
        if any(mark in str(error) for mark in ("PreconditionFailed", "412", "conditionNotMet")):
            return False
        raise
    return True


def send(file: Path, url: str) -> None:
    """Writes a key from a local file, and checks its size."""

    def whole() -> None:
        store(url).put_file(str(file), url)
        if size(url) != file.stat().st_size:
            raise ConnectionError(f"{size(url)} of {file.stat().st_size} bytes arrived")

    _again(whole)


def send_folder(folder: Path, url: str, *, last: tuple[str, ...] = ()) -> None:
    """Writes all files of a local folder; those that `last` names after all others, in this order."""
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda name: send(folder / name, f"{url}/{name}"), [n for n in files if n not in last]))
    for name in last:
        if name in files:
            send(folder / name, f"{url}/{name}")


def move(url: str, target: str, last: tuple[str, ...] = ()) -> None:
    """Copies every key below a URL to another one in the same bucket, `last` at the end; then deletes the old ones."""
    found = sorted(sizes(url), key=lambda name: (last.index(name) + 1 if name in last else 0, name))
    for name in found:
        _again(lambda name=name: store(url).cp_file(f"{url}/{name}", f"{target}/{name}"))
    remove(url, last)


def remove(url: str, first: tuple[str, ...] = ()) -> None:
    """Deletes every key below a URL, those that `first` names before all others."""
    found = sizes(url)
    for name in sorted(found, key=lambda name: name not in first):
        delete(f"{url}/{name}")


def delete(url: str) -> None:
    """Deletes a key, if it is there."""

    def gone() -> None:
        with contextlib.suppress(FileNotFoundError):
            store(url).rm_file(url)

    _again(gone)


# the cache


class Cache:
    """Files on this disk, of at most `limit` bytes in all; see this module.

    grace: seconds in which a file that was handed out is not removed.
    """

    def __init__(self, folder: Path, limit: int, *, grace: float = _GRACE):
        self.folder, self.limit, self.grace = folder, limit, grace

    def get(self, key: str, name: str, size: int, fill: Callable[[Path], None]) -> Path:
        """The file of a key, filled if it is not there.

        Args:
            key: what the content depends on. name: of the file, whose suffix readers go by.
            size: bytes, known before. fill: writes them to a path.

        Raises:
            ConfigError: the file is larger than the cache may be.
        """
        if size > self.limit:
            raise ConfigError(
                f"{name} has {size} bytes, the cache of files in buckets may hold {self.limit}: raise "
                "VDIT_FILE_CACHE_GIB"
            )
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        file = self.folder / digest[:2] / digest / name
        try:
            if file.stat().st_size == size:
                os.utime(file)
                return file
        except OSError:
            pass
        self._make_room(size)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = self.folder / digest[:2] / f"{digest}.{uuid.uuid4().hex[:8]}.part"
        try:
            fill(part)
            if part.stat().st_size != size:
                raise ConnectionError(f"{part.stat().st_size} of {size} bytes came")
            file.parent.mkdir(parents=True, exist_ok=True)  # another process may have tidied up
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)
        return file

    def used(self) -> int:
        """Bytes of all files."""
        return sum(status.st_size for _, status in self._files())

    def _make_room(self, size: int) -> None:
        files = sorted(self._files(), key=lambda item: item[1].st_mtime)
        over = sum(status.st_size for _, status in files) + size - self.limit
        for file, status in files:
            if over <= 0 or status.st_mtime > time.time() - self.grace:
                break
            with contextlib.suppress(OSError):
                file.unlink()
                over -= status.st_size
                file.parent.rmdir()

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for file in self.folder.glob("*/*/*"):
            with contextlib.suppress(OSError):
                found.append((file, file.stat()))
        for part in self.folder.glob("*/*.part"):  # of a process that was killed
            with contextlib.suppress(OSError):
                if part.stat().st_mtime < time.time() - 3600:
                    part.unlink()
                else:
                    found.append((part, part.stat()))
        return found


def cache() -> Cache:
    """The cache that the environment names."""
    told = os.environ.get("VDIT_FILE_CACHE_GIB") or "64"
    try:
        limit = float(told)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise ConfigError(f"VDIT_FILE_CACHE_GIB={told!r}: must be a number above 0")
    return Cache(home() / "files", int(limit * GIB))


def home() -> Path:
    """Where vdit keeps what it can fetch or make again: VDIT_FILE_CACHE, or vdit's folder of the user's cache."""
    given = os.environ.get("VDIT_FILE_CACHE")
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else root / "vdit"


def fetch(url: str) -> Path:
    """A copy of a key in the cache, of the version that is there now."""
    found = _found(url)
    name = url.rstrip("/").rpartition("/")[2]
    key = f"{url} {_version(found)}"
    return _again(lambda: cache().get(key, name, int(found["size"]), lambda part: store(url).get_file(url, str(part))))


def fetch_folder(url: str) -> Path:
    """A folder with copies of all keys below a URL. The folder is of this version of all of them."""
    found = _again(lambda: store(url).find(url.rstrip("/") + "/", detail=True))
    base = url.rstrip("/").partition("://")[2] + "/"
    files = {key.removeprefix(base): about for key, about in sorted(found.items()) if about.get("type") == "file"}
    files.pop(base, None)
    if not files:
        _check_bucket(url)
        raise FileNotFoundError(f"{url}: there is no such folder")
    stamp = hashlib.sha256(repr([(name, _version(about)) for name, about in files.items()]).encode()).hexdigest()[:16]
    folder = home() / "folders" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{stamp}"
    folder = folder / url.rstrip("/").rpartition("/")[2]
    need = sum(int(about["size"]) for name, about in files.items() if not _is_whole(folder / name, about))
    _tidy_folders(folder.parent, need)

    def one(name: str) -> None:
        about, target = files[name], folder / name
        if _is_whole(target, about):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            _again(lambda: _whole(url, name, part, int(about["size"])))
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(one, files))
    os.utime(folder.parent)
    return folder


def _whole(url: str, name: str, part: Path, size: int) -> None:
    store(url).get_file(f"{url.rstrip('/')}/{name}", str(part))
    if part.stat().st_size != size:
        raise ConnectionError(f"{part.stat().st_size} of {size} bytes came")


def _is_whole(file: Path, about: dict[str, Any]) -> bool:
    try:
        return file.stat().st_size == int(about["size"])
    except OSError:
        return False


def _tidy_folders(keep: Path, need: int) -> None:
    """Removes copies of folders, the least recently used first, until all of them and `need` bytes fit the cache."""
    limit = cache().limit
    if need > limit:
        raise ConfigError(
            f"a folder of {need} bytes is to be copied, the cache of files in buckets may hold {limit}: raise "
            "VDIT_FILE_CACHE_GIB"
        )
    folders = [folder for folder in keep.parent.glob("*") if folder.is_dir() and folder != keep]
    used = {folder: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders}
    over = sum(used.values()) + need - limit
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime):
        if over > 0 and folder.stat().st_mtime < time.time() - _GRACE:
            shutil.rmtree(folder, ignore_errors=True)
            over -= used[folder]


# failures


def is_transient(error: BaseException) -> bool:
    """Whether an error is one of the network's, and the same call may succeed later."""
    if isinstance(error, BucketError):
        return error.transient
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    if isinstance(error, ConnectionError | TimeoutError | asyncio.TimeoutError):
        return True
    text = f"{type(error).__name__} {error}"
    marks = ("ClientPayloadError", "ServerDisconnected", "ClientConnect", "ClientOSError", "EndpointConnection",
             "IncompleteRead", "ReadTimeout", "ConnectTimeout", "ConnectionClosed", "HTTPClientError",
             "ResponseStreaming", "SlowDown", "InternalError", "ServiceUnavailable")  # fmt: skip
    return any(mark in text for mark in marks) or getattr(error, "code", None) in (429, 500, 502, 503, 504)


def _again(act: Callable[[], T]) -> T:
    """What the call gives; it is made again where the connection broke."""
    for attempt in range(_ATTEMPTS):
        try:
            return act()
        except VditError:
            raise
        except Exception as error:
            if attempt == _ATTEMPTS - 1 or not is_transient(error):
                raise
            time.sleep(_PAUSE * 2**attempt * random.uniform(0.5, 1.0))
    raise AssertionError  # not reached


@contextlib.contextmanager
def failures(url: str, error: type[Exception], fix: str = "") -> Iterator[None]:
    """Turns what the libraries raise into one line that names the bucket, the rule and the fix.

    error: the class that is raised; for OSError, BucketError, which is one.
    """
    try:
        yield
    except BucketError as failure:
        if issubclass(error, VditError) and not isinstance(failure, error):
            raise error(str(failure)) from failure
        raise
    except VditError:
        raise
    except Exception as failure:
        line, transient = _words(url, failure, fix)
        if not issubclass(error, VditError):
            raised = BucketError(line)
            raised.transient = transient
            raise raised from failure
        raise error(line) from failure


def _words(url: str, failure: Exception, fix: str) -> tuple[str, bool]:
    text = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:200]
    bucket = url.partition("://")[2].partition("/")[0]
    login = {"gs": "gcloud auth application-default login", "s3": "AWS_ACCESS_KEY_ID or aws configure"}[_scheme(url)]
    code = getattr(failure, "code", None)
    if isinstance(failure, FileNotFoundError):
        if "there is no bucket" in text or "bucket does not exist" in text.lower():
            return f"{url}: there is no bucket {bucket!r}, or none that you may see: check its name", False
        return f"{url}: there is no such object in the bucket" + (f"; {fix}" if fix else ""), False
    denied = isinstance(failure, PermissionError) or code in (401, 403) or "Forbidden" in text or "AccessDenied" in text
    if denied or "NoCredentials" in type(failure).__name__ or "DefaultCredentials" in type(failure).__name__:
        rule = f"you have no right to it ({text}): ask for access to bucket {bucket!r}, or log in ({login})"
        return f"{url}: {rule}", False
    if is_transient(failure):
        return f"{url}: the connection to the bucket keeps failing ({text}): start the same command again", True
    return f"{url}: {type(failure).__name__}: {text}" + (f"; {fix}" if fix else ""), False
