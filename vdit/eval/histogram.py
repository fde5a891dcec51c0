"""A histogram as an `<svg>` element: drawn in a millisecond, where a page has dozens and is made again and again."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

_SIZE = (403.0, 190.0)  # of the drawing, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 8.0, 34.0  # of the axes, from its edges


def svg_histogram(
    counts: np.ndarray, edges: np.ndarray, *, lines: Sequence[float] = (), x_label: str = "", y_label: str = ""
) -> str:
    """Draw counts as bars.

    Args:
        counts: [n], 0 or more.
        edges: [n+1] of the bars, rising.
        lines: values that are marked by an upright line. They have the page's second, third... colour.
        x_label: text under the horizontal axis.
        y_label: text beside the vertical axis.

    Returns:
        An `<svg>` element. Its colours are variables of page.css.
    """
    width, height = _SIZE
    low, high = min([float(edges[0]), *lines]), max([float(edges[-1]), *lines])
    steps = _ticks(0.0, max(1.0, float(np.max(counts))), 4)
    top = steps[-1] if steps[-1] >= counts.max() else float(counts.max())
    across = lambda x: _LEFT + (x - low) / ((high - low) or 1.0) * (width - _LEFT - _RIGHT)  # noqa: E731
    up = lambda y: height - _BOTTOM - y / top * (height - _TOP - _BOTTOM)  # noqa: E731
    base, parts = up(0.0), []
    for value in steps:
        parts.append(f'<path d="M{_LEFT} {up(value):.1f}H{width - _RIGHT}" stroke="var(--line)" stroke-width="0.8"/>'
                     f'<text x="{_LEFT - 5}" y="{up(value) + 3:.1f}" text-anchor="end">{value:g}</text>')  # fmt: skip
    for value in _ticks(low, high, 6):
        x = f"{across(value):.1f}"
        parts.append(f'<path d="M{x} {base:.1f}v4" stroke="var(--soft)" stroke-width="0.8"/>'
                     f'<text x="{x}" y="{base + 13:.1f}" text-anchor="middle">{value:.6g}</text>')  # fmt: skip
    bars = "".join(f"M{across(a):.1f} {base:.1f}V{up(count):.1f}H{across(b):.1f}V{base:.1f}z"
                   for a, b, count in zip(edges[:-1], edges[1:], counts) if count)  # fmt: skip
    parts.append(f'<path d="{bars}" fill="var(--c0)" fill-opacity="0.75"/>')
    for k, value in enumerate(lines):
        parts.append(f'<path d="M{across(value):.1f} {_TOP}V{base:.1f}" stroke="var(--c{1 + k % 5})" '
                     f'stroke-width="1.6"><title>{value:g}</title></path>')  # fmt: skip
    middle = (_TOP + base) / 2
    parts.append(f'<text x="{(_LEFT + width - _RIGHT) / 2}" y="{height - 6}" text-anchor="middle">'
                 f'{html.escape(x_label)}</text><text x="10" y="{middle:.1f}" text-anchor="middle" '
                 f'transform="rotate(-90 10 {middle:.1f})">{html.escape(y_label)}</text>')  # fmt: skip
    return (f'<svg role="img" aria-label="{html.escape(x_label)}" viewBox="0 0 {width:g} {height:g}" fill="none">'
            f'{"".join(parts)}</svg>')  # fmt: skip


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * k for k in (1, 2, 5, 10) if span / (power * k) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]
