"""Mixes, how branches are added up ("R+0.5*S"); and parts, what is trained or shared ("R+S.B").

A branch stands in a text once: `2*R` says what `R+R` would.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from fedsdr.errors import RecipeError
from fedsdr.types import FOLD

HEAVIEST = 1000.0  # weight of a branch
LONGEST = 2000  # characters
_PART = re.compile(
    r"(?:((?:\d+(?:\.\d*)?|\.\d+)(?:[eE]-?\d+)?) *\* *)?([A-Za-z]\w*(?:\.\w+)?)", re.ASCII
)


def weights_of(text: str) -> dict[str, float]:
    """`"R+0.5*S"` -> `{"R": 1.0, "S": 0.5}`; the empty mix is the base alone."""
    if len(text) > LONGEST:
        raise RecipeError(f"mix {text!r}: longer than {LONGEST:,} characters")
    weights = dict[str, float]()
    for piece in text.split("+") if text.strip(" ") else ():
        match = _PART.fullmatch(piece.strip(" "))
        if match is None:
            raise RecipeError(
                f"mix {text!r}: {piece.strip()!r} is neither a branch nor number*branch"
            )
        weight, name = float(match[1] or 1.0), match[2]
        if not weight <= HEAVIEST:
            raise RecipeError(f"mix {text!r}: {name} counts {weight:g}; {HEAVIEST:g} is the most")
        if clash := next((known for known in weights if _overlap(known, name)), None):
            also = "twice" if clash == name else f"beside {clash}, which shares numbers with it"
            raise RecipeError(f"mix {text!r}: {name} stands there {also}; name it once")
        weights[name] = weight
    if weights.get(FOLD, 1.0) != 1.0:
        raise RecipeError(f"mix {text!r}: {FOLD} is what the base became, and counts as it is")
    return weights


def refuse_weights(what: str, text: str) -> None:
    """Of what is trained or shared: a weight would mean nothing there."""
    for name, weight in weights_of(text).items():
        if weight != 1.0:
            raise RecipeError(f"{what} {text!r}: {name} has a weight, which means nothing there")


def is_part(name: str, parts: Collection[str]) -> bool:
    """Whether the tensor "R/<layer>.A" belongs to one of the parts ("R", "R.A")."""
    branch, half = name.partition("/")[0], name.rpartition(".")[2]
    return branch in parts or f"{branch}.{half}" in parts


def _overlap(one: str, other: str) -> bool:
    """ "R" and "R.A" do, "R.A" and "R.B" do not."""
    same = one.partition(".")[0] == other.partition(".")[0]
    return one == other or (same and ("." not in one or "." not in other))
