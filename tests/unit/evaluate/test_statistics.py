"""Hand-computed numbers first, then scipy as the second opinion."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedsdr.evaluate.statistics import (
    confidence_interval,
    holm,
    mean_sd,
    paired_t,
    sign_flip,
    smallest_sign_flip,
    summarise,
)

A = [0.38, 0.41, 0.35, 0.40, 0.44, 0.37, 0.39, 0.36]
B = [0.33, 0.42, 0.31, 0.36, 0.35, 0.38, 0.34, 0.33]
DIFFERENCES = [a - b for a, b in zip(A, B, strict=True)]


def test_mean_and_sd_by_hand() -> None:
    # mean 5; squared deviations 9+1+1+1+0+0+4+16 = 32; 32/7
    assert mean_sd([2, 4, 4, 4, 5, 5, 7, 9]) == (5.0, pytest.approx(math.sqrt(32 / 7)))
    assert mean_sd([0.3]) == (0.3, None)
    # 0.1 has no exact double; the deviation of a constant is 0, not 1e-17
    assert mean_sd([0.1] * 7)[1] == 0.0
    with pytest.raises(ValueError, match="no values"):
        mean_sd([])


def test_interval_by_hand() -> None:
    # n = 4, mean 2.5, sd sqrt(5/3); the tables give t(.975, 3 df) = 3.182446
    interval = confidence_interval([1, 2, 3, 4])
    assert interval is not None
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert interval == (pytest.approx(2.5 - half, abs=1e-6), pytest.approx(2.5 + half, abs=1e-6))
    assert confidence_interval([1.0]) is None
    assert confidence_interval([0.1, 0.1, 0.1]) == (pytest.approx(0.1), pytest.approx(0.1))


def test_interval_agrees_with_scipy() -> None:
    theirs = stats.ttest_1samp(A, 0.0).confidence_interval(0.9)
    assert confidence_interval(A, 0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_excludes_zero_exactly_when_t_is_below_alpha() -> None:
    rng = np.random.default_rng(3)
    outcomes: set[bool] = set()
    for _ in range(200):
        d = list(rng.normal(0.8, 1.0, 7))
        interval, p = confidence_interval(d), paired_t(d)
        assert interval is not None
        assert p is not None
        assert (interval[0] > 0 or interval[1] < 0) == (p < 0.05)
        outcomes.add(p < 0.05)
    assert outcomes == {True, False}


def test_summarise_puts_them_together() -> None:
    summary = summarise(A)
    assert (summary.n, summary.mean, summary.sd) == (8, *mean_sd(A))
    assert summary.interval == confidence_interval(A)


def test_paired_t_agrees_with_scipy() -> None:
    theirs = stats.ttest_rel(A, B).pvalue
    assert paired_t(DIFFERENCES) == pytest.approx(theirs, rel=1e-12)
    assert paired_t([-d for d in DIFFERENCES]) == pytest.approx(theirs, rel=1e-12)


def test_paired_t_by_hand() -> None:
    # two differences 1 and 3: mean 2, sd sqrt 2, t = 2; one degree of freedom is Cauchy
    assert paired_t([1, 3]) == pytest.approx(1 - 2 * math.atan(2) / math.pi)


@pytest.mark.parametrize("test", [paired_t, sign_flip])
def test_degenerate_differences(test) -> None:
    assert test([]) is None
    assert test([0.4]) is None
    assert test([0.0] * 6) == 1.0
    with pytest.raises(ValueError, match="finite"):
        test([0.1, math.nan, 0.2])
    with pytest.raises(ValueError, match="finite"):
        test([0.1, math.inf])


def test_without_variance_t_is_undefined_and_the_sign_flip_test_decides() -> None:
    assert paired_t([0.1] * 6) is None
    assert sign_flip([0.1] * 6) == 2 / 64
    # the same after subtraction: 0.3 - 0.2 and 0.4 - 0.3 differ in the last bit only
    almost = [0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4]
    assert len(set(almost)) > 1
    assert paired_t(almost) is None


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (5, 0.0625), (6, 0.03125), (8, 2 / 256)])
def test_sign_flip_when_all_seeds_agree(n: int, p: float) -> None:
    differences = [0.01 * (i + 1) for i in range(n)]
    assert sign_flip(differences) == p
    assert sign_flip([-d for d in differences]) == p
    assert smallest_sign_flip(n) == p


def test_five_seeds_can_never_be_significant() -> None:
    rng = np.random.default_rng(0)
    ps = [sign_flip(list(rng.normal(50.0, 1.0, n))) for n in (2, 3, 4, 5) for _ in range(20)]
    assert min(p for p in ps if p is not None) > 0.05


def test_sign_flip_by_hand_with_ties() -> None:
    # ±1 ±1 ±2, observed sum 1+1-2 = 0: every pattern is at least as far from 0
    assert sign_flip([1, 1, -2]) == 1.0
    # ±1 ±2 ±3, observed 1+2-... = -1+2+3 = 4: sums 6, 4, -4, -6 reach it, 2, 0, 0, -2 do not
    assert sign_flip([-1, 2, 3]) == 0.5
    # ties must count though 0.1+0.2-0.3 is not 0 in floating point, nor 0.3 = 0.1+0.2
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0
    assert sign_flip([0.1, 0.2, 0.3, 0.0]) == 0.25


@pytest.mark.parametrize("seed", range(5))
def test_sign_flip_agrees_with_scipys_exact_permutation_test(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = rng.normal(0.5, 1.0, 9)
    theirs = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(list(differences)) == pytest.approx(theirs.pvalue, abs=1e-12)


def test_beyond_sixteen_the_sign_flip_test_draws_and_repeats_itself() -> None:
    rng = np.random.default_rng(1)
    differences = list(rng.normal(0.15, 1.0, 20))
    sums = np.zeros(1)
    for d in differences:
        sums = np.concatenate([sums + d, sums - d])
    exact = float((np.abs(sums) >= abs(sum(differences)) - 1e-9).mean())
    p = sign_flip(differences)
    assert 0.02 < exact < 0.98
    assert p == sign_flip(differences)
    assert p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    # 20 agreeing seeds: 2/2^20 is below what 20,000 draws can show, and p is never 0
    assert sign_flip([1.0 + i for i in range(40)]) == 1 / 20_001 == smallest_sign_flip(40)


def test_sixteen_is_still_exact() -> None:
    assert sign_flip([1.0] * 16) == 2.0**-15 == smallest_sign_flip(16)
    assert smallest_sign_flip(1) is None


def test_sign_flip_does_not_touch_the_global_generator() -> None:
    import torch

    before = torch.get_rng_state()
    sign_flip([float(i) for i in range(20)])
    assert torch.equal(before, torch.get_rng_state())


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04: times 4, 3, 2, 1 = .04 .06 .06 .04, made monotone: .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_rejects_what_holms_procedure_rejects() -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        ps = list(rng.uniform(0, 0.06, 6))
        rejected: set[int] = set()
        for step, i in enumerate(sorted(range(6), key=lambda i: ps[i])):
            if ps[i] >= 0.05 / (6 - step):
                break
            rejected.add(i)
        adjusted = holm(ps)
        assert {i for i, p in enumerate(adjusted) if p is not None and p < 0.05} == rejected


def test_a_test_that_could_not_be_made_still_counts_in_the_family() -> None:
    assert holm([0.01, None, 0.02]) == [pytest.approx(0.03), None, pytest.approx(0.04)]
    assert holm([None, None]) == [None, None]
