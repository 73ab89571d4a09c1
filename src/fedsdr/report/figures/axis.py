"""Round ticks, and a number written as exactly as its step needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from fedsdr.report.figures.measure import measured
from fedsdr.report.figures.svg import element, text


@dataclass(frozen=True, slots=True)
class Scale:
    """From numbers to units on the page; `first` and `last` are the ends of the axis there."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.first + share * (self.last - self.first)


def extent(values: Iterable[float | None], *also: float) -> tuple[float, float]:
    """The least and the greatest finite number; 0 and 1 where there is none."""
    finite = [v for v in values if v is not None and math.isfinite(v)] + list(also)
    return (min(finite), max(finite)) if finite else (0.0, 1.0)


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that cover what is given."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad if low < 0 else max(0.0, low - pad), high + pad
    raw = (high - low) / max(1, wanted - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def whole_ticks(low: int, high: int, wanted: int = 6) -> list[int]:
    """The same for rounds, which come whole."""
    step = max(1, math.ceil((high - low) / max(1, wanted - 1)))
    nice = next(
        s for s in sorted({1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, step}) if s >= step
    )
    inner = [n for n in range(low, high + 1) if n % nice == 0]
    return inner or [low]


def labels(values: Iterable[float]) -> list[str]:
    """The ticks in as few decimals as tell them apart; thousands as k, M, G."""
    given = list(values)
    largest = max((abs(v) for v in given), default=0.0)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if largest >= size:
            return [f"{v / (1e3 if unit == 'k' else size):g}{unit}" if v else "0" for v in given]
    for digits in range(7):
        if all(abs(round(v, digits) - v) < 1e-9 * max(1.0, largest) for v in given):
            return [f"{v:.{digits}f}".replace("-", "−") for v in given]
    return [f"{v:.3g}".replace("-", "−") for v in given]


def left_of(marks: list[float]) -> float:
    """Where a plot begins, so that the numbers of its vertical axis have room."""
    return max(50.0, 10 + max(map(measured, labels(marks)), default=0.0))


def vertical(scale: Scale, marks: list[float], left: float, right: float) -> list[Markup]:
    """Horizontal grid lines with their numbers at the left."""
    return [
        part
        for value, label in zip(marks, labels(marks), strict=True)
        for part in (
            line(left, scale(value), right, scale(value)),
            text(left - 6, scale(value) + 4, label, anchor="end", muted=True, size=11),
        )
    ]


def horizontal(scale: Scale, marks: list[float], bottom: float, top: float | None) -> list[Markup]:
    """Numbers below, as many as there is room for, with grid lines up to `top` where wanted."""
    parts, written = list[Markup](), labels(marks)
    wide = max(map(measured, written), default=0.0)
    apart = abs(scale(marks[1]) - scale(marks[0])) if len(marks) > 1 else math.inf
    every = max(1, math.ceil((wide + 8) / apart))
    for place, (value, label) in enumerate(zip(marks, written, strict=True)):
        x = scale(value)
        if top is not None:
            parts.append(line(x, top, x, bottom))
        if place % every == 0:
            parts.append(text(x, bottom + 16, label, anchor="middle", muted=True, size=11))
    return parts


def line(x1: float, y1: float, x2: float, y2: float, strong: bool = False) -> Markup:
    colour, name = ("#8a93a0", "axis") if strong else ("#e3e6ea", "grid")
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=colour, class_=name)
