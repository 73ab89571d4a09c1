"""The label mask as `fedsdr plan` shows it."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsdr.cli.app import app
from fedsdr.cli.plan_view import show_plan
from fedsdr.jobs.plan import make_plan
from fedsdr.jobs.plan.shape import Plan
from fedsdr.recipe.settings import build_recipe

SAID = ["Who is Ada?", "The Ada of ward 3.", "And Bob?", "Bob went home."]
RECIPE: dict[str, Any] = {
    "data": {"files": {"ward": "d.jsonl"}, "validation": 0.0, "test": 0.0},
    "algorithm": {"name": "fedavg"},
    "training": {"rounds": 1, "local_steps": 1},
    "run": {"threads": 1},
}


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One row of one turn, then one of two."""
    roles = ["user", "assistant"] * 2
    turns = [{"role": r, "content": c} for r, c in zip(roles, SAID, strict=True)]
    rows = [{"messages": turns[:2]}, {"messages": turns}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(**model: Any) -> Plan:
    return make_plan(build_recipe({**RECIPE, "model": model}))


def shown(found: Plan, **console: Any) -> str:
    out = StringIO()
    show_plan(Console(file=out, width=200, **console), found)
    return out.getvalue().partition("one example as it is trained on")[2]


@pytest.mark.usefixtures("ward")
def test_every_answer_that_is_trained_is_underlined() -> None:
    found = plan(train_on="all")
    seen = shown(found, force_terminal=True, color_system="standard")
    underlined = re.findall(r"\x1b\[4;32m(.*?)\x1b\[0m", seen)
    assert underlined == [f"{SAID[1]}<|end|>", f"{SAID[3]}<|end|>"]
    assert SAID[0] in seen
    assert SAID[2] in seen
    seen = shown(plan(), force_terminal=True, color_system="standard")
    assert re.findall(r"\x1b\[4;32m(.*?)\x1b\[0m", seen) == [f"{SAID[1]}<|end|>"]


@pytest.mark.usefixtures("ward")
def test_without_colours_brackets_mark_it() -> None:
    seen = shown(plan(train_on="all"), force_terminal=True, color_system=None)
    assert re.findall("⟦(.*?)⟧", seen)[-2:] == [f"{SAID[1]}<|end|>", f"{SAID[3]}<|end|>"]


@pytest.mark.usefixtures("ward")
def test_without_a_terminal_the_lengths_only() -> None:
    found = plan(train_on="all")
    seen = shown(found, force_terminal=False)
    counts = [int(n) for n in re.findall(r"(\d+) (?:read|trained)", seen)]
    assert len(counts) == 4
    assert sum(counts) == len(found.example)
    assert re.findall("read|trained", seen) == ["read", "trained"] * 2
    assert "Ada" not in seen
    assert "\x1b" not in seen


def test_plan_counts_what_is_cut(ward: Path) -> None:
    (ward / "recipe.json").write_text(json.dumps({**RECIPE, "model": {"train_on": "all"}}))
    whole = max(len(row) for row in [plan().example])
    change = f"model.max_length={whole - 3}"
    result = CliRunner().invoke(app, ["plan", "recipe.json", "--json", "--set", change])
    (client,) = json.loads(result.stdout)["clients"]
    assert (client["train"], client["truncated"]) == (2, 1)
    assert "Ada" not in result.output
