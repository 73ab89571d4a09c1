"""No more digits than the spread supports."""

from __future__ import annotations

import math

import pytest

from fedsdr.text import numbers


@pytest.mark.parametrize(
    ("spread", "places"),
    [
        (0.042, 2),
        (0.14, 2),
        (0.0042, 3),
        (0.19, 2),
        (0.2, 1),
        (3.0, 0),
        (14.0, 0),
        (None, 3),
        (0, 3),
    ],
)
def test_a_spread_shows_one_figure_or_two_after_a_one(spread: float | None, places: int) -> None:
    assert numbers.decimals(spread) == places


def test_a_column_has_one_number_of_places() -> None:
    assert numbers.column_decimals([0.04, 0.05, 0.3]) == 2  # by the median
    assert numbers.column_decimals([None, 0.0], [0.5]) == 2  # no spread: two …
    assert numbers.column_decimals([], [0.01, 0.05]) == 3  # … or three of small shares


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"), (0.38123, "0.381"), (-0.5, "−0.500"), (1234.0, "1,234"), (1234.5, "1,234"),
        (0.000012, "1.20e−05"), (math.nan, "–"), (math.inf, "–"), (None, "–"), (12.34, "12.3"),
    ],
)  # fmt: skip
def test_plain_numbers(value: float | None, written: str) -> None:
    assert numbers.plain(value) == written


def test_a_zero_has_no_sign() -> None:
    assert numbers.fixed(-0.0001, 2, sign=True) == "0.00"
    assert numbers.fixed(-0.02, 2, sign=True) == "−0.02"
    assert numbers.fixed(0.02, 2, sign=True) == "+0.02"


def test_sizes_times_and_shares() -> None:
    assert numbers.size(999) == "999 B"
    assert numbers.size(1_234_567) == "1.23 MB"
    assert numbers.size(999_700) == "1.00 MB"
    assert [numbers.duration(s) for s in (1.26, 59.4, 73.2, 7384)] == [
        "1.3 s", "59 s", "1 min 13 s", "2 h 3 min",
    ]  # fmt: skip
    assert [numbers.share(x) for x in (0.381, 0.004, 0.0, 1.0)] == ["38 %", "0.4 %", "0 %", "100 %"]


def test_lists_are_cut() -> None:
    assert numbers.listed([]) == ""
    assert numbers.listed("a") == "a"
    assert numbers.listed("abc") == "a, b and c"
    assert numbers.listed("abcdef") == "a, b, c and 3 more"
