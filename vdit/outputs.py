"""Writing files: nothing that was given is replaced, files appear whole, automatic names are free ones.

    check_output("longer.mp4", given=["dog.mp4", "runs/mine"])   # before anything slow
    path = write_whole("longer.mp4", write, replace=False)       # longer.mp4, or longer-2.mp4 if that exists
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import os
import stat
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vdit import buckets, paths
from vdit.errors import OutputError, writing

LIMITS = 255, 4096  # bytes of a name and of a path, where the filesystem does not say
_NO_LINKS = {getattr(errno, name) for name in ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV", "EACCES")}
# Real path -> whether this process wrote it; of the last files that were read or written.
_FILES: collections.OrderedDict[str, bool] = collections.OrderedDict()
_FILES_MOST = 10_000
_FILES_LOCK = threading.Lock()  # files are read by several threads at a time


def check_output(path: str | Path, *, given: Iterable[str | Path] = (), name: str | None = None) -> None:
    """Checks that a file can be written at `path` and replaces nothing that was given; call it before anything slow.

    Links are followed and hard links, `..` and other spellings of a name are seen through. Nothing is left on disk.

    Args:
        path: the file to be written; its folder need not exist yet.
        given: files and folders that the user gave. Of a folder no existing file is replaced.
        name: what the message begins with; None is the path.

    Raises: OutputError.
    """
    if paths.is_remote(path):
        if any(is_same(path, source) for source in given):
            raise OutputError(f"{path}: was given and is not replaced; give another name for the output")
        _check_remote(path)
        return
    path, name = Path(path), str(path) if name is None else name
    status = _check_place(path, name)
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{name}: is a folder; name a file")
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{name}: is there already and is no ordinary file; give another name")
    if status is None:
        return
    for source in map(Path, given):
        theirs = _status(source)
        if theirs is None:
            continue
        if os.path.samestat(status, theirs):
            same = "" if str(source) == str(path) else f" (as {source})"
            raise OutputError(f"{name}: was given{same} and is not replaced; give another name for the output")
        if stat.S_ISDIR(theirs.st_mode) and is_inside(path, source):
            raise OutputError(f"{name}: is a file of {source}, which was given, and is not replaced; give another name")


def check_folder(path: str | Path, *, name: str | None = None) -> None:
    """OutputError unless files can be written into a folder at `path`, which need not be there yet."""
    if paths.is_remote(path):
        _check_remote(path)
        return
    path, name = Path(path), str(path) if name is None else name
    status = _check_place(path, name)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise OutputError(f"{name}: is a file; name a folder")


def check_new_folder(path: str | Path, *, name: str | None = None) -> None:
    """OutputError unless a folder can be made at `path`, or an empty one is there."""
    path, name = paths.path(path), str(path) if name is None else name
    check_folder(path, name=name)
    if paths.names_in(path):
        raise OutputError(f"{name}: is not empty; give a new folder")


def _check_remote(path: str | Path) -> None:
    """Writes and deletes a small key beside the one that is to be written: OutputError where there is no right to."""
    url = paths.url_of(path)
    with buckets.failures(url, OutputError):
        buckets.check_login(url)
        probe = f"{url.rstrip('/')}.vdit-probe-{uuid.uuid4().hex[:8]}"
        buckets.put(probe, b"")
        buckets.delete(probe)


def is_same(path: str | Path, other: str | Path) -> bool:
    """Whether two names are of one file or folder that exists, links followed."""
    if paths.is_remote(path) or paths.is_remote(other):
        return paths.url_of(path) == paths.url_of(other)
    mine, theirs = _status(Path(path)), _status(Path(other))
    return mine is not None and theirs is not None and os.path.samestat(mine, theirs)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path, which need not exist, is in a folder that does, links followed."""
    if paths.is_remote(path) or paths.is_remote(folder):
        return (paths.url_of(path) or "").startswith(f"{(paths.url_of(folder) or '-').rstrip('/')}/")
    return any(is_same(parent, folder) for parent in Path(os.path.realpath(path)).parents)


def write_whole(path: str | Path, write: Callable[[Path], None], *, replace: bool) -> Path:
    """Writes a file that appears whole or not at all, and returns its path.

    Args:
        path: in a folder that exists.
        write: called with the path of a temporary file in that folder, with the suffix of `path`, to be filled.
        replace: whether an existing file is replaced. If not, the first free name of a.mp4, a-2.mp4, a-3.mp4, ... is
            taken, in such a way that two processes never take the same.
    """
    path = paths.path(path)
    if not isinstance(path, Path):
        return _write_remote(path, write, replace=replace)
    handle, part = tempfile.mkstemp(prefix=".vdit-", suffix=f".part{path.suffix}", dir=path.parent)
    os.close(handle)
    try:
        with writing(path):
            write(Path(part))
        os.chmod(part, 0o666 & ~_umask())
        if not replace:
            return next(filter(None, (_take(part, name) for name in numbered(path))))
        os.replace(part, path)
        return path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _write_remote(path: paths.AnyPath, write: Callable[[Path], None], *, replace: bool) -> paths.AnyPath:
    """Fills a file of this disk and uploads it."""
    with tempfile.TemporaryDirectory(prefix="vdit-") as folder:
        part = Path(folder) / f"part{path.suffix}"
        with writing(path):
            write(part)
        if not replace:
            path = next(name for name in numbered(path) if not paths.exists(name))
        with buckets.failures(str(path), OutputError):
            buckets.send(part, str(path))
    return path


def numbered(path: Path) -> Iterator[Path]:
    """a.mp4, a-2.mp4, a-3.mp4, ..."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def note_read(path: str | Path) -> None:
    """Remembers that this process has read a file, so that `write_video` does not replace it."""
    _note(path, written=False)


def note_written(path: str | Path) -> None:
    """Remembers that this process has written a file: it may write it again, even after it has read it."""
    _note(path, written=True)


def files_given() -> list[str]:
    """The files that this process has read and not written, of the last 10,000."""
    with _FILES_LOCK:
        return [path for path, written in _FILES.items() if not written]


def _note(path: str | Path, *, written: bool) -> None:
    path = paths.url_of(path) or os.path.realpath(path)
    with _FILES_LOCK:
        _FILES[path] = written or _FILES.get(path, False)
        if len(_FILES) > _FILES_MOST:
            _FILES.popitem(last=False)


def _check_place(path: Path, name: str) -> os.stat_result | None:
    """What is at `path`; OutputError where nothing can be written there."""
    try:
        if "\0" in str(path):
            raise OutputError(f"{name!r}: holds a NUL character, which no file name may; give another name")
        os.fsencode(path)
        status = _status(path)
        if status is None:
            folder = next(parent for parent in Path(os.path.abspath(path)).parents if _status(parent) is not None)
        else:
            folder = path if stat.S_ISDIR(status.st_mode) else path.absolute().parent
        if not folder.is_dir():
            raise OutputError(f"{name}: cannot be written, because {folder} is a file and no folder")
        _check_length(path, name, folder)
        with tempfile.TemporaryFile(dir=folder):
            return status
    except UnicodeEncodeError:
        raise OutputError(f"{name!a}: is not a possible file name; give another name") from None
    except OSError as error:
        raise OutputError(f"{name}: cannot be written ({error.strerror or error}); give another place") from None


def _check_length(path: Path, name: str, folder: Path) -> None:
    limits = [os.pathconf(folder, key) for key in ("PC_NAME_MAX", "PC_PATH_MAX")] if hasattr(os, "pathconf") else LIMITS
    for part, most in [*((part, limits[0]) for part in path.parts), (os.path.abspath(path), limits[1] - 1)]:
        size = len(os.fsencode(part))
        if size > most:
            raise OutputError(f"{name}: {part[:20]}... has {size} bytes, more than {most}; give a shorter name")


def _status(path: Path) -> os.stat_result | None:
    """Of a file, links followed; None where there is none."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def _take(part: str, path: Path) -> Path | None:
    """Gives a finished file this name; None where it is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A filesystem without hard links: the name is taken by an empty file first.
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return None
        try:
            os.replace(part, path)
        except OSError:
            os.unlink(path)  # the empty file
            raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
