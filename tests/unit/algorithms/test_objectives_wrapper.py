"""Objectives added by name to any algorithm."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedprox import fedprox
from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.algorithms.server import with_objectives
from fedsdr.errors import RecipeError
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.lora_rules import Rectified, SelfAug
from fedsdr.parts.objectives import Objective, Sum
from fedsdr.types import Tensors
from toy import clients, largest_difference, toy


def objectives(algorithm: Algorithm) -> list[Objective]:
    return [term.objective for stage in algorithm.stages for term in stage.terms]


@pytest.mark.parametrize("plain", [fedavg(), fedprox(0.5), fedsdr(), fedsdr("joint")])
def test_every_term_gains_them_and_keeps_its_own(plain: Algorithm) -> None:
    changed = with_objectives(plain, {"selfaug": 0.5, "rectified": {"weight": 1, "temperature": 3}})
    assert changed.name == f"{plain.name}~selfaug~rectified"
    wanted = [Sum((one, SelfAug(0.5), Rectified(1, 3))) for one in objectives(plain)]
    assert objectives(changed) == wanted
    views = [[(t.view, t.train, t.fade) for t in s.terms] for s in plain.stages]
    assert views == [[(t.view, t.train, t.fade) for t in s.terms] for s in changed.stages]


def test_what_weighs_nothing_is_left_out() -> None:
    assert with_objectives(fedavg(), {}) == fedavg()
    assert with_objectives(fedavg(), {"selfaug": 0, "rectified": {"weight": 0.0}}) == fedavg()
    one = with_objectives(fedavg(), {"selfaug": 0.0, "rectified": 0.5})
    assert one.name == "fedavg~rectified"
    assert objectives(one) == [Sum((*objectives(fedavg()), Rectified(0.5)))]


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"selfaugh": 0.5}, r"'selfaugh' is unknown; there are selfaug, rectified\. Did you mean "),
        ({"selfaug": -0.5}, r"\.selfaug\.weight must be a number from 0 to 1e\+12, it is -0.5"),
        ({"selfaug": math.nan}, r"\.selfaug\.weight must .* it is nan"),
        ({"selfaug": math.inf}, r"\.selfaug\.weight must .* it is inf"),
        ({"selfaug": True}, r"\.selfaug\.weight must .* it is True"),
        ({"selfaug": "much"}, r"\.selfaug\.weight must .* it is 'much'"),
        ({"selfaug": None}, r"\.selfaug\.weight must .* it is None"),
        ({"selfaug": [1]}, r"\.selfaug\.weight must .* it is of type list"),
        ({"selfaug": {}}, r"\.selfaug needs a weight, such as selfaug: 0.5"),
        ({"selfaug": {"weigth": 1}}, r"\.selfaug has no option 'weigth'; .* 'weight'\?"),
        ({"selfaug": {1: 1}}, r"\.selfaug has no option 1; its options are weight\."),
        ({"rectified": {"temperature": 2.0}}, r"\.rectified needs a weight"),
        (
            {"rectified": {"weight": 1, "temperature": 0}},
            r"\.rectified\.temperature must be a number from 0.01 to 1000, it is 0",
        ),
        ({"rectified": {"weight": 0, "temperature": -1}}, r"\.rectified\.temperature must"),
    ],
)
def test_what_makes_no_sense_is_refused(chosen: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=r"^algorithm\.objectives.*" + told):
        with_objectives(fedavg(), chosen)


@pytest.mark.usefixtures("no_fsync")
def test_they_change_what_is_learned(base64: BaseModel, tmp_path: Path) -> None:
    def end(algorithm: Algorithm) -> Tensors:
        with toy(base64, algorithm, tmp_path / algorithm.name, clients((4, 3))) as one:
            return one.play(rounds=2).state.shared

    plain = end(fedavg())
    for name in ("selfaug", "rectified"):
        other = end(with_objectives(fedavg(), {name: 1.0}))
        assert largest_difference(plain, other) > 1e-4, name
