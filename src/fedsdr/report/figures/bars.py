"""Bars from zero: upright over rounds or classes, lying for a few named things."""

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

RIGHT, PLOT = WIDTH - 12.0, 170.0
TABLE_ROWS = 400
MOST = 142.0  # units of a label


@dataclass(frozen=True, slots=True)
class Series:
    label: str
    values: Sequence[float | None]  # one for each class


def columns(
    name: str,
    title: str,
    reading: str,
    classes: Sequence[str],
    kinds: Sequence[Series],
    y_label: str,
    x_label: str,
    stacked: bool = False,
    shown: Callable[[float | None], str] = plain,
) -> Figure:
    """Upright bars, the kinds beside each other or stacked."""
    rows = [[kind.values[i] or 0.0 for kind in kinds] for i in range(len(classes))]
    tallest = max((sum(row) if stacked else max(row) for row in rows if row), default=0.0)
    marks = axis.ticks(0.0, tallest or 1.0)
    swatches = [Swatch(kind.label, *series(n)[:2], shape="box") for n, kind in enumerate(kinds)]
    keys, high = legend(swatches if len(kinds) > 1 else [], 4, 20)
    top = 22 + high + 6
    bottom, left = top + PLOT, axis.left_of(marks)
    y = axis.Scale(marks[0], marks[-1], bottom, top)
    slot = (RIGHT - left) / max(1, len(classes))
    wide = max(0.8, min(26.0, slot * 0.76))
    parts = [
        text(4, 13, y_label, muted=True, size=11),
        *keys,
        *axis.vertical(y, marks, left, RIGHT),
        axis.line(left, bottom, RIGHT, bottom, strong=True),
    ]
    for i, class_ in enumerate(classes):
        x, base = left + (i + 0.5) * slot - wide / 2, 0.0
        for n, (kind, value) in enumerate(zip(kinds, rows[i], strict=True)):
            part = wide if stacked else wide / len(kinds)
            at = x if stacked else x + n * part
            tip = f"{x_label} {class_} · {kind.label}: {shown(kind.values[i])}"
            height = y(base) - y(base + value)
            parts.append(_bar(at, y(base + value), max(0.4, part - 0.6), height, n, tip))
            base += value if stacked else 0.0
    parts += _class_labels(classes, left, slot, bottom)
    parts.append(
        text((left + RIGHT) / 2, bottom + 34, x_label, anchor="middle", muted=True, size=11)
    )
    table = Table(
        (x_label, *(kind.label for kind in kinds)),
        tuple(
            (class_, *(shown(kind.values[i]) for kind in kinds))
            for i, class_ in enumerate(classes[:TABLE_ROWS])
        ),
        f"The first {TABLE_ROWS} rows." if len(classes) > TABLE_ROWS else "",
    )
    return Figure(name, title, reading, frame(name, title, reading, bottom + 42, *parts), table)


def lying(
    name: str,
    title: str,
    reading: str,
    entries: Sequence[tuple[str, float]],
    x_label: str,
    shown: Callable[[float | None], str] = plain,
    head: str = "",
) -> Figure:
    """One bar a row, its number at its end."""
    left = 16 + max((measured(fitted(label, MOST)) for label, _ in entries), default=0.0)
    right = WIDTH - 10 - max((measured(shown(value)) for _, value in entries), default=0.0)
    marks = axis.ticks(0.0, max((value for _, value in entries), default=1.0) or 1.0, 4)
    bottom, row = 8 + 24.0 * len(entries), 24.0
    x = axis.Scale(marks[0], marks[-1], left, right)
    parts = axis.horizontal(x, marks, bottom, 6)
    for place, (label, value) in enumerate(entries):
        y = 8 + row * place
        parts += [
            text(left - 6, y + row / 2 + 4, fitted(label, MOST), anchor="end", size=11),
            _bar(x(0.0), y + 4, x(value) - x(0.0), row - 8, 0, f"{label}: {shown(value)}"),
            text(x(value) + 6, y + row / 2 + 4, shown(value), size=11),
        ]
    parts.append(
        text((left + right) / 2, bottom + 34, x_label, anchor="middle", muted=True, size=11)
    )
    table = Table((head, x_label), tuple((label, shown(value)) for label, value in entries))
    return Figure(name, title, reading, frame(name, title, reading, bottom + 42, *parts), table)


def _bar(x: float, y: float, width: float, height: float, number: int, tip: str) -> Markup:
    class_, colour, _ = series(number)
    return element(
        "rect", x=x, y=y, width=width, height=max(0.0, height), rx=min(1.5, width / 4), fill=colour,
        class_=f"f {class_} mark", data_tip=tip,
    )  # fmt: skip


def _class_labels(classes: Sequence[str], left: float, slot: float, bottom: float) -> list[Markup]:
    """As many as there is room for."""
    longest = max(map(measured, classes), default=0.0)
    every = max(1, math.ceil((longest + 6) / slot))
    return [
        text(left + (i + 0.5) * slot, bottom + 16, c, anchor="middle", muted=True, size=11)
        for i, c in enumerate(classes)
        if i % every == 0
    ]
