"""Sweeps on a tiny Llama and two clients of a few rows: resume, shards, failures, worlds."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedsdr.coordinator.job import Watch
from fedsdr.errors import CorruptArtifact, RecipeError, RoundFailed, RunError
from fedsdr.jobs.sweep import Observer, Sweep, run_sweep, survey, work
from fedsdr.jobs.sweep.recipe import parse_sweep
from fedsdr.runs.files import make_private
from fedsdr.runs.lock import run_lock

TUNE: dict[str, Any] = {"seeds": [9], "grid": {"training.lr": [0.001, 0.01]}}


def sweep_of(tree: dict[str, Any], **changes: Any) -> Sweep:
    chosen = {"methods": {"fedavg": {}, "fedprox": {}}, "seeds": [1, 2]} | changes
    return parse_sweep({**tree, "sweep": chosen})


def files(out: Path) -> dict[str, Any]:
    """All that must be the same every time: everything but the clock."""
    found = {
        p.relative_to(out).as_posix(): json.loads(p.read_text())
        for folder in ("cells", "tune")
        for p in (out / folder).rglob("*.json")
    }
    for record in found.values():
        record.pop("seconds", None)
    return found


class Counting:
    """Counts the runs that were begun, and may do something in the middle of one."""

    def __init__(self, stop_at: str = "", round: int = 1, error: type[BaseException] | None = None):
        self.begun, self.said = list[str](), list[str]()
        self.stop_at, self.round, self.error = stop_at, round, error

    @property
    def observer(self) -> Observer:
        return Observer(self.said.append, self.watching)

    def watching(self, title: str, rounds: int) -> AbstractContextManager[Watch]:
        return self._watch(title)

    @contextmanager
    def _watch(self, title: str) -> Generator[Watch]:
        self.begun.append(title)

        def told(row: Any) -> None:
            if title == self.stop_at and row["round"] == self.round and self.error is not None:
                raise self.error("in the middle")

        yield Watch(told=told)


def test_every_cell_leaves_one_small_file_and_is_not_run_again(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    sweep, first = sweep_of(tree, boosted=["fedavg"]), Counting()
    result = run_sweep(sweep, tmp_path, first.observer)
    assert [f"{c.label} {c.seed}" for c, _ in result.records] == [
        f"{label} {seed}" for seed in (1, 2) for label in ("fedavg", "fedprox", "fedsd+fedavg")
    ]
    assert len(first.begun) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells", "rewrites"]
    record = json.loads((tmp_path / "cells/all/fedsd+fedavg/2.json").read_text())
    assert (record["label"], record["method"], record["seed"]) == ("fedsd+fedavg",) * 2 + (2,)
    assert record["changes"] == {"algorithm.name": "fedavg", "algorithm.boosted": True}
    assert {"rewriting", "rounds", "final scores"} <= record["seconds"].keys()
    assert {"loss", "loss_worst"} <= record["scores"]["global"].keys()
    assert record["rewriting"]
    assert "clients" not in record
    assert record["validation"]["measure"] == "loss"
    assert record["validation"]["best"]["global"] > 0
    worlds = {(c.seed, r["world"]) for c, r in result.records}
    assert len(worlds) == 2
    again = Counting()
    assert len(run_sweep(sweep, tmp_path, again.observer).records) == 6
    assert again.begun == []


def test_stopped_in_the_middle_it_ends_with_the_same_files(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_of(tree, tune=TUNE)
    run_sweep(sweep, tmp_path / "whole")
    stopped = Counting("fedprox seed 1", 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, tmp_path / "cut", stopped.observer)
    states = dict(survey(sweep, tmp_path / "cut"))
    assert states["cells/all/fedprox/1"] == "interrupted"
    assert states["cells/all/fedavg/1"] == "done"
    assert states["cells/all/fedavg/2"] == "open"
    resumed, resume = list[Path](), work.resume

    def seen(run: Path, *rest: Any) -> Any:
        resumed.append(run)
        return resume(run, *rest)

    monkeypatch.setattr(work, "resume", seen)
    goes_on = Counting()
    run_sweep(sweep, tmp_path / "cut", goes_on.observer)
    assert goes_on.begun == ["fedprox seed 1", "fedavg seed 2", "fedprox seed 2"]
    assert resumed == [tmp_path / "cut" / "work" / "cells/all/fedprox/1/run"]
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    whole, cut = (tmp_path / name / "tuning.json" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    record = json.loads((tmp_path / "cut/cells/all/fedprox/1.json").read_text())
    assert record["seconds"] == {}  # nobody saw all of it


def test_an_interrupted_cell_of_another_recipe_begins_anew(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    stopped = Counting("fedavg seed 1", 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep_of(tree), tmp_path, stopped.observer)
    other = {**tree, "training": {**tree["training"], "lr": 0.02}}
    result = run_sweep(sweep_of(other), tmp_path)
    assert {record["lr"] for _, record in result.records} == {0.02}


def test_a_cell_of_another_recipe_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    run_sweep(sweep_of(tree, seeds=[1]), tmp_path)
    other = {**tree, "training": {**tree["training"], "lr": 0.02}}
    for act in (run_sweep, survey):
        with pytest.raises(RunError, match=r"fedavg/1.json was made with another recipe; choose"):
            act(sweep_of(other, seeds=[1]), tmp_path)


def test_shards_do_every_cell_once(tree: dict[str, Any], tmp_path: Path) -> None:
    sweep, begun = sweep_of(tree, seeds=[1, 2, 3]), list[list[str]]()
    for mine in (0, 1):
        count = Counting()
        result = run_sweep(sweep, tmp_path, count.observer, shard=(mine, 2))
        begun.append(count.begun)
    # Two methods, two shards: each row of a seed begins with the other shard.
    assert begun[0] == ["fedavg seed 1", "fedprox seed 2", "fedavg seed 3"]
    assert begun[1] == ["fedprox seed 1", "fedavg seed 2", "fedprox seed 3"]
    assert len(result.records) == 6
    assert result.open == ()


def test_a_shard_whose_tuning_is_not_all_there_postpones(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """Two methods × two points, dealt out in turn: each shard tunes one point of each method."""
    sweep = sweep_of(tree, tune=TUNE)
    first, second = Counting(), Counting()
    early = run_sweep(sweep, tmp_path, first.observer, shard=(0, 2))
    assert first.begun == [
        "tuning fedavg seed 9, training.lr=0.001",
        "tuning fedprox seed 9, training.lr=0.001",
    ]
    assert early.records == ()
    assert early.waiting == (
        "tune/all/fedavg/9-training.lr=0.01",
        "tune/all/fedprox/9-training.lr=0.01",
    )
    assert dict(survey(sweep, tmp_path))["cells/all/fedavg/1"] == "waiting for tuning"
    run_sweep(sweep, tmp_path, second.observer, shard=(1, 2))
    assert len(second.begun) == 4
    late = run_sweep(sweep, tmp_path, shard=(0, 2))
    assert (len(late.records), late.waiting, late.open) == (4, (), ())


def test_a_cell_that_another_process_holds_is_left_to_it(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    sweep, count = sweep_of(tree, seeds=[1]), Counting()
    held = tmp_path / "work/cells/all/fedavg/1"
    make_private(held)
    with run_lock(held):
        result = run_sweep(sweep, tmp_path, count.observer)
    assert count.begun == ["fedprox seed 1"]
    assert result.open == ("cells/all/fedavg/1",)
    assert any("is being run" in line for line in count.said)


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    sweep = sweep_of(tree, seeds=[1])
    failing = Counting("fedavg seed 1", 1, RoundFailed)
    result = run_sweep(sweep, tmp_path, failing.observer)
    assert [cell.label for cell, _ in result.records] == ["fedprox"]
    assert result.failed == (f"{tmp_path}/cells/all/fedavg/1.json: in the middle",)
    idle = Counting()
    assert run_sweep(sweep, tmp_path, idle.observer).failed == result.failed
    assert idle.begun == []
    again = Counting()
    assert run_sweep(sweep, tmp_path, again.observer, retry_failed=True).failed == ()
    assert again.begun == ["fedavg seed 1"]


def test_a_point_that_fails_just_loses(tree: dict[str, Any], tmp_path: Path) -> None:
    sweep = sweep_of(tree, methods={"fedavg": {}}, seeds=[1], tune=TUNE)
    failing = Counting("tuning fedavg seed 9, training.lr=0.01", 1, RoundFailed)
    result = run_sweep(sweep, tmp_path, failing.observer)
    assert (result.failed, result.waiting) == ((), ())
    assert result.records[0][1]["lr"] == 0.001
    (tuned,) = result.tuned
    assert tuned.losers == ["fedavg: training.lr=0.01 failed on seed 9: in the middle"]


def test_where_all_points_fail_the_method_has_failed(tree: dict[str, Any], tmp_path: Path) -> None:
    tune = {"seeds": [9], "grid": {"training.lr": [0.01]}}
    sweep = sweep_of(tree, methods={"fedavg": {}}, seeds=[1], tune=tune)
    failing = Counting("tuning fedavg seed 9, training.lr=0.01", 1, RoundFailed)
    result = run_sweep(sweep, tmp_path, failing.observer)
    assert result.failed == ("fedavg: no point of the tuning grid finished",)
    assert failing.begun == ["tuning fedavg seed 9, training.lr=0.01"]


def test_a_full_disk_stops_the_sweep_and_blames_no_cell(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    failing = Counting("fedavg seed 1", 1, RunError)
    with pytest.raises(RunError, match="in the middle"):
        run_sweep(sweep_of(tree), tmp_path, failing.observer)
    assert not (tmp_path / "cells").exists()


def test_methods_of_one_seed_must_have_the_same_world(tree: dict[str, Any], tmp_path: Path) -> None:
    methods = {"fedavg": {}, "fedprox": {"data.validation": 0.4}}
    with pytest.raises(RunError, match=r"fedavg/1.json and .*fedprox/1.json have the same setting"):
        run_sweep(sweep_of(tree, methods=methods), tmp_path)
    with pytest.raises(RunError, match="no pair"):
        run_sweep(sweep_of(tree, methods=methods), tmp_path)


def test_settings_may_have_worlds_of_their_own(tree: dict[str, Any], tmp_path: Path) -> None:
    settings = {"small": {"data.test": 0.4}, "large": {}}
    sweep = sweep_of(tree, methods={"fedavg": {}}, seeds=[1], settings=settings)
    (small, _), (large, _) = run_sweep(sweep, tmp_path).records
    assert (small.name, large.name) == ("cells/small/fedavg/1", "cells/large/fedavg/1")


def test_runs_are_kept_where_wanted(tree: dict[str, Any], tmp_path: Path) -> None:
    sweep = sweep_of(tree, methods={"fedavg": {}}, seeds=[1], keep_runs=True)
    run_sweep(sweep, tmp_path)
    assert (tmp_path / "runs/cells/all/fedavg/1/results.json").is_file()
    assert not (tmp_path / "work").exists()


def test_a_sweep_that_ends_leaves_another_ones_cells_alone(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """Two sweeps of one folder, of which one has more seeds and was stopped in the last."""
    stopped = Counting("fedprox seed 2", 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep_of(tree), tmp_path, stopped.observer)
    run_sweep(sweep_of(tree, seeds=[1]), tmp_path)
    left = [p for p in (tmp_path / "work").rglob("*") if p.name == "run"]
    assert left == [tmp_path / "work/cells/all/fedprox/2/run"]
    run_sweep(sweep_of(tree), tmp_path)
    assert not (tmp_path / "work").exists()


def test_only_some_methods(tree: dict[str, Any], tmp_path: Path) -> None:
    count = Counting()
    run_sweep(sweep_of(tree, seeds=[1]), tmp_path, count.observer, only=["fedprox"])
    assert count.begun == ["fedprox seed 1"]
    with pytest.raises(RecipeError, match=r"no method 'fedpro'.*Did you mean 'fedprox'"):
        run_sweep(sweep_of(tree), tmp_path, only=["fedpro"])
    with pytest.raises(RecipeError, match="nothing to tune"):
        run_sweep(sweep_of(tree), tmp_path, tune_only=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', "[" * 100_000])
def test_a_damaged_file_is_named(tree: dict[str, Any], tmp_path: Path, text: str) -> None:
    file = tmp_path / "cells/all/fedavg/1.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(CorruptArtifact, match=r"fedavg/1.json .*delete it"):
        run_sweep(sweep_of(tree), tmp_path)


def test_a_cells_place_in_the_sweep_and_what_is_left(tree: dict[str, Any], tmp_path: Path) -> None:
    count = Counting()
    run_sweep(sweep_of(tree), tmp_path, count.observer)
    assert count.said[0] == "cell 1 of 4: fedavg seed 1"
    assert count.said[3].startswith("cell 4 of 4: fedprox seed 2 (about ")
