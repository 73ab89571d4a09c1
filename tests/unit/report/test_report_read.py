"""A run directory is read as it is found: whole, under way, damaged, purged, or not a run."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from fedsdr.errors import RunError
from fedsdr.report.read import read_record, read_records
from fedsdr.report.record import natural
from fedsdr.runs.identity import read_facts, write_facts
from made_runs import write_run

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_finished_run(run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    record = read_record(run)
    assert (record.state, record.method, record.seed, record.synthetic) == (
        "finished",
        "fedsdr",
        1,
        True,
    )
    assert (len(record.rounds), len(record.validation), len(record.diagnostics)) == (4, 4, 4)
    assert record.clients == ["c0", "c1", "c2", "c3"]
    assert record.notes == ()
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before  # nothing was written


def test_brief_leaves_out_what_only_one_run_shows(run: Path) -> None:
    record = read_record(run, brief=True)
    assert record.rounds
    assert record.results
    assert not record.diagnostics
    assert record.profile is None


def test_under_way_or_stopped_is_told_by_the_process(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    assert read_record(run).state == "stopped"
    (run / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    assert read_record(run).state == "running"
    gone = json.dumps({"pid": 99_999_999, "host": socket.gethostname()})
    for held in (gone, '{"pid": 1}', "{", '{"pid": "x", "host": 3}'):
        (run / "lock").write_text(held)
        assert read_record(run).state == "stopped"


def test_a_run_that_was_changed_does_not_pass_for_a_synthetic_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", synthetic=False)
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("file: rows.jsonl", "atlas: {preset: mild}"))
    record = read_record(run)
    assert record.recipe["data"] == {"atlas": {"preset": "mild"}}
    assert not record.synthetic
    assert "is not the recipe that this run was started with" in record.notes[0]


def test_results_of_another_run_are_told(run: Path) -> None:
    write_facts(run, {**read_facts(run), "results_sha256": "0" * 64})
    assert read_record(run).notes == (
        "results.json is not what this run wrote: do not rely on its scores.",
    )


def test_a_purged_run_says_so(run: Path) -> None:
    write_facts(run, {**read_facts(run), "purged": ["rewrites"]})
    assert read_record(run).state == "purged"


def test_a_torn_last_line_is_no_damage(run: Path) -> None:
    with (run / "rounds.jsonl").open("a") as file:
        file.write('{"round": 5, "loss"')
    record = read_record(run)
    assert len(record.rounds) == 4
    assert record.notes == ()


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe", b"{]", b"[1]", b'{"round": "x"}', b"{}", b"[" * 100_000]
)
def test_a_damaged_line_costs_that_line_and_is_noted(run: Path, damage: bytes) -> None:
    lines = (run / "rounds.jsonl").read_bytes().splitlines()
    (run / "rounds.jsonl").write_bytes(b"\n".join([lines[0], damage, *lines[2:], b""]))
    record = read_record(run)
    assert [row["round"] for row in record.rounds] == [1, 3, 4]
    (note,) = record.notes
    assert "rounds.jsonl" in note
    assert "line 2" in note


@pytest.mark.parametrize("file", ["results.json", "profile.json"])
@pytest.mark.parametrize("damage", [b"", b"\xff", b"[]", b"{", b"[" * 100_000])
def test_a_damaged_file_is_noted(run: Path, file: str, damage: bytes) -> None:
    (run / file).write_bytes(damage)
    (note,) = read_record(run).notes
    assert file in note


def test_an_altered_recipe_or_facts_are_noted(run: Path) -> None:
    (run / "recipe.yaml").write_text("seed: 2\n")
    (note,) = read_record(run).notes
    assert "not the recipe that this run was started with" in note
    (run / "run.json").write_text('{"algorithm": "fedavg", "seed": 7}')
    record = read_record(run)
    assert record.synthetic is False  # nobody vouches that these texts are made up
    assert any("run.json" in note for note in record.notes)


@pytest.mark.parametrize(
    "recipe", ["a: [", "- 1\n", "\x00", "a: &a [*a, *a]\n", "!!python/object:os.system {}"]
)
def test_a_recipe_that_is_none_is_shown_as_it_stands(run: Path, recipe: str) -> None:
    (run / "recipe.yaml").write_text(recipe)
    record = read_record(run)
    assert record.recipe_text == recipe
    assert record.notes


def test_own_clients_from_python_are_private(run: Path) -> None:
    write_facts(run, {**read_facts(run), "from_python": {"algorithm": False, "clients": True}})
    assert not read_record(run).synthetic


def test_no_run(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "first")
    with pytest.raises(RunError, match="holds no run"):
        read_records([tmp_path / "nowhere"])
    with pytest.raises(RunError, match=r"Did you mean 'first'\?"):
        read_records([tmp_path / "runs" / "frist"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run"):
        read_records([tmp_path / "empty"])


def test_a_folder_of_runs(tmp_path: Path) -> None:
    for name in ("r10", "r2", "rewrites-only"):
        if name == "rewrites-only":
            (tmp_path / name).mkdir()
        else:
            write_run(tmp_path / name)
    assert [record.name for record in read_records([tmp_path])] == ["r2", "r10"]
    assert sorted(["c10", "c2", "b"], key=natural) == ["b", "c2", "c10"]


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / method / "1", method) for method in ("fedavg", "fedsd")]
    assert [record.name for record in read_records(runs)] == ["fedavg/1", "fedsd/1"]


def test_cells_of_a_sweep(tmp_path: Path) -> None:
    folder = tmp_path / "cells" / "all" / "fedavg"
    folder.mkdir(parents=True)
    cell = {
        "format": 1, "label": "fedavg", "setting": "all", "seed": 1, "world": "w", "lr": 0.1,
        "scores": {"global": {"recall": 0.5}}, "steps": 1, "bytes_up": 2, "bytes_down": 3,
        "seconds": {"rounds": 4.0}, "changes": {"training.lr": 0.1, "algorithm.name": "fedavg"},
    }  # fmt: skip
    (folder / "1.json").write_text(json.dumps(cell))
    (folder / "2.json").write_text(
        json.dumps({**cell, "seed": 2, "failed": "out of disk", "scores": None})
    )
    (folder / "3.json").write_text("{")
    first, second, third = read_records([tmp_path])
    assert (first.state, first.method, first.seed, first.setting) == (
        "finished",
        "fedavg",
        1,
        "all",
    )
    assert first.recipe == {"training": {"lr": 0.1}, "algorithm": {"name": "fedavg"}}
    assert (second.state, second.notes) == ("failed", ("The cell failed: out of disk",))
    assert third.state == "failed"
    assert "3.json" in third.notes[0]
