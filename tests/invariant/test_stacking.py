"""K clients side by side end where K clients one after another end: by options and ways of training
(with its defaults, every algorithm does so in test_check_algorithm.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.views import Mixed, Rewritten
from toy import SPECS, clients, largest_difference, moved, toy

SIZES = (2, 7, 4, 1)
ABLATIONS = ("without_s", "without_r", "share_both", "share_s", "r_on_rewritten", "s_on_raw")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("fedprox", {"mu": 0.5}),
    ("fedavgm", {"variant": "damped"}),
    ("fedadam", {"variant": "squared_momentum"}),
    ("hetlora", {"weights": "examples"}),
    ("fedrot_lora", {"lam": 1.0}),
    ("fedper", {"blocks": 2}),
    ("fedala", {"eta": 10.0, "first_passes": 1}),
    ("feddpa", {"variant": "F", "federated_rounds": 1}),
    ("fdlora", {"sync_every": 2, "inner_epochs": 1.5}),
    ("fdsp", {"injection": "rank_drop", "tokens": "gold", "layers": "depth"}),
    ("fdsp", {"injection": "module_drop", "growth": 1.0, "layers": "drift", "warmup": 0.0}),
    ("fedsd", {"selection": "facts"}),
    ("fedsd", {"selection": "resample(2)"}),
    ("fedsd", {"teacher": "global", "redistill_every": 1}),
    *[("fedsdr", {"ablation": ablation}) for ablation in ABLATIONS],
    ("fedsdr", {"schedule": "joint"}),
    ("fedsdr", {"schedule": "warmup"}),
    ("fedsdr", {"schedule": "joint", "s_dropout": 0.5}),
    ("fedsdr", {"s_state": "reset"}),
    ("fedsdr", {"s_dropout": 0.5, "s_scale": 0.7}),
    ("fedsdr", {"match_compute": True}),
    ("fedsdr", {"smooth_epochs": 0.5, "rectify_epochs": 2.0}),
    ("fedsdr", {"teacher": "global", "redistill_every": 2}),
]


def stacked_against_one_by_one(
    base: BaseModel, algorithm: Algorithm, tmp_path: Path, training: LocalSettings, **more: Any
) -> float:
    ends = []
    for stack in (len(SIZES), 1):
        with toy(
            base,
            algorithm,
            tmp_path / str(stack),
            clients(SIZES),
            stack=stack,
            cache=tmp_path / "rewrites",
            training=training,
            **more,
        ) as one:
            outcome = one.play(rounds=3)
            ends.append(one.tensors(outcome))
            first = one.branches.first()
    assert not first or moved(ends[0], first) > 1e-3
    return largest_difference(*ends)


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[f"{n}-{o}" if o else n for n, o in VARIANTS]
)
def test_stacked_equals_one_by_one(
    name: str, options: dict[str, Any], base64: BaseModel, tmp_path: Path
) -> None:
    training = LocalSettings(batch=3)
    algorithm = make_algorithm(name, options)
    assert stacked_against_one_by_one(base64, algorithm, tmp_path, training) <= 1e-9


@pytest.mark.usefixtures("no_fsync")
def test_copying_r_into_s_stacks_too(base64: BaseModel, tmp_path: Path) -> None:
    """`from_R` copies R into S, so the ranks have to agree."""
    algorithm = make_algorithm("fedsdr", {"s_state": "from_R"})
    specs = {"R": SPECS["R"], "S": SPECS["R"]}
    training = LocalSettings(batch=3)
    assert stacked_against_one_by_one(base64, algorithm, tmp_path, training, specs=specs) <= 1e-9


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize(
    "training",
    [
        LocalSettings(batch=4, micro_batch=1),
        LocalSettings(batch=4, loss="examples"),
        LocalSettings(batch=4, optimizer="sgd", weight_decay=0.1),
        LocalSettings(batch=4, weight_decay=0.1, clip=None),
        LocalSettings(batch=4, clip=0.05),
        LocalSettings(batch=4, steps=3),
    ],
    ids=["micro-batch", "examples", "sgd", "decay", "clip", "steps"],
)
def test_every_way_of_training_stacks(
    training: LocalSettings, base64: BaseModel, tmp_path: Path
) -> None:
    algorithm = make_algorithm("fedprox", {"mu": 0.1})
    assert stacked_against_one_by_one(base64, algorithm, tmp_path, training) <= 1e-9


@pytest.mark.usefixtures("no_fsync")
def test_half_a_branch_and_mixed_views_stack(base64: BaseModel, tmp_path: Path) -> None:
    """RoLoRA's kind of stage (only B is trained and shared), on half-rewritten rows."""
    plain = make_algorithm("fedavg")
    (stage,) = plain.stages
    term = replace(stage.terms[0], train="R.B", view=Mixed(0.5, Rewritten()))
    algorithm = replace(plain, stages=(replace(stage, terms=(term,)),), share="R.B")
    training = LocalSettings(batch=3)
    assert stacked_against_one_by_one(base64, algorithm, tmp_path, training) <= 1e-9


@pytest.mark.usefixtures("no_fsync")
def test_in_single_precision_only_rounding_differs(base32: BaseModel, tmp_path: Path) -> None:
    """Not a claim of exactness: AdamW turns a gradient that is all rounding into a full step."""
    training = LocalSettings(batch=3, optimizer="sgd")
    algorithm = make_algorithm("fedsdr")
    assert stacked_against_one_by_one(base32, algorithm, tmp_path, training) <= 1e-4


def test_one_thread_is_used() -> None:
    assert torch.get_num_threads() == 1
