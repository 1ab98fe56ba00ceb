"""Line charts as SVG text, for pages that open anywhere and print."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 12, 40
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Okabe and Ito's palette, told apart with any colour vision; series beyond eight are dashed."""
MOST_POINTS = 600  # of one line: more than there are pixels for


def line_chart(
    series: Mapping[str, Sequence[Point]],
    x: str,
    y: str,
    *,
    borders: Mapping[str, float] = {},
    marks: Sequence[float] = (),
    tick: Callable[[float], str] | None = None,
) -> str:
    """An SVG of lines over a common x axis, with a legend for more than one. Points that are not finite are left out.

    `borders`: {label: x} of upright lines, such as the starts of stages. `marks`: xs of small triangles, such as events.
    `tick`: how both axes write a value, `label` when None. Empty when there is no point.
    """
    written = tick or label
    lines = {name: thin([p for p in points if all(map(math.isfinite, p))]) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    every = [p for points in lines.values() for p in points]
    if not every:
        return ""
    (x0, x1), (y0, y1) = (_span([p[axis] for p in every]) for axis in (0, 1))

    def at(px: float, py: float) -> tuple[float, float]:
        across = LEFT + (px - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - (py - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    legend = len(lines) > 1
    height = HEIGHT + (20 * -(-len(lines) // 4) if legend else 0)
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(y)} by {escape(x)}">']
    for value in ticks(y0, y1):
        _, down = at(x0, value)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{down + 4}" text-anchor="end">{written(value)}</text>')
    for value in ticks(x0, x1):
        across, _ = at(value, y0)
        out.append(f'<text x="{across}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{written(value)}</text>')
    for name, value in borders.items():
        if x0 <= value <= x1:
            across, _ = at(value, y0)
            out.append(f'<line class="border" x1="{across}" x2="{across}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
            out.append(f'<text x="{across + 3}" y="{TOP + 10}">{escape(name)}</text>')
    for i, (name, points) in enumerate(sorted(lines.items())):
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="5 3"' if i >= len(COLOURS) else ""
        path = " ".join(f"{a},{b}" for a, b in (at(*p) for p in points))
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        if len(points) <= 40:
            out += [f'<circle cx="{a}" cy="{b}" r="2.4" fill="{colour}"/>' for a, b in (at(*p) for p in points)]
        if legend:
            across, down = LEFT + i % 4 * 160, HEIGHT + 12 + i // 4 * 20
            out.append(
                f'<line x1="{across}" x2="{across + 18}" y1="{down - 4}" y2="{down - 4}" stroke="{colour}" '
                f'stroke-width="3"{dash}/><text x="{across + 23}" y="{down}">{escape(name[:20])}</text>'
            )
    for value in marks:
        if x0 <= value <= x1:
            across, down = at(value, y0)
            out.append(f'<path class="mark" d="M{across},{down} l-4,8 h8 z"/>')
    out.append(f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text></svg>')
    return "".join(out)


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, each the mean of a stretch of as many neighbours; all of them where they are few."""
    if len(points) <= most:
        return list(points)
    out = []
    for i in range(most):
        part = points[i * len(points) // most : (i + 1) * len(points) // most]
        out.append((sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)))
    return out


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within [low, high], about `wanted` of them."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's number: 1.5M, 20k, 0.35, 1e-05."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:.6g}"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.1 or 1.0
        return low - room, high + room
    return low, high
