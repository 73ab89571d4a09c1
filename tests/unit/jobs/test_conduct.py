"""What a run says of its rewriting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsdr.coordinator.job import Watch
from fedsdr.jobs.train import resume, train
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import build_recipe
from fedsdr.types import ClientData, Example
from toy import TEXTS

CLIENTS = [
    ClientData(name, tuple(Example(f"{name}{i}", TEXTS[i], TEXTS[i + 1]) for i in range(count)))
    for name, count in (("a", 3), ("b", 1))
]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"selection": "none"}, "rewriting: 4 of 4 rewrites kept"),
        ({"selection": "facts"}, "warning: only 0 of 4 rewrites kept; 4 fell back to the original"),
        ({"teacher": "global", "selection": "facts"}, "warning: only 0 of 4 rewrites kept; 4 fell"),
    ],
)
def test_a_run_says_how_many_rewrites_were_kept(
    options: dict[str, Any], said: str, base32: BaseModel, tmp_path: Path, no_fsync: None
) -> None:
    recipe = build_recipe(
        {
            "algorithm": {"name": "fedsdr", "options": options},
            "lora": {"R": {"rank": 2}, "S": {"rank": 2}},
            "training": {"rounds": 1, "local_steps": 1, "batch": 2},
            "rewriting": {"max_new_tokens": 4},
            "run": {"threads": 1},
        }
    )
    lines = list[str]()
    train(recipe, tmp_path / "run", Watch(note=lines.append), base32, clients=CLIENTS)
    (line,) = [line for line in lines if "rewrites kept" in line]
    assert line.startswith(said)


def test_one_that_does_not_rewrite_says_nothing_of_it(
    base32: BaseModel, tmp_path: Path, no_fsync: None
) -> None:
    recipe = build_recipe(
        {
            "algorithm": {"name": "fedavg"},
            "training": {"rounds": 1, "local_steps": 1},
            "run": {"threads": 1},
        }
    )
    lines = list[str]()
    train(recipe, tmp_path / "run", Watch(note=lines.append), base32, clients=CLIENTS)
    resume(tmp_path / "run", Watch(note=lines.append), base32, clients=CLIENTS)
    assert not [line for line in lines if "rewrites" in line]
