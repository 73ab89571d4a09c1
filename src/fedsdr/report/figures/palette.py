"""Colours that people with any colour vision can tell apart.

Lines take Okabe and Ito's eight (yellow, which fades on white, dark). Heat-maps run from vermilion
over neutral to blue, or from neutral to blue. The hex values here are the light theme, and what a
saved figure has; style.css holds the dark ones for the same classes.
"""

from __future__ import annotations

import math

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
