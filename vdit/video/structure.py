"""What a file's own bytes say before a decoder sees them: that it goes on past its end, that it is a playlist.

Only the outermost layer is read, in a few seeks: boxes of MP4 and MOV, the segment of Matroska and
WebM, blocks of GIF. It finds the cut files whose duration was written nowhere, or only in the part
that is gone. Bytes that follow the last box and are no box (some cameras and servers add such) do not
count as a cut.
"""

from __future__ import annotations

import io
import re
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


def names_other_files(file: BinaryIO) -> str | None:
    """The kind of playlist that a file's beginning shows, or None. Leaves the file at its beginning."""
    head = file.read(4096)
    file.seek(0)
    for encoding in ("utf-16-le", "utf-16-be"):
        if head.startswith("\ufeff".encode(encoding)):
            head = head.decode(encoding, "replace").encode()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for kind, pattern in _PLAYLISTS:
        if re.match(pattern, text, re.DOTALL):
            return kind
    return None


# Of what FFmpeg and players follow. Text that no pattern finds is no video either, and is refused as that.
_PLAYLISTS = (
    ("M3U8", rb"#extm3u|#ext-x-"),
    ("ffconcat", rb"ffconcat version|file\s+\S"),
    ("SDP", rb"v=0\s+\w="),
    ("PLS", rb"\[(playlist|reference)\]"),
    ("RTSP", rb"rtsptext|rtsp://|smil"),
    ("DASH", rb"(<\?xml.{0,2000}?|<!--.{0,2000}?)?<(\w+:)?mpd[\s>]"),
    ("XML", rb"(<\?xml.{0,2000}?|<!--.{0,2000}?)?<(asx|smil|playlist|smoothstreamingmedia|manifest|assetmap|"
            rb"compositionplaylist)[\s>]"),
)  # fmt: skip


# Boxes that may stand outermost in a fragmented or plain MP4; more exist, but not at the end of a recording.
_BOXES = {
    b"ftyp", b"moov", b"moof", b"mdat", b"styp", b"sidx", b"ssix", b"mfra", b"emsg", b"prft", b"free", b"skip", b"wide",
    b"uuid", b"meta", b"udta", b"pnot", b"pdin",
}  # fmt: skip


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
            begins_box = len(head) > 4 and any(kind.startswith(head[4:8]) for kind in _BOXES)
            return f"its last box would end at byte {start + size} of {total}" if begins_box else None
        start += size
    return None


# Elements of a Matroska file's outer layers: header, segment, what a segment holds, what a cluster holds.
_ELEMENTS = {
    0x1A45DFA3, 0x18538067, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1F43B675, 0x1C53BB6B, 0x1941A469, 0x1043A770,
    0x1254C367, 0xEC, 0xBF, 0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0xAF, 0x5854,
}  # fmt: skip


def _matroska(file: BinaryIO, total: int) -> str | None:
    while file.tell() < total:
        ident = _element_number(file, keep_marker=True)
        if ident not in _ELEMENTS:
            return None  # bytes behind the last element
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
