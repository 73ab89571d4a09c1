"""Lines over rounds: a few that matter in colour, any number of others thin and grey."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsdr.report.figures import axis
from fedsdr.report.figures.legend import Swatch, legend
from fedsdr.report.figures.svg import (
    SERIES,
    WIDTH,
    Figure,
    Table,
    element,
    frame,
    group,
    series,
    text,
)
from fedsdr.report.record import natural
from fedsdr.text.numbers import plain

RIGHT, PLOT = WIDTH - 12.0, 186.0
MARKS = 1200  # points with a tooltip of their own; with more, lines have one
GREY = "#b3bac4"
TABLE_ROWS = 400

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    points: Points
    number: int | None = None  # of its colour; None is thin and grey, one of many
    dashed: bool = False
    band: Sequence[tuple[float, float, float]] = ()


def curves(
    name: str,
    title: str,
    reading: str,
    lines: Sequence[Line],
    y_label: str,
    x_label: str = "round",
    within: tuple[float, float] | None = None,
    others: str = "each client",
    whole: bool = True,
) -> Figure:
    """`within` are values that the y axis shows whatever the data; rounds come `whole`."""
    xs = [x for line in lines for x, _ in line.points] or [0]
    ys = [y for line in lines for _, y in line.points]
    ys += [v for line in lines for _, low, high in line.band for v in (low, high)]
    y_marks = axis.ticks(*axis.extent(ys, *(within or ())))
    shown, high = legend(_swatches(lines, others), 4, 20)
    top = 20 + high + 10
    bottom, left = top + PLOT, axis.left_of(y_marks)
    x = axis.Scale(min(xs), max(xs), left + 6, RIGHT - 6)
    y = axis.Scale(y_marks[0], y_marks[-1], bottom, top)
    x_marks = axis.ticks(min(xs), max(xs), 6)
    if whole:
        x_marks = [float(n) for n in axis.whole_ticks(int(min(xs)), int(max(xs)))]
    x_marks = [mark for mark in x_marks if min(xs) <= mark <= max(xs)]
    targets = sum(len(line.points) for line in lines) <= MARKS
    ordered = sorted(lines, key=lambda line: line.number is not None)
    content = [
        text(4, 13, y_label, muted=True, size=11),
        *shown,
        *axis.vertical(y, y_marks, left, RIGHT),
        *axis.horizontal(x, x_marks, bottom, None),
        text((left + RIGHT) / 2, bottom + 34, x_label, anchor="middle", muted=True, size=11),
        *(group(_band(line, x, y), class_="band") for line in ordered if line.band),
        *(_drawn(line, x, y, x_label, targets) for line in ordered),
    ]
    svg = frame(name, title, reading, bottom + 42, *content)
    return Figure(name, title, reading, svg, _table(lines, x_label))


def told_apart(by_client: Mapping[str, Points]) -> list[Line]:
    """Clients' lines: each in its colour while there are colours, else all grey."""
    names = sorted(by_client, key=natural)
    few = len(names) <= len(SERIES)
    return [Line(name, by_client[name], n if few else None) for n, name in enumerate(names)]


def _swatches(lines: Sequence[Line], others: str) -> list[Swatch]:
    entries = [
        Swatch(
            line.label, *series(line.number)[:2], "6 3" if line.dashed else series(line.number)[2]
        )
        for line in lines
        if line.number is not None
    ]
    if any(line.number is None for line in lines):
        entries.append(Swatch(others, "other", GREY))
    return entries


def _drawn(line: Line, x: axis.Scale, y: axis.Scale, x_label: str, targets: bool) -> Markup:
    name, colour, dash = series(line.number) if line.number is not None else ("other", GREY, None)
    main = line.number is not None
    path = element(
        "path", d=_path(line.points, x, y), fill="none", stroke=colour, class_=f"l {name}",
        stroke_width=2.4 if main else 1.1, stroke_linejoin="round", stroke_linecap="round",
        stroke_dasharray="6 3" if line.dashed else dash,
        data_tip=None if targets else line.label,
    )  # fmt: skip
    dots = [
        element(
            "circle", cx=x(at), cy=y(value), r=3 if main else 2.2,
            fill=colour, class_=f"f {name} mark" + ("" if main else " quiet"),
            fill_opacity=None if main else 0,
            data_tip=f"{line.label} · {x_label} {plain(at)} · {plain(value)}",
        )
        for at, value in line.points
        if value is not None and math.isfinite(value)
    ]  # fmt: skip
    lone = [d for d in dots if main or len(dots) == 1]
    return group([path, *(dots if targets else lone)], class_="line")


def _path(points: Points, x: axis.Scale, y: axis.Scale) -> str:
    """A missing value is a gap, not a line through it. Rounds without evaluation are no gap: they
    are not among the points."""
    steps, pen = list[str](), "M"
    for at, value in points:
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        steps.append(f"{pen}{x(at):.1f} {y(value):.1f}")
        pen = "L"
    return "".join(steps)


def _band(line: Line, x: axis.Scale, y: axis.Scale) -> list[Markup]:
    up = [f"{x(at):.1f} {y(high):.1f}" for at, _, high in line.band]
    back = [f"{x(at):.1f} {y(low):.1f}" for at, low, _ in reversed(line.band)]
    name, colour, _ = series(line.number or 0)
    return [
        element(
            "path", d=f"M{'L'.join([*up, *back])}Z", fill=colour, fill_opacity=0.14,
            class_=f"f {name}",
        )
    ]  # fmt: skip


def _table(lines: Sequence[Line], x_label: str) -> Table:
    xs = sorted({x for line in lines for x, _ in line.points})
    by_line = [dict(line.points) for line in lines]
    rows = [(plain(at), *(plain(of.get(at)) for of in by_line)) for at in xs]
    header = (x_label, *(line.label for line in lines))
    if len(header) > len(rows) + 1:  # many lines over few rounds read better the other way
        rows = [tuple(column) for column in zip(*[header, *rows], strict=True)]
        header, rows = rows[0], rows[1:]
    left_out = len(rows) - TABLE_ROWS
    note = f"The first {TABLE_ROWS} rows; {left_out} more are left out." if left_out > 0 else ""
    return Table(tuple(header), tuple(rows[:TABLE_ROWS]), note)
