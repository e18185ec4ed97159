"""Drawings as inline SVG that keep their size of text at any width: bars, values with intervals, curves.

Places across are shares of the width in percent, places down are pixels, so a drawing needs no script and no scaling.
Colours are classes of report.css, which knows of light, dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

ROW, TRACK, AXIS = 44, 12, 26
"""Pixels: a row of bars or intervals, what is drawn in it below its words, and the axis under all rows."""
HEIGHT = 220
"""Pixels of a curve, without its axis."""


@dataclass(frozen=True)
class Mark:
    """A value by its name, and the interval [low, high] around it, where one is known. `kind` is a class of report.css:
    plain, small or engine."""

    name: str
    value: float
    said: str
    kind: str = "small"
    low: float | None = None
    high: float | None = None

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the largest that is drawn of it."""
        known = [self.value, *(end for end in (self.low, self.high) if end is not None)]
        return min(known), max(known)


@dataclass(frozen=True)
class Line:
    """A curve through `points` (x, y), of which `best` is marked."""

    points: Sequence[tuple[float, float]]
    best: tuple[float, float] | None = None


def bars(name: str, title: str, marks: Sequence[Mark]) -> Markup:
    """A bar a mark, from 0 on, its words above it; what lies between low and high is a thin line over it."""
    most = max((mark.reach[1] for mark in marks), default=0.0) or 1.0

    def bar(mark: Mark, top: int) -> Iterable[Markup]:
        yield _rect(0, mark.value / most, top, f"bar {mark.kind}")
        if mark.high is not None:
            yield _rule(mark.value / most, mark.high / most, top + TRACK // 2, "whisker")

    parts = [part for row, mark in enumerate(marks) for part in (_words(mark, row), *bar(mark, row * ROW + 20))]
    return _whole(name, title, marks, len(marks) * ROW, parts)


def intervals(name: str, title: str, marks: Sequence[Mark], unit: str, least: float, most: float) -> Markup:
    """A dot a mark on a line from low to high, on a scale from `least` to `most` with an axis of its own."""
    width = most - least or 1.0

    def across(value: float) -> float:
        return min(max((value - least) / width, 0.0), 1.0)

    bottom = len(marks) * ROW
    parts = [
        *(_grid(across(tick), bottom, f"{tick:g}{unit}", end=across(tick)) for tick in ticks(least, most)),
    ]
    for row, mark in enumerate(marks):
        middle, (low, high) = row * ROW + 26, mark.reach
        parts += [
            _words(mark, row),
            _rule(0, 1, middle, "track"),
            _rule(across(low), across(high), middle, f"interval {mark.kind}"),
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="5"/>').format(
                mark.kind, _share(across(mark.value)), middle
            ),
        ]
    return _whole(name, title, marks, bottom + AXIS, parts)


def curve(name: str, title: str, line: Line, across: str, said: str) -> Markup:
    """A line through its points, on scales of its own; `across` names the horizontal one, `said` is what it shows."""
    points = [point for point in line.points if all(map(math.isfinite, point))] or [(0.0, 0.0)]
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    (left, right), (low, high) = _bounds(xs), _bounds(ys)

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return 0.02 + 0.96 * (point[0] - left) / (right - left), 1 - (point[1] - low) / (high - low)

    parts = [
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0}" y2="{0}"/><text class="tick" x="0" y="{1}">{2}</text>'
        ).format(round(_down(place((left, tick))[1])), round(_down(place((left, tick))[1])) - 4, f"{tick:.4g}")
        for tick in ticks(low, high)
    ]
    for tick in ticks(left, right):
        parts.append(_grid(place((tick, low))[0], HEIGHT, f"{tick:g}", end=(tick - left) / (right - left)))
    path = " ".join(f"{100 * x:.2f},{100 * y:.2f}" for x, y in map(place, points))
    parts.append(
        Markup(
            '<svg y="12" width="100%" height="{}" viewBox="0 0 100 100" preserveAspectRatio="none" class="plane">'
            '<polyline class="line" points="{}"/></svg>'
        ).format(HEIGHT - 24, path)
    )
    for point in points if len(points) <= 40 else ():
        parts.append(_dot(*place(point), "dot small", 3))
    if line.best:
        parts.append(_dot(*place(line.best), "dot best", 6))
    parts.append(Markup('<text class="tick" x="50%" y="{}" text-anchor="middle">{}</text>').format(HEIGHT + 36, across))
    return _svg(name, title, said, HEIGHT + 42, parts)


def ticks(least: float, most: float, about: int = 4) -> list[float]:
    """Round numbers from `least` to `most`, about so many; none where nothing lies between."""
    if not 0 < most - least < math.inf:
        return []
    raw = (most - least) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(least / step - 1e-9)
    return [round(step * number, 12) for number in range(first, math.floor(most / step + 1e-9) + 1)]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest, apart."""
    least, most = min(values), max(values)
    return (least, most) if most > least else (least - 0.5 * abs(least or 1), most + 0.5 * abs(most or 1))


def _down(share: float) -> float:
    return 12 + share * (HEIGHT - 24)


def _dot(x: float, y: float, kind: str, radius: int) -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{:.1f}" r="{}"/>').format(kind, _share(x), _down(y), radius)


def _words(mark: Mark, row: int) -> Markup:
    """Its name on the left, its value on the right; what stands there in brackets goes where the screen is narrow."""
    value, bracket, more = mark.said.partition(" (")
    return Markup(
        '<text class="name" x="0" y="{0}">{1}</text>'
        '<text class="value" x="100%" y="{0}">{2}<tspan class="more">{3}</tspan></text>'
    ).format(row * ROW + 14, mark.name, value, bracket + more)


def _rect(left: float, right: float, top: int, kind: str) -> Markup:
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(
        kind, _share(left), top, _share(max(right - left, 0.004)), TRACK
    )


def _rule(left: float, right: float, height: int, kind: str) -> Markup:
    return Markup('<line class="{0}" x1="{1}" x2="{2}" y1="{3}" y2="{3}"/>').format(
        kind, _share(left), _share(right), height
    )


def _grid(across: float, bottom: int, words: str, end: float) -> Markup:
    """A thin line down, and what it stands for under it; at the edges the words stay inside."""
    anchor = "start" if end < 0.05 else "end" if end > 0.95 else "middle"
    return Markup(
        '<line class="grid" x1="{0}" x2="{0}" y1="0" y2="{1}"/>'
        '<text class="tick" x="{0}" y="{2}" text-anchor="{3}">{4}</text>'
    ).format(_share(across), bottom, bottom + 16, anchor, words)


def _share(value: float) -> str:
    return f"{100 * value:.2f}%"


def _whole(name: str, title: str, marks: Sequence[Mark], height: int, parts: Sequence[Markup]) -> Markup:
    return _svg(name, title, "; ".join(f"{mark.name}: {mark.said}" for mark in marks), height, parts)


def _svg(name: str, title: str, said: str, height: int, parts: Sequence[Markup]) -> Markup:
    """With a title and a description, which screen readers read in place of the marks."""
    return Markup(
        '<svg role="img" width="100%" height="{1}" aria-labelledby="{0}-title {0}-desc">'
        '<title id="{0}-title">{2}</title><desc id="{0}-desc">{3}</desc>{4}</svg>'
    ).format(escape(name), height, title, said, Markup("").join(parts))
