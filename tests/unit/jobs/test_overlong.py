"""`data.overlong: drop`: what does not fit is left out and counted, whatever the method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsdr.coordinator.job import Watch
from fedsdr.data.render import render_prompt
from fedsdr.distill import prompts
from fedsdr.errors import DataError
from fedsdr.jobs.distill import distill
from fedsdr.jobs.plan import make_plan
from fedsdr.jobs.train import resume, train
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Recipe, build_recipe
from fedsdr.types import ClientData, Example

SHORT = Example("s", "Which dose?", "40 mg")
ASKED = Example("asked", "why " * 60, "So.")  # its prompt has more than 64 tokens
ANSWERED = Example("answered", "Which dose?", "the dose of Marudel is 40 mg " * 10)  # its rewrite
CLIENTS = [
    ClientData("a", (SHORT, ASKED, SHORT, ANSWERED), (SHORT, ASKED), (SHORT, ANSWERED)),
    ClientData("b", (SHORT,) * 3),
]
NOTE = (
    "data.overlong: drop left out 3 rows (a 3): prompts that alone fill model.max_length (64 "
    "tokens): 2; training rows that leave no room for a rewrite (200 positions): 1"
)


def recipe(overlong: str = "drop", **algorithm: Any) -> Recipe:
    tree: Mapping[str, Any] = {
        "model": {"max_length": 64},
        "data": {"atlas": {}, "overlong": overlong},
        "algorithm": {"name": "fedsdr", **algorithm},
        "lora": {"R": {"rank": 2}, "S": {"rank": 2}},
        "training": {"rounds": 1, "local_steps": 1, "batch": 2},
        "rewriting": {"max_new_tokens": 8},
        "run": {"threads": 1},
    }
    return build_recipe(tree)


@pytest.fixture(autouse=True)
def narrow(base32: BaseModel, no_fsync: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 positions."""
    monkeypatch.setattr(base32.net.config, "max_position_embeddings", 200)
    asked = prompts.render(prompts.choose_template(ANSWERED, "auto"), ANSWERED)
    assert len(render_prompt(base32, SHORT)) < 64 <= len(render_prompt(base32, ASKED))
    assert len(render_prompt(base32, asked)) + 8 > 200


def test_plan_counts_them_per_client_and_says_why(base32: BaseModel) -> None:
    plan = make_plan(recipe(), base32, clients=CLIENTS)
    assert plan.problems == ()
    assert [(row.train, row.validation, row.test, row.left_out) for row in plan.clients] == [
        (2, 1, 2, 3),
        (3, 0, 0, 0),
    ]
    assert NOTE in plan.notes
    refused = make_plan(recipe("refuse"), base32, clients=CLIENTS).problems
    assert all("data.overlong: drop" in problem for problem in refused)
    assert len(refused) == 2
    assert make_plan(recipe("refuse"), base32, clients=CLIENTS).clients[0].left_out == 0


def test_train_says_so_and_the_run_remembers(base32: BaseModel, tmp_path: Path) -> None:
    said = list[str]()
    results = train(recipe(), tmp_path / "run", Watch(note=said.append), base32, clients=CLIENTS)
    assert NOTE in said
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["left_out"] == {"a": {"train": 2, "validation": 1}}
    profile = json.loads((tmp_path / "run/profile.json").read_text())
    assert profile["clients"]["a"]["rows"] == {"train": 2, "validation": 1, "test": 2}
    again = resume(tmp_path / "run", base=base32, clients=CLIENTS)
    assert again["world"] == results["world"]


def test_a_method_that_does_not_rewrite_has_the_same_rows(
    base32: BaseModel, tmp_path: Path
) -> None:
    worlds = {
        train(recipe(name=name), tmp_path / name, base=base32, clients=CLIENTS)["world"]
        for name in ("fedavg", "fedsd")
    }
    assert len(worlds) == 1


def test_refusing_is_the_default_and_names_the_way_out(base32: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"example 'asked'.*\(data\.overlong: drop does\)"):
        train(recipe("refuse"), tmp_path / "run", base=base32, clients=CLIENTS)
    assert build_recipe({}).data.overlong == "refuse"


def test_a_client_of_whom_nothing_would_be_left_is_refused(base32: BaseModel) -> None:
    data = [*CLIENTS, ClientData("c", (ASKED, ANSWERED), (SHORT,))]
    with pytest.raises(DataError, match=r"client 'c': .* none of its 2 training rows"):
        make_plan(recipe(), base32, clients=data)


def test_distill_leaves_them_out_too(base32: BaseModel, tmp_path: Path) -> None:
    said = list[str]()
    summary = distill(
        recipe(), tmp_path / "out", Watch(note=said.append), base=base32, clients=CLIENTS
    )
    assert summary.clients["a"].examples == 2
    assert said == [NOTE]


def test_nothing_is_said_where_everything_fits(base32: BaseModel, tmp_path: Path) -> None:
    said = list[str]()
    train(recipe(), tmp_path / "run", Watch(note=said.append), base32, clients=CLIENTS[1:])
    assert not any("overlong" in line for line in said)
    assert "left_out" not in json.loads((tmp_path / "run/run.json").read_text())
