"""Writing SVG: elements with every attribute and text escaped, and the frame of a figure.

Colours are attributes, which any program reads, and classes besides: on the page the style sheet
overrules the attributes by class, for the dark theme.

Colours that people with any colour vision can tell apart.

Lines take Okabe and Ito's eight (yellow, which fades on white, dark). Heat-maps run from vermilion
over neutral to blue, or from neutral to blue. The hex values here are the light theme, and what a
saved figure has; style.css holds the dark ones for the same classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from fedsdr.report.figures.measure import fitted, measured
from fedsdr.report.safe_text import visible

WIDTH = 420  # units; printed 8.4 cm wide, the column of a paper, its text is 7 points
FONT = 12
EDGE = 2.0  # units of a figure's margin that no words enter
# Without `system-ui`: where no desktop says what that is, it can be any font of the machine.
SYSTEM = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
NUMERIC = re.compile(r"|–|[-–−+<]?\s*[\d.,]+(?:e[−+-]?\d+)?(?:\s?(?:%|×|[kMGT]?B|h|min|s)|[ \d])*")
UNSAFE = re.compile(r"[^A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers behind a figure."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def wordy(self) -> list[bool]:
        """Of each column, whether it holds words, which stand left; numbers stand right."""
        return [
            not all(NUMERIC.fullmatch(cell) for cell in column)
            for column in zip(self.header, *self.rows, strict=True)
            for column in [column[1:]]
        ]


@dataclass(frozen=True, slots=True)
class Figure:
    """`name` is the anchor and the stem of a saved file; `reading` says how to read it."""

    name: str
    title: str
    reading: str
    svg: Markup
    table: Table
    slides: Mapping[str, Any] | None = None  # further rounds of a heat-map, for the page's script


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """`element("text", "a<b", x=1.25, class_="t")`; content that is no Markup is escaped."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(visible(_value(value)))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(
        part if isinstance(part, Markup) else escape(visible(part)) for part in content
    )
    return Markup(f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>")


def frame(
    name: str, title: str, description: str, height: float, *content: Markup, width: float = WIDTH
) -> Markup:
    """A whole SVG, which names and describes itself."""
    stem = anchor(name)
    return element(
        "svg",
        element("title", title, id=f"{stem}-title"),
        element("desc", description, id=f"{stem}-desc"),
        *content,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{stem}-title {stem}-desc",
        font_family=SYSTEM,
        font_size=FONT,
        class_="figure",
    )


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    muted: bool = False,
    size: float | None = None,
    turned: bool = False,
    bold: bool = False,
) -> Markup:
    """Words that stay inside of the figure, whatever the font: what is centred too near to an edge
    is moved, and what has no room is cut."""
    type_, room = size or FONT, WIDTH - 2 * EDGE
    if turned:  # upwards from y, or both ways
        room = y - EDGE if anchor == "start" else 2 * (y - EDGE)
    elif anchor == "middle":
        half = min(room, measured(words, type_, bold)) / 2
        x = min(max(x, EDGE + half), WIDTH - EDGE - half)
    else:
        room = WIDTH - EDGE - x if anchor == "start" else x - EDGE
    return element(
        "text",
        fitted(words, room, type_, bold),
        x=x,
        y=y,
        text_anchor=None if anchor == "start" else anchor,
        fill="#5b6472" if muted else "#1b2430",
        class_="muted" if muted else "ink",
        font_size=size,
        font_weight=600 if bold else None,
        transform=f"rotate(-90 {_value(x)} {_value(y)})" if turned else None,
    )


def group(parts: Iterable[Markup], **attributes: object) -> Markup:
    return element("g", *parts, **attributes)


def anchor(name: str) -> str:
    """An id for HTML from any text; two names that differ may get the same."""
    return UNSAFE.sub("-", name).strip("-").lower() or "x"


def _value(value: object) -> str:
    """Coordinates to a hundredth, which no eye can tell."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


SERIES = (
    "#0072b2",  # blue
    "#d55e00",  # vermilion
    "#009e73",  # bluish green
    "#cc79a7",  # reddish purple
    "#e69f00",  # orange
    "#56b4e9",  # sky blue
    "#7a6a00",  # dark yellow: the original cannot be seen on white
    "#3c4654",  # near black
)
DASHES = (None, "6 3", "2 3", "8 3 2 3")
BINS = 20  # of a diverging map: 0 … 20, with 10 the neutral one
WHITE_ON_BLUE, WHITE_ON_VERMILION = 8, 9  # from these steps on; black has less contrast there
NEUTRAL, BLUE, VERMILION = (243, 244, 246), (0, 84, 147), (178, 72, 0)


def series(number: int) -> tuple[str, str, str | None]:
    """Class, colour and dash of the n-th line; from the ninth on colours come back dashed."""
    place = number % len(SERIES)
    return f"s{place}", SERIES[place], DASHES[(number // len(SERIES)) % len(DASHES)]


def diverging(value: float | None, reach: float) -> tuple[str, str, bool]:
    """Class and colour of a value between -reach and reach, and whether words on it are white."""
    if value is None or not math.isfinite(value):
        return "none", "#ffffff", False
    share = max(-1.0, min(1.0, value / reach)) if reach > 0 else 0.0
    step = round(share * BINS / 2)
    end = BLUE if step > 0 else VERMILION
    return (
        f"d{step + BINS // 2}",
        _mixed(end, abs(step) / (BINS / 2)),
        step >= WHITE_ON_BLUE or -step >= WHITE_ON_VERMILION,
    )


def sequential(value: float | None, low: float, high: float) -> tuple[str, str, bool]:
    """Class and colour of a value between low (neutral) and high (blue), and whether words on it
    are white."""
    if value is None or not math.isfinite(value):
        return "none", "#ffffff", False
    share = max(0.0, min(1.0, (value - low) / (high - low))) if high > low else 0.0
    step = round(share * BINS / 2)
    return f"q{step}", _mixed(BLUE, step / (BINS / 2)), step >= WHITE_ON_BLUE


def _mixed(end: tuple[int, int, int], share: float) -> str:
    return "#" + "".join(
        f"{round(n + (e - n) * share):02x}" for n, e in zip(NEUTRAL, end, strict=True)
    )
