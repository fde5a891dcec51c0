"""What footage there is: the video files of a folder, local or in a bucket, or of a list.

    for file in find_footage("gs://bucket/films"): ...
    find_footage("films.txt")       # a path a line, relative ones beside the list

Captions that lie beside the footage (vdit.data.captions) come with it, and are those of every clip of a file.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from vdit import paths
from vdit.data.captions import SUFFIXES, read_captions, video_files
from vdit.data.tables import read_lines
from vdit.errors import DataError

MOST_FILES = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FootageFile:
    """One file of footage.

    Args:
        path: as it is opened, local or in a bucket.
        name: relative to the footage's folder, for people.
        version: changes when the file does; None where there is no such file.
        captions: of the whole file; () where there are none.
    """

    path: str
    name: str
    version: str | None
    captions: tuple[str, ...] = ()


def find_footage(place: str | Path) -> list[FootageFile]:
    """The files of footage, sorted by path.

    Args:
        place: a folder, or a .txt with a path a line: local or in a bucket.

    Raises:
        DataError: there is no such place, or no video in it.
    """
    if paths.is_dir(place):
        found = _of_folder(paths.path(place))
    elif paths.is_file(place) and str(place).lower().endswith(".txt"):
        found = _of_list(paths.path(place))
    elif paths.is_file(place):
        raise DataError(f"{place}: is a file: give the folder that holds it, or a .txt with a path a line")
    else:
        raise DataError(f"{place}: there is no such folder or list: give a folder of videos, or a .txt that lists them")
    if not found:
        raise DataError(f"{place}: holds no video ({', '.join(SUFFIXES)})")
    if len(found) > MOST_FILES:
        raise DataError(f"{place}: names {len(found)} files, at most {MOST_FILES} are read at a time: split it")
    return sorted(found, key=lambda file: file.path)


def _of_folder(folder: paths.AnyPath) -> list[FootageFile]:
    files = {_relative(file, folder): () for file in video_files(folder)}
    if files:
        listing = read_captions(folder)
        files |= {entry.file: tuple(filter(None, entry.captions)) for entry in listing.entries}
    return [_file(folder / name, name, captions) for name, captions in files.items()]


def _of_list(place: paths.AnyPath) -> list[FootageFile]:
    names = [name for _, name in read_lines(place, error=DataError)]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None) if len(
        names) != len(set(names)) else None  # fmt: skip
    if twice is not None:
        raise DataError(f"{place}: names {twice!r} twice: keep one")
    here = place.parent
    return [_file(paths.path(name) if paths.is_remote(name) or os.path.isabs(name) else here / name, name, ())
            for name in names]  # fmt: skip


def _file(path: paths.AnyPath, name: str, captions: tuple[str, ...]) -> FootageFile:
    version = paths.version_of(path) if paths.is_file(path) else None
    told = None if version is None else "-".join(map(str, version))
    return FootageFile(path=str(path), name=name, version=told, captions=captions)


def _relative(file: paths.AnyPath, folder: paths.AnyPath) -> str:
    return str(file).removeprefix(f"{folder}/")
