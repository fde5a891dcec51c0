"""Which videos a folder holds, and their captions: from a table, from two lists, or from a .txt beside each video.

What `read_captions` looks for, in this order; the first that is there is used:

1. A table (vdit.data.tables): captions.jsonl, captions.csv, captions.tsv, metadata.jsonl, metadata.csv. A record has
   the video under one of COLUMNS["file"] and its caption under one of COLUMNS["caption"]; or several captions, a list
   under "captions"; and optionally a longer one under "detailed", and a class number under "label".
2. Two lists, videos.txt and prompt.txt (or prompts.txt, captions.txt): line k of one belongs to line k of the other.
3. A .txt beside each video, with the same name. Each line is a caption of its own, the first the short one.

To these are added the captions that `vdit caption` wrote beside them, in synthetic_captions.jsonl. They come last, and
are counted: training chooses how often it reads them (data.synthetic_prob). A captions.jsonl of `vdit caption` counts
so too.

Names of files are relative to the folder. They are found whichever way Unicode writes their accents.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vdit import paths
from vdit.data.tables import Record, read_lines, read_table
from vdit.errors import DataError
from vdit.language.records import PROVENANCE, SIDECAR
from vdit.paths import AnyPath
from vdit.reprs import listed, literal, short_repr

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp",
            ".3g2", ".ogv", ".mts", ".m2ts")  # fmt: skip
TABLE_NAMES = ("captions.jsonl", "captions.csv", "captions.tsv", "metadata.jsonl", "metadata.csv")
WRITTEN = (SIDECAR, "captions.html", SIDECAR.replace(".jsonl", ".html"))  # by vdit caption
VIDEO_LIST, PROMPT_LISTS = "videos.txt", ("prompt.txt", "prompts.txt", "captions.txt")

COLUMNS = {
    "file": ("file", "file_name", "filename", "file_path", "filepath", "path", "video", "video_path", "video_file",
             "video_file_name", "media_path"),
    "caption": ("caption", "text", "prompt", "description"),
    "captions": ("captions", "texts", "prompts"),
    "detailed": ("detailed", "detailed_caption", "long_caption"),
    "label": ("label",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A video and its captions.

    file: relative to the folder. captions: the first is the short one, ("",) for none. synthetic: how many of the last
    of them a model wrote, of which the first is the short one again.
    """

    file: str
    captions: tuple[str, ...]
    label: int = 0
    synthetic: int = 0

    @property
    def captioned(self) -> bool:
        return any(self.captions)


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """What is to be read of a folder.

    entries: in a fixed order. found: files of the folder that are videos by their names. unnamed: those of them that
    no entry stands for. notes: what else a user should know, a line each.
    """

    entries: list[Entry]
    found: list[str]
    unnamed: list[str]
    notes: list[str]


def read_captions(folder: str | Path, captions: str | Path | None = None) -> Captions:
    """The videos of a folder and their captions.

    Args:
        folder: the folder.
        captions: a table, or a list of prompts with videos.txt beside it; None looks for one (see this module).

    Returns:
        The entries, what else was found, and notes for the user.

    Raises:
        DataError: there is nothing to read, or a file is ambiguous; the message names file and line.
    """
    folder = paths.path(folder)
    if not paths.is_dir(folder):
        raise DataError(f"{folder} is not a folder: data.source.path must name a folder of video files")
    files = VideoFiles(folder)
    found = _read(files, folder, captions)
    if captions is None and paths.exists(folder / SIDECAR):
        return _with_synthetic(found, files, folder / SIDECAR)
    return found


def _read(files: VideoFiles, folder: AnyPath, captions: str | Path | None) -> Captions:
    """The captions that are not in a file beside others."""
    if captions is not None:
        given = next((path for path in (paths.path(captions), folder / captions) if paths.exists(path)), None)
        if given is None:
            raise DataError(f"captions file {str(captions)!r} is neither here nor in {folder}")
        if given.suffix.lower() == ".txt":
            return _from_lists(files, given.with_name(VIDEO_LIST), given)
        return _from_table(files, given)
    tables = [name for name in TABLE_NAMES if paths.exists(folder / name)]
    prompts = [name for name in PROMPT_LISTS if paths.exists(folder / name)]
    lists = prompts if paths.exists(folder / VIDEO_LIST) and not files.beside(VIDEO_LIST) else []
    notes = [f"{name} is not used: {(tables + lists)[0]} is" for name in (tables + lists)[1:]]
    if tables:
        return _from_table(files, folder / tables[0], notes)
    if lists:
        return _from_lists(files, folder / VIDEO_LIST, folder / lists[0], notes)
    return _beside(files)


def video_files(folder: AnyPath) -> list[AnyPath]:
    """The files of a folder and of those inside it, linked ones too, that are videos by their names; sorted."""
    if not isinstance(folder, Path):
        return [folder / name for name in paths.files_below(folder) if name.lower().endswith(SUFFIXES)]
    return sorted(path for path in _walk(folder) if path.suffix.lower() in SUFFIXES)


class VideoFiles:
    """The files of a folder, by their names relative to it."""

    def __init__(self, folder: AnyPath):
        self.folder = folder
        if isinstance(folder, Path):
            self.paths = {path.relative_to(folder).as_posix(): path for path in sorted(_walk(folder))}
        else:
            self.paths = {name: folder / name for name in paths.files_below(folder)}
        self.videos = [name for name, path in self.paths.items() if path.suffix.lower() in SUFFIXES]
        self._stems = {_plain_stem(name) for name in self.videos}
        self._by_name: dict[str, list[str]] = {}
        self._texts: dict[str, list[str]] = {}
        for name in self.paths:
            self._by_name.setdefault(_composed(name), []).append(name)
            if name.lower().endswith(".txt"):
                self._texts.setdefault(_stem(name), []).append(name)

    def find(self, name: str, where: str) -> str:
        """A name in a captions file -> that of the file that it means; as it is where there is no such file."""
        for written in (name, name.strip(), name.replace("\\", "/")):
            plain = plain_name(written, self.folder)
            if plain in self.paths:
                return plain
            if plain.split("/")[0] == ".." or os.path.isabs(plain):
                raise DataError(f"{where}: names {name!r}, which is not in {self.folder}: name files of that folder")
            same = self._by_name.get(_composed(plain), [])
            if len(same) > 1:
                raise DataError(f"{where}: {name!r} stands for {len(same)} files whose names differ only in how "
                                "Unicode writes their letters: rename one")
            if same:
                return same[0]
        return name

    def text_of(self, video: str) -> str | None:
        """The .txt beside a video: of the same name, or of one that differs only in how its letters are written."""
        alike = self._texts.get(_stem(video), ())
        texts = [name for name in alike if _plain_stem(name) == _plain_stem(video)]
        texts = texts or [name for name in alike if _plain_stem(name) not in self._stems]
        if len(texts) > 1:
            raise DataError(f"{self.folder}: {_listed([video])} has {len(texts)} texts, {_listed(texts)}: keep one")
        return texts[0] if texts else None

    def beside(self, text: str) -> list[str]:
        """The videos that a .txt is beside."""
        return [name for name in self.videos if _stem(name) == _stem(text)]

    def captions(self, entries: list[Entry], notes: Sequence[str], read: Sequence[str | Path]) -> Captions:
        """What the entries leave out of the folder. read: names of files that are no videos, and were read."""
        named = {entry.file for entry in entries}
        unnamed = [name for name in self.videos if name not in named]
        aside = {*self.videos, *WRITTEN, *(plain_name(str(name), self.folder) for name in read)}
        others = [name for name in self.paths if name not in aside and not PurePosixPath(name).name.startswith(".")]
        if others:
            kinds = collections.Counter(PurePosixPath(name).suffix.lower() or "without an ending" for name in others)
            told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
            notes = [*notes, f"{len(others)} other files are not read: {told} ({_listed(others, 3)})"]
        return Captions(entries=entries, found=self.videos, unnamed=unnamed, notes=list(notes))


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, those behind links to folders last; no folder twice, however many links lead to it."""

    def fail(reason: OSError) -> None:
        raise DataError(f"{reason.filename}: cannot be listed ({reason.strerror}): allow it, or move it elsewhere")

    seen, roots = set(), [folder]
    for root in roots:
        for here, inside, names in os.walk(root, onerror=fail):
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                inside.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            links = [Path(here) / name for name in sorted(inside) if os.path.islink(Path(here) / name)]
            roots += [link for link in links if link.is_dir()]
            yield from (Path(here) / name for name in names)


def _from_table(files: VideoFiles, table: AnyPath, notes: Sequence[str] = ()) -> Captions:
    records = list(read_table(table, columns=COLUMNS, needs="file", error=DataError))
    known, others = set(), {}
    for record in records:
        known.update(name for name in record.fields if name in COLUMNS)
        others |= {name: None for name in record.fields if name not in COLUMNS}
    if _synthetic(records):
        others = {name: None for name in others if name not in ("camera", "problem", PROVENANCE)}
    if others and not known & {"caption", "captions", "detailed", "label"}:
        raise DataError(
            f"{table}: has no captions: of its columns {_listed(others)} none is called "
            f'{", ".join(COLUMNS["caption"])}; rename the one that holds them'
        )
    entries = [_entry(record, files) for record in records]
    notes = [*notes, *([f"{table.name}: not used are the columns {_listed(others)}"] if others else ())]
    entries = _different(entries, [record.where for record in records], table)
    return files.captions(entries, notes, [_absolute(table), *TABLE_NAMES])


def _with_synthetic(found: Captions, files: VideoFiles, table: AnyPath) -> Captions:
    """The entries with the captions that a model wrote beside them."""
    entries = {entry.file: entry for entry in found.entries}
    records = list(read_table(table, columns=COLUMNS, needs="file", error=DataError))
    written = _different([_entry(record, files) for record in records], [record.where for record in records], table)
    for new in written:
        old = entries.get(new.file, Entry(file=new.file, captions=("",)))
        if new.captioned:
            first = old.captions if old.captioned else ()
            more = {"captions": first + new.captions, "synthetic": len(new.captions)}
            entries[new.file] = dataclasses.replace(old, **more)
    count = sum(entry.synthetic > 0 for entry in entries.values())
    notes = [*found.notes, f"{table.name}: synthetic captions of {count} videos are read too"]
    unnamed = [name for name in found.unnamed if name not in entries]
    return dataclasses.replace(found, entries=list(entries.values()), unnamed=unnamed, notes=notes)


def _from_lists(files: VideoFiles, videos: AnyPath, prompts: AnyPath, notes: Sequence[str] = ()) -> Captions:
    texts, names = (read_lines(path, error=DataError, empty=True) for path in (prompts, videos))
    if len(texts) != len(names):
        raise DataError(f"{videos} has {len(names)} lines and {prompts} has {len(texts)}: line k of one belongs to "
                        "line k of the other, so give them the same number")
    wheres = [f"{videos}, line {number}" for number, _ in names]
    nameless = next((where for where, (_, name) in zip(wheres, names) if not name), None)
    if nameless is not None:
        raise DataError(f"{nameless}: is empty: each line must name the video of the same line in {prompts.name}")
    entries = [Entry(file=files.find(name, where), captions=(text,))
               for where, (_, name), (_, text) in zip(wheres, names, texts)]
    return files.captions(_different(entries, wheres, videos), notes, [_absolute(videos), _absolute(prompts)])


def _beside(files: VideoFiles) -> Captions:
    entries, several, used = [], 0, set()
    for name in files.videos:
        text = files.text_of(name)
        lines = [] if text is None else [line for _, line in read_lines(files.paths[text], error=DataError)]
        several += len(lines) > 1
        used.add(text or "")
        entries.append(Entry(file=name, captions=tuple(lines) or ("",)))
    if not entries:
        raise DataError(f"{files.folder} has no video files ({', '.join(SUFFIXES)}) and no captions file")
    idle = [name for name in files.paths if name.lower().endswith(".txt") and name not in used]
    notes = []
    if several:
        notes.append(f"{several} .txt with several lines: each line is a caption of its own")
    if idle:
        notes.append(f"{len(idle)} .txt with no video of the same name: {_listed(idle)}")
    return files.captions(entries, notes, [*used, *idle])


def _entry(record: Record, files: VideoFiles) -> Entry:
    """{"file", "caption" and/or "captions", "detailed", "label"} -> Entry."""
    fields, where = record.fields, record.where
    file = fields.get("file")
    if not isinstance(file, str) or not file.strip():
        raise DataError(f'{where}: give "file" and "caption" (or "captions", a list)')
    listed = fields.get("captions")
    listed = listed if isinstance(listed, list) else [listed]
    captions = [fields.get("caption"), *listed, fields.get("detailed")]
    captions = [caption for caption in captions if caption not in (None, "")]
    wrong = next((caption for caption in captions if not isinstance(caption, str)), None)
    if wrong is not None:
        raise DataError(f"{where}: captions must be text, got {_listed([wrong])}")
    texts = tuple(text for caption in captions if (text := caption.strip()))
    synthetic = len(texts) if _synthetic([record]) else 0
    label = _label(fields.get("label"), where)
    return Entry(file=files.find(file, where), captions=texts or ("",), label=label, synthetic=synthetic)


def _synthetic(records: Sequence[Record]) -> bool:
    """Whether `vdit caption` wrote these records."""
    return all(isinstance(record.fields.get(PROVENANCE), dict) for record in records)


def _label(value: Any, where: str) -> int:
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        return 0
    whole = text.lstrip("+-").isdecimal() and len(text) < 20 if isinstance(text, str) else type(text) is int
    if not whole or not 0 <= int(text) < 2**31:
        raise DataError(f"{where}: label is {_listed([value])}, give a whole number from 0 up")
    return int(text)


def _different(entries: list[Entry], wheres: list[str], source: AnyPath) -> list[Entry]:
    if not entries:
        raise DataError(f"captions file {source} is empty: name a video in it, or remove it")
    seen: set[str] = set()
    for entry, where in zip(entries, wheres):
        if entry.file in seen:
            raise DataError(f"{where}: names {entry.file!r} twice: keep one, with several captions as a list under "
                            "'captions'")
        seen.add(entry.file)
    return entries


def _absolute(path: AnyPath) -> AnyPath:
    return path.absolute() if isinstance(path, Path) else path


def plain_name(name: str, folder: AnyPath) -> str:
    """A name of a file in a folder without what may be left out: "./", "a/..", the folder itself."""
    if not isinstance(folder, Path):
        name = name.removeprefix(f"{folder}/")
    elif os.path.isabs(name) and Path(name).is_relative_to(folder.absolute()):
        name = os.path.relpath(name, folder.absolute())
    return os.path.normpath(name) if name else name


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _plain_stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _stem(name: str) -> str:
    return _composed(_plain_stem(name))


def _listed(values: Any, most: int = 8) -> str:
    return listed((literal(value, 60) for value in values), most)
