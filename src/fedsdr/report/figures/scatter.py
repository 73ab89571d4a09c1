"""Points in the plane, a colour and shape for each kind: a map of what answers are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsdr.report.figures import axis
from fedsdr.report.figures.legend import Swatch, legend
from fedsdr.report.figures.svg import WIDTH, Figure, Table, element, frame, series, text
from fedsdr.text.numbers import plain

RIGHT, PLOT = WIDTH - 12.0, 240.0
MOST = 2000  # points drawn; of more, every n-th
TABLE_ROWS = 200
SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True, slots=True)
class Point:
    kind: str
    x: float
    y: float


def scatter(
    name: str,
    title: str,
    reading: str,
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    among: Sequence[Point] = (),
) -> Figure:
    """`among`: the points of another figure that is to be read beside this one."""
    kinds = list(dict.fromkeys(point.kind for point in points))
    every = -(-len(points) // MOST) or 1
    x_marks = axis.ticks(*axis.extent(p.x for p in (*points, *among)))
    y_marks = axis.ticks(*axis.extent(p.y for p in (*points, *among)))
    keys, high = legend(
        [Swatch(kind, *series(n)[:2], shape="dot") for n, kind in enumerate(kinds)], 4, 20
    )
    top = 22 + high + 6
    bottom, left = top + PLOT, axis.left_of(y_marks)
    x = axis.Scale(x_marks[0], x_marks[-1], left, RIGHT)
    y = axis.Scale(y_marks[0], y_marks[-1], bottom, top)
    parts = [
        text(4, 13, y_label, muted=True, size=11),
        *keys,
        *axis.vertical(y, y_marks, left, RIGHT),
        *axis.horizontal(x, x_marks, bottom, top),
        text((left + RIGHT) / 2, bottom + 34, x_label, anchor="middle", muted=True, size=11),
        *(_mark(p, kinds.index(p.kind), x(p.x), y(p.y)) for p in points[::every]),
    ]
    table = Table(
        ("", x_label, y_label),
        tuple((p.kind, plain(p.x), plain(p.y)) for p in points[:TABLE_ROWS]),
        f"The first {TABLE_ROWS} of {len(points)} points." if len(points) > TABLE_ROWS else "",
    )
    drawn = (
        reading if every == 1 else f"{reading} Every {every}th of {len(points)} points is drawn."
    )
    return Figure(name, title, drawn, frame(name, title, drawn, bottom + 42, *parts), table)


def _mark(point: Point, number: int, x: float, y: float) -> Markup:
    """From the ninth kind on colours come back with another shape."""
    class_, colour, _ = series(number)
    shape = SHAPES[(number // 8) % len(SHAPES)]
    look = {
        "fill": colour,
        "fill_opacity": 0.75,
        "class_": f"f {class_} mark",
        "data_tip": point.kind,
    }
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=3.2, **look)
    if shape == "square":
        return element("rect", x=x - 3, y=y - 3, width=6, height=6, **look)
    return element("path", d=f"M{x:.1f} {y - 4:.1f}l3.8 6.6h-7.6z", **look)
