"""One self-contained HTML page that reports a run: videos, curves, tables, commands.

    page = Page("quickstart")
    page.text("Trained on **2 cores**.").curves({"loss": (steps, losses)}, title="loss", log_y=True)
    page.videos([(frames, "a red circle", "ok")], fps=8).save("report.html")

All videos of a page play in step, under one bar with play, pause, step, speed and a slider. Each video can be saved.
Without scripts the videos keep the browser's own controls. The file loads nothing from outside, so it can be mailed and
opened offline. The template escapes every text that is passed in.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib.resources
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from vdit.errors import ShapeError, VditError, reason
from vdit.eval.histogram import svg_histogram
from vdit.outputs import write_whole
from vdit.video.write import encode_bytes

SMALL = 160  # pixels of the longer side below which pixels are shown as squares, not blurred
_LEAST, _GAP = 150, 14  # CSS pixels: the narrowest card of one video, and the gap between cards

Badge = Literal["ok", "wrong"]
Curve = tuple[Sequence[float], Sequence[float]]
# Curve i has colour i modulo this number, counted from zero: page.css defines it as --c0, --c1, ...
COLOURS = 6
# matplotlib writes these colours. The page replaces them by its own, which follow the reader's light or dark setting.
_AXES, _GRID = "#abcdef", "#abcdee"
_VARIABLES = {f"#abcd0{i}": f"var(--c{i})" for i in range(COLOURS)} | {_AXES: "var(--soft)", _GRID: "var(--line)"}
_LIMIT = 1e100  # of values: larger ones are drawn at it, as matplotlib's margins overflow
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vdit",  # the same curves give the same bytes
    "path.simplify_threshold": 0.5,  # pixels; long curves are thinned, and keep their spikes
    "axes.edgecolor": _AXES,
    "axes.labelcolor": _AXES,
    "xtick.color": _AXES,
    "ytick.color": _AXES,
    "grid.color": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
    "ytick.minor.left": False,
    "font.size": 9,
}




class Page:
    """Collects sections in the order of the calls. Every method but `html` and `save` returns the page itself.

    Args:
        title: heading of the page, and the title of its window.
        subtitle: one line under the heading.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._parts: list[tuple[str, dict[str, Any]]] = []
        self._count = 0  # of videos: gives each a file name of its own

    def text(self, text: str) -> Self:
        """Add light markdown: `# ` headings, `- ` lists, blank lines between paragraphs, **bold**, `code`."""
        return self._add("text", html=_markdown(text))

    def figures(self, figures: Mapping[str, Any]) -> Self:
        """Add a row of large numbers: label -> value (a string, or a number shown to 4 digits)."""
        return self._add("figures", figures=list(figures.items()))

    def videos(
        self,
        videos: Iterable[tuple[np.ndarray, str] | tuple[np.ndarray, str, Badge | None]],
        fps: float,
        *,
        title: str = "",
        columns: int | None = None,
    ) -> Self:
        """Add a grid of videos that play muted in a loop, all in step.

        Args:
            videos: (frames [t h w 3] uint8 or float in [-1, 1], caption), or with a badge "ok" or "wrong" as third.
                One frame is shown as an image.
            fps: frames a second.
            title: heading of the grid.
            columns: at most this many a row, fewer where the window is narrow. None: as many as fit.

        Raises:
            ShapeError: frames of another shape, or that are not finite.
        """
        rows = (((("", frames),), caption, *badge) for frames, caption, *badge in videos)
        return self._cards(rows, fps, title, columns, least=_LEAST)

    def compare(
        self,
        rows: Iterable[tuple[Mapping[str, np.ndarray], str] | tuple[Mapping[str, np.ndarray], str, Badge | None]],
        fps: float,
        *,
        title: str = "",
        columns: int | None = None,
    ) -> Self:
        """Add a grid of cards, each with several videos side by side under one caption, as a sample beside the truth.

        Args:
            rows: (name -> frames, caption), or with a badge as third. All else is as in `videos`.
        """
        rows = [(tuple(videos.items()), caption, *badge) for videos, caption, *badge in rows]
        widest = max((len(videos) for videos, *_ in rows), default=1)
        return self._cards(rows, fps, title, columns, least=(_LEAST + _LEAST * widest) // 2)

    def curves(
        self,
        curves: Mapping[str, Curve],
        title: str = "",
        *,
        log_y: bool = False,
        x_label: str = "step",
        y_label: str = "",
    ) -> Self:
        """Add a plot of named curves (see `svg_curves`). Consecutive plots stand side by side where there is room."""
        svg = svg_curves(curves, log_y=log_y, x_label=x_label, y_label=y_label)
        return self._add("curves", title=title, svg=_safe(svg), names=list(curves), colours=COLOURS)

    def histogram(
        self, counts: np.ndarray, edges: np.ndarray, title: str, *, lines: Mapping[str, float], x_label: str = "",
        y_label: str = ""
    ) -> Self:  # fmt: skip
        """Add a histogram (see `svg_histogram`), with named upright lines. It stands beside plots that follow it."""
        svg = svg_histogram(counts, edges, lines=list(lines.values()), x_label=x_label, y_label=y_label)
        return self._add("curves", title=title, svg=_safe(svg), names=[y_label, *lines], colours=COLOURS)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "") -> Self:
        """Add a table. Numbers are shown to 4 digits and aligned to the right."""
        rows = [list(row) for row in rows]
        for row in rows:
            if len(row) != len(headers):
                raise VditError(f"a table row has {len(row)} cells, its header {len(headers)}: {row!r:.80}")
        return self._add("table", headers=[str(header) for header in headers], rows=rows, title=title)

    def commands(self, commands: Iterable[str], *, title: str = "") -> Self:
        """Add commands to copy, each in a block of its own."""
        return self._add("commands", commands=list(commands), title=title)

    def html(self) -> str:
        """Render the whole page.

        Returns:
            The HTML document as text. It has no reference to anything outside itself.
        """
        # Plots that follow each other share a row.
        runs = itertools.groupby(self._parts, key=lambda part: part[0])
        playing = any(kind == "cards" for kind, _ in self._parts)
        return _template().render(
            title=self.title,
            subtitle=self.subtitle,
            style=_safe(_resource("page.css")),
            script=_safe(_resource("page.js")) if playing else None,
            sections=[(kind, [part for _, part in parts]) for kind, parts in runs],
        )

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all, and create its folder.

        Returns:
            The path.

        Raises:
            VditError: the file cannot be written.
        """
        path = Path(path)
        text = self.html()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors="replace"), replace=True)
        except OSError as error:
            raise VditError(f"{path}: cannot write the page: {reason(error)}") from None
        return path

    def _cards(self, rows: Iterable[tuple], fps: float, title: str, columns: int | None, *, least: int) -> Self:
        """Cards of at least `least` CSS pixels, at most `columns` of them a row."""
        cards = [self._card(fps, *row) for row in rows]
        width = f"max({least}px,(100% - {_GAP * (columns - 1)}px)/{columns})" if columns else f"{least}px"
        return self._add("cards", cards=cards, title=title, width=width, gap=_GAP)

    def _card(
        self, fps: float, videos: Sequence[tuple[str, np.ndarray]], caption: str, badge: Badge | None = None
    ) -> dict[str, Any]:
        if badge not in (None, "ok", "wrong"):
            raise VditError(f"badge {badge!r} is unknown: use 'ok', 'wrong' or None")
        media = []
        for name, frames in videos:
            self._count += 1
            file = "-".join(filter(None, (f"{self._count:03}", slug(caption), slug(name))))
            media.append(_media(np.asarray(frames), fps) | {"name": name, "file": file})
        return {"media": media, "caption": caption, "badge": badge}

    def _add(self, kind: str, **part: Any) -> Self:
        self._parts.append((kind, part))
        return self


def slug(text: str, longest: int = 48) -> str:
    """"A red circle!" -> "a-red-circle": a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].strip("-")


def svg_curves(
    curves: Mapping[str, Curve], *, x_label: str = "step", y_label: str = "", log_y: bool = False
) -> str:
    """Draw named curves into one axis.

    Args:
        curves: name -> (xs, ys), as many of both. Values that are not finite (or not positive, on a log scale) are
            gaps in the curve.
        x_label: text under the horizontal axis.
        y_label: text beside the vertical axis.
        log_y: whether the vertical axis is logarithmic.

    Returns:
        An `<svg>` element for an HTML page; "" if there is no value to draw.

    Raises:
        ShapeError: a curve has another number of xs than of ys.
    """
    cleaned = [_clean(xs, ys, log_y) for xs, ys in curves.values()]
    if not any(np.isfinite(y).any() for _, y in cleaned):
        return ""
    # Imported here, as matplotlib takes half a second and only pages draw.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if _decades(cleaned) < 2 else (1,)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=_whole(cleaned)))
        for i, (x, y) in enumerate(cleaned):
            style = {"color": f"#abcd0{i % COLOURS}", "clip_on": False}
            axes.plot(x, y, linewidth=1.3, gid=f"curve{i}", **style)
            single = _single(y)
            axes.plot(x[single], y[single], linestyle="none", marker="o", markersize=4, gid=f"dots{i}", **style)
        for gridline in axes.get_ygridlines():
            gridline.set_clip_on(False)
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel(y_label, parse_math=False)
        return _inline(figure, list(curves))


def _inline(figure, names: list[str]) -> str:
    """The figure as an element of an HTML page: no XML header, no links, colours as variables of the page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"|\sversion="[^"]*"', "", svg)
    # Ids of two plots of a page must differ. Those of marks (m...) are sums of what they stand for, and are kept.
    svg = re.sub(r'<g id="(curve\d+|dots\d+)">', r'<g class="\1">', svg)
    svg = re.sub(r'\sid="(?!m[0-9a-f]{10}")[^"]*"', "", svg)
    for i, name in enumerate(names):
        svg = svg.replace(f'<g class="curve{i}">', f'<g class="curve{i}"><title>{html.escape(name)}</title>')
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(", ".join(names))}"', 1).strip()


def _clean(xs: Sequence[float], ys: Sequence[float], log_y: bool) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n] each: x finite, y finite or NaN."""
    x, y = np.asarray(xs, float).ravel(), np.asarray(ys, float).ravel()
    if x.shape != y.shape:
        raise ShapeError(f"a curve has {len(x)} xs and {len(y)} ys: it needs as many of both")
    drawable = np.isfinite(y) & (y > 0) if log_y else np.isfinite(y)
    kept, low = np.isfinite(x), 1 / _LIMIT if log_y else -_LIMIT
    return np.clip(x[kept], -_LIMIT, _LIMIT), np.clip(np.where(drawable, y, np.nan)[kept], low, _LIMIT)


def _single(y: np.ndarray) -> np.ndarray:
    """Which points of y [n] stand between two gaps, where no line would show them: bool [n]."""
    finite = np.isfinite(y)
    return finite & ~np.append(False, finite[:-1]) & ~np.append(finite[1:], False)


def _decades(curves: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """How many powers of ten the positive ys span."""
    logs = np.log10(np.concatenate([y[np.isfinite(y)] for _, y in curves]))
    return float(logs.max() - logs.min())


def _whole(curves: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether all xs are whole numbers, as steps are."""
    return all((x == np.round(x)).all() for x, _ in curves)


@functools.cache
def _template():
    """The template of a page; every value in it is escaped unless `_safe` marked it."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    environment.tests["numeric"] = _is_number
    return environment.from_string(_resource("page.html"))


def _resource(name: str) -> str:
    return importlib.resources.files("vdit.eval").joinpath(name).read_text(encoding="utf-8")


def _safe(text: str):
    """Text that is HTML already: made in this file, every value in it escaped."""
    from markupsafe import Markup

    return Markup(text)


def _media(frames: np.ndarray, fps: float) -> dict[str, Any]:
    """What the template shows of one video [t h w 3]: its size in CSS pixels, and its bytes as a data URL."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ShapeError(f"frames of shape {frames.shape} cannot be shown: they must be [t h w 3]")
    count, height, width, _ = frames.shape
    small = max(height, width) < SMALL
    pixels = _for_browsers(_as_uint8(frames), small)
    kind = "image/png" if count == 1 else "video/mp4"
    data = _png(pixels[0]) if count == 1 else encode_bytes(pixels, fps, format="mp4")
    src = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return {"frames": count, "fps": f"{fps:g}", "width": width, "height": height, "small": small, "src": src}


def _for_browsers(frames: np.ndarray, small: bool) -> np.ndarray:
    """Frames [t h w 3] of even size, as every browser's H.264 needs.

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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if _is_number(value):
        return f"{value:,}"
    return "" if value is None else str(value)


@functools.cache
def _markdown_parser():
    from markdown_it import MarkdownIt

    # "zero" knows paragraphs alone: no links, no images, no HTML.
    parser = MarkdownIt("zero").enable(["heading", "list", "emphasis", "backticks", "newline"])
    parser.add_render_rule("softbreak", lambda *_: " ")
    # Only ** marks: single stars and underscores stay as they are, as in 2*v5p:4x4x4.
    for mark in ("em_open", "em_close"):
        parser.add_render_rule(mark, lambda self, tokens, index, *_: tokens[index].markup)
    return parser


def _markdown(text: str):
    """HTML of light markdown. Headings are one level lower, as the page's title is the only h1."""
    parser = _markdown_parser()
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 4)}"
    return _safe(parser.renderer.render(tokens, parser.options, {}))
