"""Curves as one inline SVG: axes, ticks, legend; no scripts, colours from the page's style sheet."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from vdit.errors import ShapeError

COLOURS = 6  # curve colours that the style sheet defines, as classes c0 ... c5
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
MAX_POINTS = 600  # a curve, about one for each pixel

Curve = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axis:
    """Maps values to pixels: low -> start, high -> end, on a linear or a log scale."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: float | np.ndarray) -> np.ndarray:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        values = np.log(values) if self.log else np.asarray(values, float)
        return self.start + (values - low) / (high - low) * (self.end - self.start)


def svg_curves(
    curves: Mapping[str, Curve], *, x_label: str = "step", y_label: str = "", log_y: bool = False
) -> str:
    """An <svg> of named curves (xs, ys), and its legend.

    Values that are not finite (or not positive, on a log scale) are gaps in the curve.
    """
    cleaned = {name: _clean(xs, ys, log_y) for name, (xs, ys) in curves.items()}
    drawn = [(x, y) for x, y in cleaned.values() if np.isfinite(y).any()]
    if not drawn:
        return '<p class="note">no finite values to draw</p>'
    x_low, x_high = _span([x for x, _ in drawn])
    y_low, y_high = _span([y for _, y in drawn])
    x_ticks = [tick for tick in _linear_ticks(x_low, x_high, count=6) if x_low <= tick <= x_high]
    y_ticks = _log_ticks(y_low, y_high) if log_y else _linear_ticks(y_low, y_high, count=5)
    to_x = _Axis(low=x_low, high=x_high, start=LEFT, end=WIDTH - RIGHT)
    to_y = _Axis(low=y_ticks[0], high=y_ticks[-1], start=HEIGHT - BOTTOM, end=TOP, log=log_y)
    shapes = [
        _curve(name, f"c{i % COLOURS}", to_x(x), to_y(y)) for i, (name, (x, y)) in enumerate(cleaned.items())
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(curves))}">'
        f"{_frame(x_ticks, to_x, x_label, y_ticks, to_y, y_label)}{''.join(shapes)}</svg>"
        f"{_legend(list(curves))}"
    )


def _frame(
    x_ticks: list[float], to_x: _Axis, x_label: str, y_ticks: list[float], to_y: _Axis, y_label: str
) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y_ticks:
        y = to_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 7, y + 4, _label(tick), "end"))
    for tick in x_ticks:
        x = to_x(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(_text(x, bottom + 17, _label(tick)))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text((LEFT + right) / 2, HEIGHT - 5, x_label))
    if y_label:
        middle = (TOP + bottom) / 2
        parts.append(f'<g transform="rotate(-90 12 {middle})">{_text(12, middle, y_label)}</g>')
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _curve(name: str, colour: str, x: np.ndarray, y: np.ndarray) -> str:
    """A path broken at gaps; a point between two gaps, which no line would show, as a dot."""
    finite = np.isfinite(y)
    before, after = np.append(False, finite[:-1]), np.append(finite[1:], False)
    steps = (f"{'L' if before[i] else 'M'}{x[i]:.1f} {y[i]:.1f}" for i in np.flatnonzero(finite))
    dots = "".join(
        f'<circle class="dot {colour}" cx="{x[i]:.1f}" cy="{y[i]:.1f}" r="3"/>'
        for i in np.flatnonzero(finite & ~before & ~after)
    )
    return f'<path class="curve {colour}" d="{"".join(steps)}"><title>{escape(name)}</title></path>{dots}'


def _legend(names: list[str]) -> str:
    keys = (f'<span><i class="key c{i % COLOURS}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend">{"".join(keys)}</div>'


def _clean(xs: Sequence[float], ys: Sequence[float], log_y: bool) -> tuple[np.ndarray, np.ndarray]:
    """float [n] each: x finite, y finite or NaN; few enough points to draw."""
    x, y = np.asarray(xs, float).ravel(), np.asarray(ys, float).ravel()
    if x.shape != y.shape:
        raise ShapeError(f"a curve has {len(x)} xs and {len(y)} ys: it needs as many of both")
    drawable = np.isfinite(y) & (y > 0) if log_y else np.isfinite(y)
    return _thin(x[np.isfinite(x)], np.where(drawable, y, np.nan)[np.isfinite(x)])


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: the lowest and highest of each run of neighbours, so no spike is lost."""
    if len(x) <= MAX_POINTS:
        return x, y
    keep: set[int] = {0, len(x) - 1}
    for run in np.array_split(np.arange(len(x)), MAX_POINTS // 2 - 1):
        finite = run[np.isfinite(y[run])]
        if len(finite):
            keep |= {int(finite[np.argmin(y[finite])]), int(finite[np.argmax(y[finite])])}
        else:
            keep.add(int(run[0]))
    index = sorted(keep)
    return x[index], y[index]


def _span(arrays: list[np.ndarray]) -> tuple[float, float]:
    """The range of all finite values; widened where it is one value only, kept positive if that was."""
    low, high = (float(f(np.concatenate(arrays))) for f in (np.nanmin, np.nanmax))
    margin = 0.0 if high > low else abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers at equal steps that enclose [low, high], about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten over a short range, powers of ten over a long one; they enclose it."""
    bottom, top = math.log10(low), math.log10(high)
    steps = (1, 2, 5) if top - bottom < 2 else (1,)
    stride = max(1, math.ceil((top - bottom) / 6))
    # A hair lower, lest log10 rounds up to the power just above `low`.
    exponents = range(math.floor(bottom - 1e-9), math.ceil(top) + stride + 1, stride)
    ticks = [m * 10.0 ** min(e, 307) for e in exponents for m in steps]  # 1e308 is where floats end
    first = max(t for t in ticks if t <= low)
    last = min(t for t in ticks if t >= high and t > first)
    return sorted({t for t in ticks if first <= t <= last})


def _label(value: float) -> str:
    if 1000 <= abs(value) < 1e6 and value % 1000 == 0:
        return f"{value / 1000:g}k"
    return re.sub(r"e([+-])0*", lambda match: "e" + match[1].strip("+"), f"{value:.6g}")
