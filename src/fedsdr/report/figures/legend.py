"""What the lines and dots mean, written above the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fedsdr.report.figures.measure import fitted, measured
from fedsdr.report.figures.svg import WIDTH, element, text

ROW = 18
MOST = 260.0  # units that the words of one entry take


@dataclass(frozen=True, slots=True)
class Swatch:
    label: str
    name: str  # the class of its colour
    colour: str
    dash: str | None = None
    shape: str = "line"  # or "dot", "box"


def legend(entries: Sequence[Swatch], left: float, top: float) -> tuple[list[Markup], float]:
    """The entries, wrapped to the width, and how high they are together."""
    parts, x, y = list[Markup](), left, top
    for entry in entries:
        label = fitted(entry.label, MOST)
        wide = 22 + measured(label) + 12
        if x > left and x + wide - 12 > WIDTH - 4:
            x, y = left, y + ROW
        parts += [_swatch(entry, x, y + ROW / 2), text(x + 22, y + ROW / 2 + 4, label, size=11)]
        x += wide
    return parts, (y - top + ROW) if entries else 0.0


def _swatch(entry: Swatch, x: float, y: float) -> Markup:
    if entry.shape == "dot":
        return element("circle", cx=x + 8, cy=y, r=4.5, fill=entry.colour, class_=f"f {entry.name}")
    if entry.shape == "box":
        return element(
            "rect", x=x + 2, y=y - 5.5, width=12, height=11, fill=entry.colour, rx=2,
            class_=f"f {entry.name}",
        )  # fmt: skip
    return element(
        "line", x1=x, y1=y, x2=x + 17, y2=y, stroke=entry.colour, stroke_width=2.2,
        stroke_dasharray=entry.dash, class_=f"l {entry.name}",
    )  # fmt: skip
