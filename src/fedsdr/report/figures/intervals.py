"""Dots with their intervals, one row for each client, method or contrast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsdr.report.figures import axis
from fedsdr.report.figures.legend import Swatch, legend
from fedsdr.report.figures.measure import fitted, measured
from fedsdr.report.figures.svg import WIDTH, Figure, Table, element, frame, series, text
from fedsdr.text.numbers import plain

RIGHT = WIDTH - 14.0
ROW, MOST = 22.0, 180.0  # units of a label


@dataclass(frozen=True, slots=True)
class Dot:
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a dot for each kind, in the order of the kinds."""

    label: str
    dots: tuple[Dot, ...]


def intervals(
    name: str,
    title: str,
    reading: str,
    kinds: Sequence[str],
    entries: Sequence[Entry],
    x_label: str,
    span: str = "95 % interval",
    zero: bool = False,
    joined: bool = False,
    within: tuple[float, ...] = (),
    shown: Callable[[float | None], str] = plain,
) -> Figure:
    """`joined` draws a line from the first dot of a row to the last; `zero` one at 0."""
    values = [v for e in entries for d in e.dots for v in (d.value, d.low, d.high)]
    marks = axis.ticks(*axis.extent(values, *within, *((0.0,) if zero else ())))
    left = 16 + max((measured(fitted(e.label, MOST)) for e in entries), default=0.0)
    swatches = [Swatch(kind, *series(n)[:2], shape="dot") for n, kind in enumerate(kinds)]
    keys, high = legend(swatches if len(kinds) > 1 else [], 4, 2)
    top = 8 + high
    row = ROW if joined or len(kinds) == 1 else max(ROW, 9.0 * len(kinds) + 5)
    bottom = top + row * len(entries) + 4
    x = axis.Scale(marks[0], marks[-1], left + 6, RIGHT)
    parts = [*keys, *axis.horizontal(x, marks, bottom, top)]
    if zero:
        parts.append(axis.line(x(0.0), top, x(0.0), bottom, strong=True))
    for place, entry in enumerate(entries):
        y = top + row * (place + 0.5) + 2
        parts.append(text(left - 6, y + 4, fitted(entry.label, MOST), anchor="end", size=11))
        parts += _row(entry, kinds, x, y, joined, shown)
    parts.append(
        text((left + RIGHT) / 2, bottom + 34, x_label, anchor="middle", muted=True, size=11)
    )
    svg = frame(name, title, reading, bottom + 42, *parts)
    return Figure(name, title, reading, svg, _table(kinds, entries, span, shown))


def _row(
    entry: Entry,
    kinds: Sequence[str],
    x: axis.Scale,
    middle: float,
    joined: bool,
    shown: Callable[[float | None], str],
) -> list[Markup]:
    known = [dot.value for dot in entry.dots if _finite(dot.value)]
    parts = list[Markup]()
    if joined and len(known) > 1:
        first, last = known[0], known[-1]
        assert first is not None
        assert last is not None
        parts.append(
            element(
                "line", x1=x(first), y1=middle, x2=x(last), y2=middle, stroke="#b3bac4",
                stroke_width=3, stroke_linecap="round", class_="l other",
            )
        )  # fmt: skip
    for number, (kind, dot) in enumerate(zip(kinds, entry.dots, strict=False)):
        if dot.value is None or not _finite(dot.value):
            continue
        offset = 0.0 if joined else 9.0 * (number - (len(entry.dots) - 1) / 2)
        class_, colour, _ = series(number)
        tip = f"{entry.label} · {kind}: " if len(kinds) > 1 else f"{entry.label}: "
        tip += shown(dot.value)
        if dot.low is not None and dot.high is not None:
            tip += f" [{shown(dot.low)}, {shown(dot.high)}]"
            parts.append(
                element(
                    "line", x1=x(dot.low), y1=middle + offset, x2=x(dot.high), y2=middle + offset,
                    stroke=colour, stroke_width=2, stroke_linecap="round", class_=f"l {class_}",
                )
            )  # fmt: skip
        parts.append(
            element(
                "circle", cx=x(dot.value), cy=middle + offset, r=4.5, fill=colour,
                class_=f"f {class_} mark", data_tip=tip,
            )
        )  # fmt: skip
    return parts


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _table(
    kinds: Sequence[str],
    entries: Sequence[Entry],
    span: str,
    shown: Callable[[float | None], str],
) -> Table:
    spans = any(dot.low is not None for entry in entries for dot in entry.dots)
    header = [""]
    for kind in kinds:
        header += [kind, *([f"{kind}, {span}"] if spans else [])]
    rows = list[tuple[str, ...]]()
    for entry in entries:
        cells = [entry.label]
        for dot in entry.dots:
            cells.append(shown(dot.value))
            if spans:
                both = dot.low is not None and dot.high is not None
                cells.append(f"{shown(dot.low)} to {shown(dot.high)}" if both else "–")
        rows.append(tuple(cells))
    return Table(tuple(header), tuple(rows))
