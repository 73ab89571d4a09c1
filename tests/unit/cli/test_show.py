"""`fedsdr show`: where a run stands, finished or under way, whole or damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsdr.cli.app import app
from fedsdr.cli.show import BLOCKS, sparkline
from fedsdr.report.read import read_record
from fedsdr.report.record import courses, glance
from growing_runs import add, finish, round_row, under_way, validated


def shown(*args: str | Path) -> str:
    result = CliRunner().invoke(app, ["show", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_under_way_shows_round_loss_and_each_clients_training(tmp_path: Path) -> None:
    out = shown(under_way(tmp_path / "run", 2))
    assert "running, round 2 of 4" in out
    assert "1.000 in the last round" in out
    assert "2 kB up, 4 kB down" in out
    assert "training loss by round, from 0.500 (▁) to 3.000 (█)" in out
    lines = [line.split() for line in out.splitlines()]
    # c2: 1 and .5 of .5 … 3: blocks floor(.2 · 8) = 1 and 0; c10: 3 and 1.5: 7 and floor(.4 · 8).
    c2, c10 = (
        lines.index(["c2", "▂▁", "1.000", "0.500"]),
        lines.index(["c10", "█▄", "3.000", "1.500"]),
    )
    assert c2 < c10


def test_validation_goes_before_training_losses(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 4)
    validated(run, 2, 0.25, 0.5)
    validated(run, 4, 0.75, 0.5)
    measure, found = courses(read_record(run))
    assert measure == "recall"
    assert [(c.client, c.rounds, c.values) for c in found] == [
        ("c2", (2, 4), (0.25, 0.75)),
        ("c10", (2, 4), (0.5, 0.5)),
    ]
    assert "validation recall by round, from 0.250 (▁) to 0.750 (█)" in shown(run)


def test_a_finished_run_shows_its_test_scores(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 4)
    finish(run)
    out = shown(run)
    assert "finished, round 4 of 4" in out
    assert "retention   0.750" in out
    assert "fedsdr resume" not in out


def test_a_run_whose_process_is_gone_is_stopped_and_says_how_it_goes_on(tmp_path: Path) -> None:
    out = shown(under_way(tmp_path / "run", 2, alive=False))
    assert "stopped, round 2 of 4" in out
    assert f"`fedsdr resume {tmp_path / 'run'}` goes on" in out.replace("\n", "")


def test_time_left_is_the_pace_times_what_is_to_come(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 2)
    for number, seconds in ((1, 30.0), (1, 10.0), (2, 60.0)):
        add(run, "timings.jsonl", {"round": number, "phase": "training", "seconds": seconds})
    assert glance(read_record(run)).seconds_left == 2 * 50.0
    assert "about 1 min 40 s left" in shown(run)


def test_before_the_first_round_there_is_little_and_that_is_said(tmp_path: Path) -> None:
    assert "running, round 0 of 4" in shown(under_way(tmp_path / "run", 0))


def test_as_json(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 2)
    told = json.loads(shown(run, "--json"))
    assert (told["state"], told["round"], told["rounds"], told["loss"]) == ("running", 2, 4, 1.0)
    assert told["clients"] == {
        "measure": "training loss",
        "courses": {
            "c2": {"training": {"rounds": [1, 2], "values": [1.0, 0.5]}},
            "c10": {"training": {"rounds": [1, 2], "values": [3.0, 1.5]}},
        },
    }


def test_a_folder_of_runs_is_a_list(tmp_path: Path) -> None:
    under_way(tmp_path / "runs" / "b", 1)
    finish(under_way(tmp_path / "runs" / "a", 4))
    rows = [line.split() for line in shown(tmp_path / "runs").splitlines()]
    assert ["a", "fedsdr", "7", "finished", "4/4", "0.500", "4", "kB"] in rows
    assert ["b", "fedsdr", "7", "running", "1/4", "–", "1", "kB"] in rows
    told = json.loads(shown(tmp_path / "runs", "--json"))
    assert [run["name"] for run in told["runs"]] == ["a", "b"]


def test_torn_and_damaged_files_are_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 2)
    with (run / "rounds.jsonl").open("a") as rows:
        rows.write("{]\n" + json.dumps(round_row(3, loss="x", losses=[], bytes_up=None)) + '\n{"ro')
    add(run, "validation.jsonl", {"round": 1, "scores": {"global": {"c2": {"recall": None}}}})
    out = shown(run)
    assert "running, round 3 of 4" in out
    assert "rounds.jsonl is damaged in line 3" in out.replace("\n", " ")
    assert "training loss by round" in out


def test_names_cannot_control_the_terminal(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 0)
    add(run, "rounds.jsonl", round_row(1, losses={"\x1b[31m[b]c": 1.0}))
    out = shown(run)
    assert "\x1b" not in out
    assert "\\x1b[31m[b]c" in out


def test_of_many_clients_both_ends_are_shown(tmp_path: Path) -> None:
    run = under_way(tmp_path / "run", 0)
    add(run, "rounds.jsonl", round_row(1, losses={f"k{n}": float(n) for n in range(60)}))
    out = shown(run)
    assert all(f"k{n} " in out for n in (*range(10), *range(50, 60)))
    assert "k10 " not in out
    assert "the 10 best and the 10 worst; 40 are between them" in out


def test_no_run_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no run" in result.output


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0.5], "▅"),
        ([0.0, 0.125, 0.5, 0.99, 1.0], "▁▂▅██"),
        ([0.0] * 40 + [1.0] * 40, "▁" * 10 + "█" * 10),
    ],
)
def test_sparklines(values: list[float], line: str) -> None:
    assert sparkline(values, 0.0, 1.0) == line


def test_a_flat_sparkline_stands_in_the_middle() -> None:
    assert sparkline([3.0, 3.0], 3.0, 3.0) == BLOCKS[3] * 2


def test_it_starts_without_torch(tmp_path: Path) -> None:
    under_way(tmp_path / "run", 1)
    code = (
        "import sys\nfrom fedsdr.cli.app import app\n"
        "app(['show', sys.argv[1]], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
