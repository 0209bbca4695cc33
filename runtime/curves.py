"""Curves over a common axis as one SVG element, on a logarithmic scale, without scripts or fonts of its own."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

_WIDTH, _HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 24, 40
# Okabe and Ito's colours, which colour-blind readers can tell apart; further curves are dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a")
_POINTS = 2000
"""Points of a curve at most: more than the pixels that show it."""


def curves(
    xs: Sequence[float], columns: Mapping[str, Sequence[float]], marks: Sequence[tuple[float, str]], x_name: str
) -> str:
    """Return an SVG of columns over ``xs``, with a legend, and vertical lines at ``marks`` with what they say.

    Values that are not positive or not finite leave a gap; without any that are, only the axes are drawn.
    """
    values = [value for column in columns.values() for value in column if _is_shown(value)]
    low, high = (math.log10(min(values)), math.log10(max(values))) if values else (0.0, 1.0)
    low, high = (low, high) if high - low > 1e-3 else (low - 0.5, high + 0.5)
    first, last = (min(xs), max(xs)) if xs else (0.0, 1.0)

    def x(value: float) -> float:
        share = (value - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - math.log10(value)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    tall = max(_HEIGHT, _TOP + 18 * (len(columns) + 1))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {tall}" width="{_WIDTH}" height="{tall}" '
        'role="img" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">',
        "<title>Loss by term</title>",
    ]
    for at in _ticks(low, high):
        parts.append(f'<path d="M{_LEFT} {y(at):.1f}H{right}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(at) + 4:.1f}" text-anchor="end">{at:.3g}</text>')
    for at, name in marks:
        parts.append(f'<path d="M{x(at):.1f} {_TOP}V{bottom}" stroke="currentColor" stroke-opacity=".3"/>')
        parts.append(f'<text x="{x(at) + 3:.1f}" y="{_TOP - 8}">{html.escape(name)}</text>')
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor"/>')
    for at in (first, last):
        parts.append(f'<text x="{x(at):.1f}" y="{bottom + 18}" text-anchor="middle">{at:g}</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">{html.escape(x_name)}</text>')
    for number, (name, column) in enumerate(columns.items()):
        dashed = ' stroke-dasharray="5 3"' if number >= len(_COLOURS) else ""
        pen = f'fill="none" stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-width="1.5"{dashed}'
        parts.append(f'<path d="{_path(xs, column, x, y)}" {pen}/>')
        top = _TOP + 8 + 18 * number
        parts.append(f'<path d="M{right + 16} {top}h22" {pen}/>')
        parts.append(f'<text x="{right + 44}" y="{top + 4}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _path(
    xs: Sequence[float], column: Sequence[float], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    step = max(1, len(xs) // _POINTS)
    found, drawing = [], False
    for at, value in list(zip(xs, column, strict=True))[::step]:
        if _is_shown(value):
            found.append(f"{'L' if drawing else 'M'}{x(at):.1f} {y(value):.1f}")
        drawing = _is_shown(value)
    return "".join(found)


def _is_shown(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _ticks(low: float, high: float) -> list[float]:
    """Return powers of ten between two logarithms; where that leaves fewer than two, halves and fifths as well."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    every = max(1, len(decades) // 8)
    whole = [10.0**power for power in decades[::every] if low <= power <= high]
    if len(whole) >= 2:
        return whole
    fine = [n * 10.0**power for power in decades for n in (1, 2, 5) if low <= math.log10(n) + power <= high]
    return fine if len(fine) >= 2 else [10.0**low, 10.0**high]
