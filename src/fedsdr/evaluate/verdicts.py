"""One contrast between two methods: how it is written, what came out, and that in plain words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fedsdr.errors import RecipeError
from fedsdr.evaluate.statistics import Summary

ALPHA = 0.05
# Any other measure, such as length, is neither: its verdicts say higher and lower, not better.
BETTER: Mapping[str, Literal["higher", "lower"]] = MappingProxyType(
    {
        "recall": "higher",
        "retention": "higher",
        "house_share": "higher",
        "hallucination": "lower",
        "redundancy": "lower",
        "omission": "lower",
    }
)
SPELT = {"fedavg": "FedAvg", "fedprox": "FedProx", "fedsd": "FedSD", "fedsdr": "FedSDR"}
GRAMMAR = re.compile(r"([^\s:>]+:[^\s:>]+)\s*>\s*([^\s:>]+:[^\s:>]+)\s+on\s+([^\s:>]+)")


@dataclass(frozen=True, slots=True)
class Contrast:
    """`left` against `right`, each `method:mix`, on one measure; the tests are two-sided."""

    left: str
    right: str
    measure: str

    def __post_init__(self) -> None:
        if not GRAMMAR.fullmatch(str(self)):
            raise _malformed(str(self))
        if self.left == self.right:
            raise RecipeError(f"contrast '{self}' compares {self.left} with itself")

    @classmethod
    def parse(cls, text: str) -> Contrast:
        match = GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise _malformed(text)
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"{self.left} > {self.right} on {self.measure}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What came out of one contrast: left - right, over the seeds that both have."""

    contrast: Contrast
    seeds: tuple[int, ...]
    left_out: tuple[int, ...]
    difference: Summary | None  # None when the two have no seed in common
    paired_t_p: float | None
    sign_flip_p: float | None
    paired_t_holm: float | None
    sign_flip_holm: float | None
    lowest_holm: float | None  # `sign_flip_holm` if in every contrast all seeds agreed
    family: int  # how many contrasts Holm's correction is over

    @property
    def holds_up(self) -> bool:
        """Both adjusted p below .05; the sign-flip p alone where t is undefined (no variance)."""
        if self.sign_flip_holm is None or self.sign_flip_holm >= ALPHA:
            return False
        return self.paired_t_holm is None or self.paired_t_holm < ALPHA

    @property
    def hopeless(self) -> bool:
        """So few seeds, or so many contrasts, that no outcome could have held up."""
        return self.lowest_holm is None or self.lowest_holm >= ALPHA

    @property
    def verdict(self) -> str:
        return _verdict(self)


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _verdict(finding: Finding) -> str:
    text = _outcome(finding)
    if finding.left_out:
        noun = "seed" if len(finding.left_out) == 1 else "seeds"
        seeds = ", ".join(map(str, finding.left_out))
        text += f" Without {noun} {seeds}, which only one of the two has."
    return text


def _outcome(finding: Finding) -> str:
    left, right = _names(finding.contrast)
    measure, n, difference = finding.contrast.measure, len(finding.seeds), finding.difference
    if difference is None:
        return f"{left} and {right} cannot be compared on {measure}: they have no seed in common."
    if abs(difference.mean) < 1e-12:
        return f"{left} and {right} are level on {measure} over {counted(n, 'seed')}."
    higher, better = difference.mean > 0, BETTER.get(measure)
    if better is None:
        verb = "is higher than" if higher else "is lower than"
    elif higher == (better == "higher"):
        verb = "beats" if finding.holds_up else "is ahead of"
    else:
        verb = "loses to" if finding.holds_up else "is behind"
    remark = " (lower is better)" if better == "lower" else ""
    text = f"{left} {verb} {right} on {measure}{remark} by {abs(difference.mean):.3f}"
    if difference.interval is not None:
        low, high = difference.interval if higher else [-x for x in reversed(difference.interval)]
        text += f" [{low:z.3f}, {high:z.3f}]"
    if n < 6:
        return f"{text}; with fewer than 6 seeds nothing can be significant."
    if finding.hopeless:
        contrasts = counted(finding.family, "contrast")
        return f"{text}; with {n} seeds and {contrasts} nothing can be significant."
    if finding.holds_up:
        return f"{text}; this holds up ({_tests(finding)})."
    return f"{text}; the difference does not hold up ({_tests(finding)})."


def _tests(finding: Finding) -> str:
    shown = {"paired t": finding.paired_t_holm, "sign-flip": finding.sign_flip_holm}
    tests = [f"{test} {_p(p)}" for test, p in shown.items()]
    return ", ".join([*tests, f"Holm over {counted(finding.family, 'contrast')}"])


def _p(p: float | None) -> str:
    if p is None:
        return "undefined as all seeds differ by the same amount"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def _names(contrast: Contrast) -> tuple[str, str]:
    """The methods as people spell them; a mix is said unless it goes without saying."""
    (left, left_mix), (right, right_mix) = contrast.left.split(":"), contrast.right.split(":")
    quiet = "global" if left != right else ""

    def name(method: str, mix: str) -> str:
        return SPELT.get(method, method) + (f" ({mix})" if mix != quiet else "")

    return name(left, left_mix), name(right, right_mix)


def _malformed(text: str) -> RecipeError:
    return RecipeError(
        f"cannot read the contrast {text!r}; write METHOD:MIX > METHOD:MIX on MEASURE, "
        "as in 'fedsd:global > fedavg:global on recall'"
    )
