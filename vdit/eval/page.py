"""One self-contained HTML page that reports a run: videos, curves, tables, commands.

    page = Page("quickstart")
    page.text("Trained on **2 cores**.").curves({"loss": (steps, losses)}, title="loss", log_y=True)
    page.videos([(frames, "a red circle", "ok")], fps=8).save("report.html")

All videos of a page play in step, under one bar with play, pause, step, speed and a slider; each can be saved. Without
scripts they keep the browser's own controls. The file asks for nothing from outside: it can be mailed and opened
offline. Every text that is passed in is escaped.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from vdit.errors import ShapeError, VditError, reason
from vdit.eval.player import BAR, SCRIPT
from vdit.eval.plot import Curve, svg_curves
from vdit.eval.style import STYLE
from vdit.outputs import write_whole
from vdit.video.write import encode_bytes

SMALL = 160  # pixels of the longer side below which pixels are shown as squares, not blurred
PLOT = '<figure class="plot">'
_LEAST, _GAP = 150, 14  # CSS pixels: the narrowest card of one video, and what lies between cards

Badge = Literal["ok", "wrong"]


class Page:
    """Collects sections in the order of the calls; every method but `html` returns the page itself."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._parts: list[str] = []
        self._count = 0  # of videos, which gives each a name of its own
        self._playing = False

    def text(self, text: str) -> Self:
        """Light markdown: `# ` headings, `- ` lists, blank lines between paragraphs, **bold**, `code`."""
        return self._add(_markdown(text))

    def figures(self, figures: Mapping[str, Any]) -> Self:
        """A row of large numbers, label -> value (a string, or a number shown to 4 digits)."""
        tiles = (f"<div><b>{_cell(v)}</b><span>{escape(label)}</span></div>" for label, v in figures.items())
        return self._add(f'<div class="figures">{"".join(tiles)}</div>')

    def videos(
        self,
        videos: Iterable[tuple[np.ndarray, str] | tuple[np.ndarray, str, Badge | None]],
        fps: float,
        *,
        title: str = "",
        columns: int | None = None,
    ) -> Self:
        """A grid of videos that play muted in a loop, all in step.

        Args:
            videos: (frames [t h w 3] uint8 or float in [-1, 1], caption), or with a badge "ok" or "wrong" as third.
                One frame is shown as an image.
            fps: frames a second.
            columns: at most that many a row, fewer where the window is narrow; None fits as many as it is wide.
        """
        rows = (((("", frames),), caption, *badge) for frames, caption, *badge in videos)
        return self._grid(rows, fps, title, columns, least=_LEAST)

    def compare(
        self,
        rows: Iterable[tuple[Mapping[str, np.ndarray], str] | tuple[Mapping[str, np.ndarray], str, Badge | None]],
        fps: float,
        *,
        title: str = "",
        columns: int | None = None,
    ) -> Self:
        """A grid of cards, each with several videos side by side under one caption, as a sample beside the truth.

        Args:
            rows: (name -> frames, caption), or with a badge as third; otherwise as in `videos`.
        """
        rows = [(tuple(videos.items()), caption, *badge) for videos, caption, *badge in rows]
        widest = max((len(videos) for videos, *_ in rows), default=1)
        return self._grid(rows, fps, title, columns, least=(_LEAST + _LEAST * widest) // 2)

    def _grid(self, rows: Iterable[tuple], fps: float, title: str, columns: int | None, *, least: int) -> Self:
        """Cards of at least `least` CSS pixels, at most `columns` of them a row."""
        cards = "".join(self._card(fps, *row) for row in rows)
        width = f"max({least}px,(100% - {_GAP * (columns - 1)}px)/{columns})" if columns else f"{least}px"
        style = f'style="grid-template-columns:repeat(auto-fill,minmax(min(100%,{width}),1fr));column-gap:{_GAP}px"'
        self._playing = True
        return self._add(f'{_heading(title)}<div class="videos" {style}>{cards}</div>')

    def _card(
        self, fps: float, videos: Sequence[tuple[str, np.ndarray]], caption: str, badge: Badge | None = None
    ) -> str:
        if badge not in (None, "ok", "wrong"):
            raise VditError(f"badge {badge!r} is unknown: use 'ok', 'wrong' or None")
        media = []
        for name, frames in videos:
            self._count += 1
            stem = "-".join(filter(None, (f"{self._count:03}", slug(caption), slug(name))))
            label = f"<span>{escape(name)}</span>" if name else ""
            save = f'<a class="save" download="{stem}" title="save this file">save</a>'
            shown = _media(np.asarray(frames), fps)
            media.append(f'<div class="one">{shown}<div class="under">{label}{save}</div></div>')
        mark = f'<span class="badge {badge}">{badge}</span> ' if badge else ""
        caption = f"<figcaption>{mark}{escape(caption)}</figcaption>"
        return f'<figure><div class="pair">{"".join(media)}</div>{caption}</figure>'

    def curves(
        self,
        curves: Mapping[str, Curve],
        title: str = "",
        *,
        log_y: bool = False,
        x_label: str = "step",
        y_label: str = "",
    ) -> Self:
        """A plot of named curves (xs, ys); consecutive plots stand side by side where there is room."""
        plot = svg_curves(curves, log_y=log_y, x_label=x_label, y_label=y_label)
        caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
        return self._add(f"{PLOT}{caption}{plot}</figure>")

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> Self:
        """A table; numbers are shown to 4 digits and aligned to the right."""
        head = "".join(f"<th>{escape(str(header))}</th>" for header in headers)
        body = "".join(_row(row, len(headers)) for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return self._add(f'{_heading(title)}<div class="scroll">{table}</div>')

    def commands(self, commands: Iterable[str], *, title: str = "") -> Self:
        """Commands to copy, each in a block of its own."""
        blocks = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in commands)
        return self._add(_heading(title) + blocks)

    def html(self) -> str:
        """The whole page as text."""
        subtitle = f'<p class="note">{escape(self.subtitle)}</p>' if self.subtitle else ""
        # Plots that follow each other share a row.
        runs = itertools.groupby(self._parts, key=lambda part: part.startswith(PLOT))
        body = "\n".join(
            f'<div class="plots">{"".join(parts)}</div>' if are_plots else "\n".join(parts)
            for are_plots, parts in runs
        )
        player = f"{BAR}\n<script>{SCRIPT}</script>\n" if self._playing else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n<h1>{escape(self.title)}</h1>\n{subtitle}\n{body}\n</main>\n{player}</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Writes the page, whole or not at all; makes the folder."""
        path = Path(path)
        text = self.html()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors="replace"), replace=True)
        except OSError as error:
            raise VditError(f"{path}: cannot write the page: {reason(error)}") from None
        return path

    def _add(self, part: str) -> Self:
        self._parts.append(part)
        return self


def slug(text: str, longest: int = 48) -> str:
    """"A red circle!" -> "a-red-circle": a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].strip("-")


def _media(frames: np.ndarray, fps: float) -> str:
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ShapeError(f"frames of shape {frames.shape} cannot be shown: they must be [t h w 3]")
    small = max(frames.shape[1:3]) < SMALL
    pixels = _for_browsers(_as_uint8(frames), small)
    size = f'width="{frames.shape[2]}" height="{frames.shape[1]}"' + (' class="small"' if small else "")
    if len(frames) == 1:
        return f'<img {size} alt="" src="data:image/png;base64,{_base64(_png(pixels[0]))}">'
    data = _base64(encode_bytes(pixels, fps, format="mp4"))
    count = f'data-frames="{len(frames)}" data-fps="{fps:g}"'
    return f'<video {size} {count} controls loop muted playsinline src="data:video/mp4;base64,{data}"></video>'


def _for_browsers(frames: np.ndarray, small: bool) -> np.ndarray:
    """Frames [t h w 3] of even size, as every browser's H.264 wants.

    Small ones are doubled: video halves the resolution of colour, which shows on small shapes.
    """
    if small:
        return frames.repeat(2, axis=1).repeat(2, axis=2)
    _, h, w, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")


def _as_uint8(frames: np.ndarray) -> np.ndarray:
    if frames.dtype == np.uint8:
        return frames
    frames = frames.astype(np.float32)
    if not np.isfinite(frames).all():
        raise ShapeError("frames with NaN or infinite values cannot be shown: they must be in [-1, 1]")
    return np.round((np.clip(frames, -1, 1) + 1) * 127.5).astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="png")
    return out.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _heading(title: str) -> str:
    return f"<h2>{escape(title)}</h2>" if title else ""


def _row(row: Sequence[Any], width: int) -> str:
    if len(row) != width:
        raise VditError(f"a table row has {len(row)} cells, its header {width}: {list(row)!r:.80}")
    cells = (f"<td{' class=number' if _is_number(cell) else ''}>{_cell(cell)}</td>" for cell in row)
    return f"<tr>{''.join(cells)}</tr>"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if _is_number(value):
        return f"{value:,}"
    return "" if value is None else escape(str(value))


def _markdown(text: str) -> str:
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines()]
        if len(lines) == 1 and (match := re.match(r"(#{1,3}) +(.*)", lines[0])):
            level = len(match[1]) + 1
            blocks.append(f"<h{level}>{_inline(match[2])}</h{level}>")
        elif all(line.startswith("- ") for line in lines):
            blocks.append(f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>")
        else:
            blocks.append(f"<p>{_inline(' '.join(lines))}</p>")
    return "".join(blocks)


def _inline(text: str) -> str:
    # Split at code first: marks inside it are literal.
    pieces = re.split(r"`([^`]+)`", text)
    marked = (re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(piece)) for piece in pieces[::2])
    codes = [f"<code>{escape(piece)}</code>" for piece in pieces[1::2]] + [""]
    return "".join(a + b for a, b in zip(marked, codes))
