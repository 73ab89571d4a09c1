"""Mixes are read as they are meant, or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedsdr.errors import FedsdrError, RecipeError
from fedsdr.parts.algorithm import Algorithm, Fade, PerInput, Stage, Term, mix_weights, split_mix
from fedsdr.parts.moves import When
from fedsdr.parts.views import Mixed, Raw

READ: dict[str, dict[str, float]] = {
    "": {},
    "  ": {},
    "R": {"R": 1.0},
    "R+S": {"R": 1.0, "S": 1.0},
    " R + 0.5 * S ": {"R": 1.0, "S": 0.5},
    "0.5*R+.25*L": {"R": 0.5, "L": 0.25},
    "1.*R": {"R": 1.0},
    "1e-3*R": {"R": 1e-3},
    "0*R+1*L": {"R": 0.0, "L": 1.0},
    "R.A+R.B": {"R.A": 1.0, "R.B": 1.0},
    "P+R": {"P": 1.0, "R": 1.0},
    "1000*R": {"R": 1000.0},
}
REFUSED = (
    "R+R", "2*R+R", "R+S+R", "R+R.A", "R.B+R", "1.2.3*R", "1..2*R", ".*R", "1e*R", "1e+3*R", "-1*R",
    "+R", "R+", "R++S", "+", "R+ +S", "R S", "R*2", "2R", "2**R", "*R", "nan*R", "inf*R", "1e999*R",
    "1001*R", "٢*R", "２*R", "Ρ", "R\u00a0+S", "R\n", "R\tS", "R\0", "R.A.B", "R.", ".R", "_R", "9",
    "R-S", "R/S", "0.5*P+R", "2*P", "P+P", "R" * 3000, "9" * 5000 + "*R", "+".join(["R"] * 900),
)  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_a_mix_is_read(text: str) -> None:
    assert mix_weights(text) == READ[text]
    assert split_mix(text) == tuple(READ[text])


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text)[:20])
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="mix"):
        mix_weights(text)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Term(Raw(), forward="R+R", train="R"), "R stands there twice; name it once"),
        (lambda: Term(Raw(), forward="R", train="0.5*R"), "train '0.5\\*R': R has a weight"),
        (lambda: Term(Raw(), forward="R", train="R", weight=math.nan), "its weight must be finite"),
        (lambda: Algorithm("x", (), share="0.5*R"), "share '0.5\\*R': R has a weight"),
        (lambda: Algorithm("x", (), deploys={"global": "1.2.3*R"}), "'1.2.3\\*R' is neither"),
        (lambda: PerInput("R", "L"), "it has no L to weigh by the input"),
        (lambda: PerInput("R+L", "L", highest=1.5), "between 0 and 1"),
        (lambda: PerInput("R+L", "L", prompts=0), "above 0"),
        (lambda: Fade("S", math.inf), "must be finite"),
        (lambda: Fade("S", 1.0, 1.5), "between 0 and 1"),
        (lambda: When(first=0), "at least 1"),
        (lambda: When(every=0), "at least 1"),
        (lambda: Mixed(1.5), "share must lie between 0 and 1"),
        (lambda: Mixed(math.nan), "share must lie between 0 and 1"),
    ],
)
def test_parts_of_an_algorithm_are_looked_at_when_they_are_made(made: Any, told: str) -> None:
    with pytest.raises(FedsdrError, match=told):
        made()


def test_a_stage_without_terms_is_still_a_stage() -> None:
    assert Stage(()).trains() == set()
