"""Which rewrites are trained on, and which examples fall back to their original response."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedsdr.distill.checks import fact_reasons, sdft_reasons
from fedsdr.errors import RecipeError, nearest
from fedsdr.types import Example

Rule = Literal["none", "sdft", "facts"]
MOST_DRAWS = 64
_RESAMPLE = re.compile(r"resample\(\s*(-?\d+)\s*\)")


@dataclass(frozen=True, slots=True)
class Selection:
    """`none`: every rewrite, whatever it says. `sdft`: the checks of the SDFT code. `facts`: those,
    and no number, name, date or negation lost or invented. `resample(n)`: up to `n` drafts, the
    first that passes `facts`."""

    name: str
    rule: Rule
    draws: int = 1


@dataclass(frozen=True, slots=True)
class Draft:
    """One sampled rewrite; `hit_limit` when generation stopped at its token limit."""

    text: str
    hit_limit: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The response to train on. `draw` is the draft kept; None, and the `reasons`, if none was."""

    text: str
    kept: bool
    draw: int | None
    reasons: tuple[str, ...]


def parse_selection(text: str) -> Selection:
    name = text.strip()
    if name in ("none", "sdft", "facts"):
        return Selection(name, name)
    if found := _RESAMPLE.fullmatch(name):
        # Bounded before int(): Python refuses to read thousands of digits.
        draws = int(found[1]) if len(found[1]) <= 4 else MOST_DRAWS + 1
        if not 1 <= draws <= MOST_DRAWS:
            raise RecipeError(f"selection {text!r}: n must lie between 1 and {MOST_DRAWS}.")
        return Selection(f"resample({draws})", "facts", draws)
    known = ("none", "sdft", "facts", "resample(4)")
    raise RecipeError(
        f"selection {text!r} is not one of none, sdft, facts, resample(n).{nearest(name, known)}"
    )


def passes(selection: Selection, example: Example, draft: Draft) -> tuple[str, ...]:
    """Why the draft may not be trained on; nothing when it may.

    An empty rewrite passes nowhere, not even `none`: there would be no token to train on.
    """
    if selection.rule == "none":
        return () if draft.text.strip() else ("empty",)
    reasons = sdft_reasons(example, draft.text, draft.hit_limit)
    if selection.rule == "sdft" or reasons == ("empty",):
        return reasons
    return (*reasons, *fact_reasons(example, draft.text))


def select(selection: Selection, example: Example, drafts: Sequence[Draft]) -> Choice:
    """The first of the drafts that passes, else the original with the reasons of all drafts."""
    if not drafts:
        raise ValueError(f"example {example.id!r}: there is no draft to select from")
    reasons: dict[str, None] = {}
    for draw, draft in enumerate(drafts[: selection.draws]):
        refused = passes(selection, example, draft)
        if not refused:
            return Choice(draft.text, kept=True, draw=draw, reasons=())
        reasons |= dict.fromkeys(refused)
    return Choice(example.response, kept=False, draw=None, reasons=tuple(reasons))
