"""`fedsdr sweep` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from fedsdr.cli.app import Verbs
from fedsdr.cli.sweep import sweep
from fedsdr.errors import RoundFailed
from fedsdr.jobs.sweep import work

app = typer.Typer(cls=Verbs)
app.callback()(lambda: None)
app.command()(sweep)


@pytest.fixture(autouse=True)
def _file(tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    tune = {"seeds": [9], "grid": {"training.lr": [0.001, 0.01]}}
    asked = {"methods": {"fedavg": {}, "fedprox": {}}, "seeds": [1, 2], "tune": tune}
    asked["contrasts"] = ["fedprox:global > fedavg:global on loss"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**tree, "sweep": asked}))


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["sweep", "s.yaml", "--out", "out dir", *words])


def test_from_nothing_to_the_table_and_the_page(tmp_path: Path) -> None:
    done = call("--markdown", "docs/t.md")
    assert done.exit_code == 0, done.output
    for words in (
        "cell 1 of 8: tuning fedavg seed 9, training.lr=0.001",
        "cell 8 of 8: fedprox seed 2",
        "tuned fedprox: training.lr=",
        "value of its grid",
        "test scores, mean ± sd over seeds",
        "loss_worst",
        "MB up",
        "FedProx",
        "on loss by",
    ):
        assert words in done.stdout, words
    page = (tmp_path / "docs/t.md").read_text()
    assert "fedsdr sweep s.yaml --out 'out dir' --markdown docs/t.md\n" in page
    assert "| fedprox | global | 2 | " in page
    told = json.loads(call("--json").stdout)
    assert told["failed"] == told["waiting"] == told["open"] == []
    assert told["tuning"]["settings"]["all"]["fedavg"]["picked"]["training.lr"] in (0.001, 0.01)
    (setting,) = told["settings"]
    assert setting["rows"][0]["summaries"]["loss"]["interval"] is not None
    assert "cells/all/fedprox/2" in told["cells"]
    assert call("--markdown", "docs/t.md").exit_code == 0
    assert (tmp_path / "docs/t.md").read_text() == page


def test_a_dry_run_lists_cells_and_writes_nothing(tmp_path: Path) -> None:
    done = call("--dry-run")
    assert done.exit_code == 0
    assert "open  tune/all/fedavg/9-training.lr=0.001" in done.stdout
    assert "waiting for tuning  cells/all/fedprox/2" in done.stdout
    assert "8 cells: 4 open, 4 waiting for tuning" in done.stdout
    assert json.loads(call("--dry-run", "--json").stdout)["counts"]["open"] == 4
    assert not (tmp_path / "out dir").exists()


def test_shards_wait_for_each_other_in_words() -> None:
    first = call("--shard", "0/2")
    assert first.exit_code == 0
    assert "still to come: tune/all/fedavg/9-training.lr=0.01, tune/all/fedprox" in first.stderr
    assert "run again when the other shard is done" in first.stderr
    tuned = call("--tune-only")
    assert tuned.exit_code == 0
    assert "tuned fedavg: training.lr=" in tuned.stdout
    assert tuned.stderr == ""


def test_failures_end_with_code_1_and_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    train = work.train

    def diverging(recipe: Any, *rest: Any) -> Any:
        if recipe.seed == 2:
            raise RoundFailed("training diverged")
        return train(recipe, *rest)

    monkeypatch.setattr(work, "train", diverging)
    done = call()
    assert done.exit_code == 1
    assert "failed: out dir/cells/all/fedavg/2.json: training diverged" in done.stderr
    assert "--retry-failed" in done.stderr
    monkeypatch.undo()


def test_a_stop_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "train", stopped)
    done = call()
    assert done.exit_code == 130
    assert "the same command with --out 'out dir' goes on" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shard", "2/2"], "write it as I/N"),
        (["--shard", "x"], "write it as I/N"),
        (["--only", "fedpro"], "Did you mean 'fedprox'"),
        (["--set", "sweep.seeds=[9]"], "9 is also in sweep.seeds"),
        (["--set", "sweep.seed=[9]"], "unknown key 'sweep.seed'"),
        (["--set", "training.lrr=1"], "Did you mean 'lr'"),
    ],
)
def test_mistakes_end_with_code_2_and_run_nothing(
    words: list[str], says: str, tmp_path: Path
) -> None:
    done = call(*words)
    assert done.exit_code == 2
    assert says in done.stderr
    assert not (tmp_path / "out dir").exists()
