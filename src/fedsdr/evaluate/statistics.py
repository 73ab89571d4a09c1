"""What a handful of seeds can and cannot show: means, intervals, paired tests, Holm's correction.

Two tests answer the same question about paired differences. Student's t assumes that they are
normally distributed; the sign-flip test assumes only that, were there no effect, each of them could
as well have had the other sign. It is exact, and its p cannot fall below 2/2^n: with fewer than 6
seeds nothing can be significant at .05.

Over a benchmark's many items the bootstrap says how far a score, or the difference between two
models' on the same items, would move with other items of the kind. It knows nothing of seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # pyright: ignore[reportMissingTypeStubs]

EXACT_UP_TO = 16
DRAWS = 20_000
RESAMPLES = 10_000
AT_ONCE = 1 << 22  # numbers drawn at a time
ROUNDING = 1e-12  # relative: what floating point adds up to may differ by this and be the same


@dataclass(frozen=True, slots=True)
class Summary:
    """One quantity over seeds; `sd` and the 95 % interval of the mean need at least two."""

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None


def summarise(values: Sequence[float]) -> Summary:
    return Summary(len(values), *mean_sd(values), confidence_interval(values))


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation (n - 1); one value has no deviation: None."""
    x = _finite(values)
    if not x.size:
        raise ValueError("the mean of no values")
    mean = math.fsum(values) / x.size
    if _constant(x):
        return mean, None if x.size == 1 else 0.0
    return mean, float(x.std(ddof=1))


def confidence_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean; None for one value."""
    mean, sd = mean_sd(values)
    if sd is None:
        return None
    half = float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * sd / math.sqrt(len(values))
    return mean - half, mean + half


def paired_t(differences: Sequence[float]) -> float | None:
    """The two-sided p of Student's paired t-test.

    All differences zero: 1. Fewer than two differences: None. All differences the same but not
    zero: None too, since t would be infinite and p = 0 a claim that no handful of seeds supports;
    there the sign-flip test decides alone.
    """
    x = _finite(differences)
    if x.size < 2:
        return None
    if not x.any():
        return 1.0
    if _constant(x):
        return None
    mean, sd = mean_sd(differences)
    assert sd is not None
    return float(2 * special.stdtr(x.size - 1, -abs(mean) * math.sqrt(x.size) / sd))


def sign_flip(differences: Sequence[float]) -> float | None:
    """The two-sided p of the sign-flip test; fewer than two differences: None.

    The share of sign patterns whose sum is at least as far from zero as the observed one: over all
    2^n patterns for n <= 16, else over 20,000 seeded draws, where the observed pattern counts as
    one more draw (so that p is never 0).
    """
    x = _finite(differences)
    if x.size < 2:
        return None
    # A pattern that ties with the observed one must count, whatever order its terms were added in.
    reach = abs(math.fsum(differences)) - ROUNDING * float(np.abs(x).sum())
    if x.size <= EXACT_UP_TO:
        sums = np.zeros(1)
        for difference in x:
            sums = np.concatenate([sums + difference, sums - difference])
        return float((np.abs(sums) >= reach).mean())
    import torch  # a report of some seeds draws nothing, and comes up without it

    from fedsdr.tensors import generator

    coins = torch.randint(0, 2, (DRAWS, x.size), generator=generator("sign-flip", x.size))
    sums = (2.0 * coins.double().numpy() - 1.0) @ x
    return float(1 + (np.abs(sums) >= reach).sum()) / (DRAWS + 1)


def smallest_sign_flip(n: int) -> float | None:
    """The smallest p that `sign_flip` can give for n differences, whatever they are."""
    if n < 2:
        return None
    return 2.0 ** (1 - n) if n <= EXACT_UP_TO else 1 / (DRAWS + 1)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given.

    A None (the test could not be made) stays None but counts: the family is what was named
    beforehand, and it does not shrink because a test failed.
    """
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(ps) - rank) * p))
        adjusted[place] = largest
    return adjusted


def bootstrap(
    values: Sequence[float], groups: Sequence[str] | None = None, level: float = 0.95
) -> tuple[float, tuple[float, float] | None]:
    """The mean, and the percentile interval of 10,000 seeded resamples; None for a single value.

    With groups, the mean of the groups' means, each group resampled within itself.
    """
    x = _finite(values)
    if not x.size:
        raise ValueError("the mean of no values")
    names = np.asarray(groups if groups is not None else [""] * x.size)
    parts = [x[names == name] for name in dict.fromkeys(names.tolist())]
    mean = math.fsum(math.fsum(part) / part.size for part in parts) / len(parts)
    if x.size < 2:
        return mean, None
    means = sum(_resampled(part, number) for number, part in enumerate(parts)) / len(parts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return mean, (float(low), float(high))


def paired_bootstrap(
    left: Sequence[float], right: Sequence[float], groups: Sequence[str] | None = None
) -> tuple[float, tuple[float, float] | None]:
    """left − right on the same items, item by item: the mean difference and its 95 % interval."""
    return bootstrap([a - b for a, b in zip(left, right, strict=True)], groups)


def _resampled(x: NDArray[np.float64], group: int) -> NDArray[np.float64]:
    """Means of resamples as large as the sample."""
    import torch

    from fedsdr.tensors import generator

    draws, share = generator("bootstrap", group, x.size), max(1, AT_ONCE // x.size)
    means = list[NDArray[np.float64]]()
    for first in range(0, RESAMPLES, share):
        size = (min(share, RESAMPLES - first), x.size)
        means.append(x[torch.randint(0, x.size, size, generator=draws).numpy()].mean(axis=1))
    return np.concatenate(means)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError(f"values must be finite: {list(values)}")
    return x


def _constant(x: NDArray[np.float64]) -> bool:
    return float(np.ptp(x)) <= ROUNDING * float(np.abs(x).max())
