"""Views: which examples a term trains on.

The grammar of `selection`: which rewrites are trained on. What a rule needs of the machine (a
classifier, a sandbox) `distill.selection` looks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from fedsdr.errors import RecipeError, nearest

Rule = Literal["none", "sdft", "facts", "task"]
MOST_DRAWS = 64
_RESAMPLE = re.compile(r"resample\(\s*(-?\d+)\s*(?:,\s*(.*\S)\s*)?\)", re.DOTALL)
_RULE = re.compile(
    r"(?P<rule>none|sdft|facts|task)(?P<tests>\s*\+\s*tests)?"
    r"(?:\s*\+\s*nli\(\s*(?P<least>[0-9.]{1,20})\s*,\s*(?P<folder>[^()]*[^()\s])\s*\))?"
)


@dataclass(frozen=True, slots=True)
class Selection:
    """`none`: every rewrite, whatever it says. `sdft`: the checks of the SDFT code. `facts`: those,
    and no number, name, date or negation lost or invented. `task`: what the answer would be judged
    by, and no refusal. `+tests`: code passes the tests that the original passes. `+nli(p, FOLDER)`:
    a classifier finds original and rewrite to entail each other. `resample(n, rule)`: up to `n`
    drafts, the first that passes."""

    name: str
    rule: Rule
    draws: int = 1
    tests: bool = False
    entailed: float = 0.0
    classifier: Path | None = None


def parse_selection(text: str) -> Selection:
    """Refused by RecipeError where it is none."""
    name = text.strip()
    if not (resample := _RESAMPLE.fullmatch(name)):
        return _parse_rule(name, text)
    # Bounded before int(): Python refuses to read thousands of digits.
    draws = int(resample[1]) if len(resample[1]) <= 4 else MOST_DRAWS + 1
    if not 1 <= draws <= MOST_DRAWS:
        raise RecipeError(f"selection {text!r}: n must lie between 1 and {MOST_DRAWS}.")
    rule = _parse_rule(resample[2] or "facts", text)
    name = f"resample({draws}, {rule.name})" if resample[2] else f"resample({draws})"
    return Selection(name, rule.rule, draws, rule.tests, rule.entailed, rule.classifier)


def _parse_rule(rule: str, text: str) -> Selection:
    match = _RULE.fullmatch(rule)
    if not match:
        known = ("none", "sdft", "facts", "task", "task+tests", "resample(4)", "resample(4, task)")
        raise RecipeError(
            f"selection {text!r} is not one of none, sdft, facts, task, resample(n), "
            "resample(n, rule), with +tests behind task and +nli(0.5, FOLDER) behind any."
            f"{nearest(rule, known)}"
        )
    name, folder, least = match["rule"], match["folder"], 0.0
    tests = match["tests"] is not None
    if tests:
        if name != "task":
            raise RecipeError(f"selection {text!r}: +tests belongs to task; write task+tests")
        name += "+tests"
    if folder is not None:
        try:
            least = float(match["least"])
        except ValueError:
            least = -1.0
        if not 0 < least < 1:
            raise RecipeError(f"selection {text!r}: nli's probability must lie between 0 and 1")
        name += f"+nli({least:g}, {folder})"
    classifier = Path(folder).expanduser() if folder is not None else None
    return Selection(name, cast(Rule, match["rule"]), 1, tests, least, classifier)


Teacher = Literal["base", "global"]


@dataclass(frozen=True, slots=True)
class Raw:
    """The client's own answers."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The answers as the teacher rewrote them (FedSD), by the selection rule of `selection`.

    The teacher is the base, once; or the global model of the round, again every `redistill_every`
    rounds.
    """

    selection: str = "none"
    teacher: Teacher = "base"
    redistill_every: int = 0

    def __post_init__(self) -> None:
        parse_selection(self.selection)  # a typing error shows here, not after hours of training


@dataclass(frozen=True, slots=True)
class Mixed:
    """Each example rewritten with probability `share`, else raw; the draw is fixed per example, by
    the run's seed."""

    share: float
    rewritten: Rewritten = Rewritten()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise RecipeError(f"Mixed: share must lie between 0 and 1, it is {self.share}")


View = Raw | Rewritten | Mixed
