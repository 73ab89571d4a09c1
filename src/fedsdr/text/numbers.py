"""Numbers as people read them: no more digits than the spread between repetitions supports."""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS = "−"
NONE = "–"


def decimals(spread: float | None) -> int:
    """So many places that the spread shows one figure, or two where the first is a 1."""
    if spread is None or not math.isfinite(spread) or spread <= 0:
        return 3
    first = math.floor(math.log10(spread))
    leading = spread / 10.0**first
    return min(6, max(0, -first + (1 if leading < 1.95 else 0)))


def column_decimals(spreads: Iterable[float | None], values: Iterable[float] = ()) -> int:
    """One number of places for a whole column, by its median spread; where no spread is known, two,
    or three for small shares."""
    known = sorted(s for s in spreads if s is not None and math.isfinite(s) and s > 0)
    if known:
        return decimals(known[len(known) // 2])
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 1 if largest >= 10 else 2 if largest >= 0.095 or not largest else 3


def fixed(value: float | None, places: int = 3, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    shown = f"{value:+,.{places}f}" if sign else f"{value:,.{places}f}"
    if not shown.strip("+-0.,"):  # a zero has no sign
        shown = shown.lstrip("+-")
    return shown.replace("-", MINUS)


def score(value: float | None, among: Iterable[float] = ()) -> str:
    """Over a client's few dozen questions a third place says nothing, but of small shares; in a
    column as many places as the largest `among` it needs."""
    return fixed(value, column_decimals((), (*among, value or 0.0)))


def plain(value: float | None, figures: int = 3) -> str:
    """About three significant figures, without an exponent where people use none."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    size = math.floor(math.log10(abs(float(f"{value:.{figures}g}"))))
    if size < -4:
        return f"{value:.{figures - 1}e}".replace("-", MINUS)
    return fixed(value, max(0, figures - 1 - size))


def share(value: float | None) -> str:
    """0.381 -> '38 %'; 99.8 % is not all, and 0.02 % is not none."""
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < value < 0.001:
        return "<0.1 %"
    if 0.99 < value < 1:
        return f"{fixed(math.floor(1000 * value) / 10, 1)} %"
    return f"{fixed(100 * value, 1 if 0 < abs(value) < 0.01 else 0)} %"


def size(count: float | None) -> str:
    """1234567 -> '1.2 MB'."""
    if count is None or not math.isfinite(count):
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{plain(count, 3)} {unit}"
        count /= 1000
    return f"{plain(count, 3)} TB"


def duration(seconds: float | None) -> str:
    """73.2 -> '1 min 13 s'."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{fixed(seconds, 1)} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def counted(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(words: Iterable[str], most: int = 4) -> str:
    """a, b and c; or a, b, c and 7 more."""
    given = list(words)
    if len(given) > most:
        given = [*given[: most - 1], f"{len(given) - most + 1} more"]
    return (
        given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}" if given else ""
    )
