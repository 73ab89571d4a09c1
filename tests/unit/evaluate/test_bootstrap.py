"""The bootstrap against cases whose resampling distribution is known."""

from __future__ import annotations

import math

import pytest

from fedsdr.evaluate.statistics import bootstrap, paired_bootstrap


def test_two_values_resample_to_three_means() -> None:
    """0, ½ and 1 with chances ¼, ½, ¼: the middle 95 % reach from 0 to 1."""
    assert bootstrap([0.0, 1.0]) == (0.5, (0.0, 1.0))


def test_all_the_same_has_no_width_and_one_value_no_interval() -> None:
    assert bootstrap([0.25] * 7) == (0.25, (0.25, 0.25))
    assert bootstrap([1.0]) == (1.0, None)
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])
    with pytest.raises(ValueError, match="finite"):
        bootstrap([1.0, math.nan])


def test_of_many_values_it_is_the_normal_interval() -> None:
    values = [1.0] * 300 + [0.0] * 700
    mean, interval = bootstrap(values)
    assert interval is not None
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert mean == 0.3
    assert interval == (pytest.approx(0.3 - half, abs=2e-3), pytest.approx(0.3 + half, abs=2e-3))
    assert bootstrap(values) == (mean, interval)


def test_groups_count_alike_and_are_resampled_within() -> None:
    """Group a: nine 0s; group b: one 1. The mean of means is ½, whatever is drawn."""
    assert bootstrap([0.0] * 9 + [1.0], ["a"] * 9 + ["b"]) == (0.5, (0.5, 0.5))
    assert bootstrap([1.0, *[0.0] * 9], ["b", *["a"] * 9]) == (0.5, (0.5, 0.5))


def test_pairing_takes_out_what_the_items_share() -> None:
    """Two models right on the same half of the items but for one: the unpaired intervals overlap
    widely, the paired one is that of 99 zeros and a one."""
    left = [float(i % 2) for i in range(100)]
    right = [0.0 if i == 1 else x for i, x in enumerate(left)]
    difference, interval = paired_bootstrap(left, right)
    assert difference == pytest.approx(0.01)
    assert interval is not None
    assert interval == (0.0, pytest.approx(0.03, abs=1e-9))
    assert paired_bootstrap(right, left)[0] == pytest.approx(-0.01)
    with pytest.raises(ValueError, match="longer"):
        paired_bootstrap([1.0], [1.0, 0.0])


def test_a_constant_shift_is_certain() -> None:
    left = [0.5, 0.75, 1.0]
    assert paired_bootstrap(left, [x - 0.25 for x in left]) == (0.25, (0.25, 0.25))
