"""Whether a container's own structure says that the file goes on past its end.

Only the outermost layer is read, in a few seeks: boxes of MP4 and MOV, the segment of Matroska and
WebM, blocks of GIF. It finds the cut files whose duration was written nowhere, or only in the part
that is gone.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO


def cut_short(path: str | Path | bytes) -> str | None:
    """The reason why the file is known to be cut, or None."""
    with io.BytesIO(path) if isinstance(path, bytes) else open(path, "rb") as file:
        total = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(12)
        file.seek(0)
        if head[:4] == b"\x1aE\xdf\xa3":
            return _matroska(file, total)
        if head[:3] == b"GIF":
            return _gif(file)
        if head[4:8] in (b"ftyp", b"moov", b"moof", b"mdat", b"styp", b"wide", b"free", b"skip"):
            return _mp4(file, total)
    return None


def _mp4(file: BinaryIO, total: int) -> str | None:
    start = 0
    while start < total:
        file.seek(start)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size == 0:  # "to the end of the file"
            return None
        if size < 8 or start + size > total:
            return f"its last box would end at byte {start + size} of {total}"
        start += size
    return None


def _matroska(file: BinaryIO, total: int) -> str | None:
    while file.tell() < total:
        ident = _element_number(file, keep_marker=True)
        size = _element_number(file, keep_marker=False)
        if size is None:
            continue  # live recordings leave segments and clusters open: their parts tell
        if file.tell() + size > total:
            return f"its last element would end at byte {file.tell() + size} of {total}"
        if ident == 0x18538067:  # what may follow the segment matters no more
            return None
        file.seek(size, io.SEEK_CUR)
    return None


def _element_number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """A variable-length number; None where it is "unknown" (live recordings) or unreadable."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big")
    if keep_marker:
        return value
    value &= (1 << 7 * length) - 1
    return None if value == (1 << 7 * length) - 1 else value


def _gif(file: BinaryIO) -> str | None:
    cut = "it ends inside its blocks"
    screen = file.read(13)
    if len(screen) < 13:
        return cut
    _skip_palette(file, screen[10])
    while kind := file.read(1):
        if kind == b";":
            return None
        if kind == b",":
            image = file.read(9)
            if len(image) < 9:
                return cut
            _skip_palette(file, image[8])
            file.read(1)
        elif kind == b"!":
            file.read(1)
        else:  # rubbish between blocks: browsers stop here as well
            return None
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], io.SEEK_CUR)
    return cut


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, io.SEEK_CUR)
