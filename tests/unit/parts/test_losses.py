"""Every loss has a name, and the one that stands for the round is of what is shared."""

from __future__ import annotations

from typing import Any

import pytest

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.local import main_loss, term_losses
from fedsdr.parts.views import Mixed, Raw

R, S, L = "R on raw", "S on rewritten", "L on raw"


@pytest.mark.parametrize(
    ("name", "options", "round", "names", "main"),
    [
        ("fedavg", {}, 1, {"loss": R}, R),
        ("fedsd", {}, 1, {"loss": "R on rewritten"}, "R on rewritten"),
        ("fedsdr", {}, 1, {"loss": S, "loss_2": R}, R),
        ("fedsdr", {"schedule": "joint"}, 1, {"loss": S, "loss_1_2": R}, R),
        ("fedsdr", {"schedule": "warmup"}, 1, {"loss": S}, S),
        ("fedsdr", {"schedule": "warmup"}, 2, {"loss_2": R}, R),
        ("fedsdr", {"ablation": "share_s"}, 1, {"loss": S, "loss_2": R}, S),
        ("fedsdr", {"ablation": "share_both"}, 1, {"loss": S, "loss_2": R}, R),
        ("ditto", {}, 1, {"loss": R, "loss_2": "V on raw"}, R),
        ("pfedlora", {}, 1, {"loss": L, "loss_2": R}, R),
        ("feddpa", {}, 2, {"loss": L, "loss_2": R}, R),
        ("fedala", {}, 3, {"loss_2": "W on raw", "loss_3": R}, R),
        ("rolora", {}, 2, {"loss_2": "R.A on raw"}, "R.A on raw"),
        ("local", {}, 1, {"loss": R}, R),
    ],
)
def test_what_is_trained_on_what(
    name: str, options: dict[str, Any], round: int, names: dict[str, str], main: str
) -> None:
    algorithm = make_algorithm(name, options)
    assert {loss.metric: loss.name for loss in term_losses(algorithm, round)} == names
    chosen = main_loss(algorithm, round)
    assert chosen is not None
    assert chosen.name == main


def test_two_of_one_name_are_told_apart() -> None:
    raw, mixed = Term(Raw(), forward="R", train="R"), Term(Mixed(0.5), forward="R", train="R")
    algorithm = Algorithm("x", (Stage((raw, mixed)), Stage((raw, raw))))
    assert [loss.name for loss in term_losses(algorithm, 1)] == [
        *("R on raw (stage 1)", "R on mixed"),
        *("R on raw (stage 2)", "R on raw (stage 2, term 2)"),
    ]
