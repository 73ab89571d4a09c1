"""Picks and tables from cells written by hand, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.errors import RoundFailed
from fedsdr.jobs.sweep import Cell, Sweep, run_sweep, sweep_table
from fedsdr.jobs.sweep.cells import main_cell, tuning_cells
from fedsdr.jobs.sweep.recipe import parse_sweep
from fedsdr.jobs.sweep.records import failure, tune, write_record
from fedsdr.jobs.sweep.table import cost_cells, render_markdown, score_cells
from fedsdr.jobs.sweep.work import in_words

GRID = [0.1, 0.2, 0.3]


def sweep_of(**changes: Any) -> Sweep:
    tuning = {"seeds": [8, 9], "grid": {"training.lr": GRID}}
    chosen = {"methods": {"fedavg": {}, "fedsdr": {}}, "seeds": [1, 2], "tune": tuning}
    return parse_sweep({"sweep": chosen | changes}, "folder/ex.yaml")


def wrote(out: Path, cell: Cell, best: dict[str, float], higher: bool = True, **more: Any) -> None:
    judged = {"measure": "recall", "higher_is_better": higher, "best": best}
    record = failure(cell, RoundFailed("?")) | {
        "world": f"world {cell.seed}",
        "lr": cell.recipe.training.lr,
        "scores": {mix: {"recall": v, "recall_worst": v / 2} for mix, v in best.items()},
        "steps": 30.0,
        "bytes_up": 4_000_000,
        "bytes_down": 1_234_567,
        "seconds": {"rewriting": 5.0, "rounds": 10.0, "final scores": 2.5},
        "validation": judged,
        "fedsdr": "1",
        "torch": "2",
    }
    del record["failed"]
    write_record(out, cell, record | more)


def tuned(
    out: Path, sweep: Sweep, label: str, scores: list[list[dict[str, float]]], **more: Any
) -> None:
    """Point by point, seed by seed, in the order of `tuning_cells`."""
    flat = [best for point in scores for best in point]
    for cell, best in zip(tuning_cells(sweep, "all", label), flat, strict=True):
        wrote(out, cell, best, **more)


def test_the_point_with_the_best_mean_over_seeds_and_models_is_picked(tmp_path: Path) -> None:
    """0.1: ((.2+.4)/2 + (.6+.8)/2)/2 = .5; 0.2: (.9 + .3)/2 = .6; 0.3: (.55 + .55)/2 = .55. By its
    best seed or its best model alone, 0.1 or 0.3 would have been ahead elsewhere."""
    sweep = sweep_of()
    one = [{"global": 0.2, "personal": 0.4}, {"global": 0.6, "personal": 0.8}]
    two = [{"global": 0.9, "personal": 0.9}, {"global": 0.1, "personal": 0.5}]
    three = [{"global": 0.99, "personal": 0.11}, {"global": 0.55, "personal": 0.55}]
    tuned(tmp_path, sweep, "fedsdr", [one, two, three])
    found = tune(sweep, tmp_path, "all", "fedsdr")
    assert [t.mean for t in found.tried] == pytest.approx([0.5, 0.6, 0.55])
    assert found.pick == {"training.lr": 0.2}
    assert found.edges == []


def test_where_lower_is_better_and_at_the_edge(tmp_path: Path) -> None:
    sweep = sweep_of()
    scores = [[{"global": v}] * 2 for v in (2.0, 1.5, 1.4)]
    tuned(tmp_path, sweep, "fedavg", scores, higher=False)
    found = tune(sweep, tmp_path, "all", "fedavg")
    assert found.pick == {"training.lr": 0.3}
    assert found.edges == [
        "fedavg: training.lr=0.3 is the highest value of its grid; a higher one may be better"
    ]


def test_equal_points_a_failed_seed_and_a_missing_cell(tmp_path: Path) -> None:
    sweep = sweep_of()
    tuned(tmp_path, sweep, "fedavg", [[{"global": 0.5}] * 2] * 3)
    assert tune(sweep, tmp_path, "all", "fedavg").pick == {"training.lr": 0.1}
    cell = tuning_cells(sweep, "all", "fedavg")[1]
    write_record(tmp_path, cell, failure(cell, RoundFailed("diverged")))
    found = tune(sweep, tmp_path, "all", "fedavg")
    assert found.pick == {"training.lr": 0.2}
    assert found.tried[0].mean is None
    (tmp_path / f"{cell.name}.json").unlink()
    found = tune(sweep, tmp_path, "all", "fedavg")
    assert (found.pick, found.missing) == (None, ("tune/all/fedavg/9-training.lr=0.1",))


def filled(out: Path, seeds: list[int], **changes: Any) -> Sweep:
    """FedSDR's global model is better by .1 on every seed; seed s adds .01 s to both."""
    sweep = sweep_of(seeds=seeds, **changes)
    for label, gain in (("fedavg", 0.0), ("fedsdr", 0.1)):
        tuned(out, sweep, label, [[{"global": v}] * 2 for v in (0.5, 0.6, 0.4)])
        for seed in seeds:
            cell = main_cell(sweep, "all", label, seed, {"training.lr": 0.2})
            wrote(out, cell, {"global": 0.5 + gain + 0.01 * seed})
    return sweep


def test_the_table_of_finished_cells_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Seeds 1 and 2: .51 and .52, mean .515, sd .01/√2 = .00707; Student's t of one degree of
    freedom at 97.5 % is 12.706, so the half width is 12.706 · .00707/√2 = .0635. Seconds: 10 + 2.5
    without the rewriting, of which there are 5 for each of two methods."""
    sweep = filled(tmp_path, [1, 2])
    result = run_sweep(sweep, tmp_path)
    (table,) = sweep_table(sweep, result.records, tmp_path)
    assert table.measures == ("recall", "recall_worst")
    assert score_cells(table)[0] == ("fedavg", "global", "2", "0.515 ± 0.007", "0.258 ± 0.004")
    assert score_cells(table, interval=True)[0][3] == "0.515 ± 0.007 [0.451, 0.579]"
    assert [row[0] for row in score_cells(table)] == ["fedavg", "fedsdr"]
    assert cost_cells(table.costs["fedavg"]) == ("30", "12.5", "4", "1.23")
    assert "name contrasts" in table.sentences[-1]
    json.dumps(table.to_json())


def test_the_contrasts_in_words(tmp_path: Path) -> None:
    """Six seeds that all differ by .1: t is undefined, the sign-flip p is 2/2^6 = .03125."""
    contrasts = ["fedsdr:global > fedavg:global on recall", "fedsdr:personal > fedavg:global on x"]
    sweep = filled(tmp_path, [1, 2, 3, 4, 5, 6], contrasts=contrasts)
    (table,) = sweep_table(sweep, run_sweep(sweep, tmp_path).records, tmp_path)
    assert "FedSDR beats FedAvg on recall by 0.100" in table.sentences[1]
    assert "sign-flip p = 0.0312" in table.sentences[1]
    assert table.sentences[-1].startswith("Not tested: contrast 'fedsdr:personal")


def test_the_page_says_all_that_is_needed_to_make_it_again(tmp_path: Path) -> None:
    sweep = filled(tmp_path, [1, 2], contrasts=["fedsdr:global > fedavg:global on recall"])
    result = run_sweep(sweep, tmp_path)
    tables = sweep_table(sweep, result.records, tmp_path)
    command = "fedsdr sweep ex.yaml --out x --markdown t.md"
    page = render_markdown(sweep, result, tables, command)
    # The difference is .1 on both seeds: an interval without width, and two seeds prove nothing.
    assert (
        page
        == f"""# ex.yaml

```sh
{command}
```

Made with fedsdr 1, torch 2. Digest of the sweep file: `{sweep.digest[:16]}`. Seeds: 1, 2. \
Scores are means over clients on test data, then over seeds: mean ± sd [95 % interval].

## Tuning

By recall on validation data, mean over the deployed models, on tuning seeds 8, 9.

| method | tried | picked |
| --- | --- | --- |
| fedavg | training.lr=0.1: 0.500; training.lr=0.2: 0.600; training.lr=0.3: 0.400 \
| training.lr=0.2 |
| fedsdr | training.lr=0.1: 0.500; training.lr=0.2: 0.600; training.lr=0.3: 0.400 \
| training.lr=0.2 |

| method | model | n | recall | recall_worst | steps | seconds | MB up | MB down |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| fedavg | global | 2 | 0.515 ± 0.007 [0.451, 0.579] | 0.258 ± 0.004 [0.226, 0.289] | 30 | 12.5 \
| 4 | 1.23 |
| fedsdr | global | 2 | 0.615 ± 0.007 [0.551, 0.679] | 0.307 ± 0.004 [0.276, 0.339] | 30 | 12.5 \
| 4 | 1.23 |

- Runs are paired by seed; 1 contrast tested. The p-values are Holm-adjusted over all contrasts; \
the 95 % intervals in brackets are not.
- Nothing can be significant with 2 paired seeds and 1 contrast, however clear it looks: run at \
least 6 seeds.
- FedSDR is ahead of FedAvg on recall by 0.100 [0.100, 0.100]; with fewer than 6 seeds nothing can \
be significant.
"""
    )


def test_tuning_json_has_the_whole_grid_and_the_picks(tmp_path: Path) -> None:
    run_sweep(filled(tmp_path, [1]), tmp_path)
    found = json.loads((tmp_path / "tuning.json").read_text())
    assert (found["seeds"], found["grid"]) == ([8, 9], {"training.lr": GRID})
    own = found["settings"]["all"]["fedsdr"]
    assert own["picked"] == {"training.lr": 0.2}
    assert own["tried"][1] == {
        "point": {"training.lr": 0.2},
        "scores": {"8": 0.6, "9": 0.6},
        "mean": 0.6,
        "failed": {},
    }


def test_durations_in_words() -> None:
    assert [in_words(s) for s in (5, 130, 9000)] == ["5 s", "2 min", "2.5 h"]


def test_clients_that_never_trained_have_rows_of_their_own(tmp_path: Path) -> None:
    sweep = sweep_of(methods={"fedavg": {}}, tune=None)
    for seed, value in ((1, 0.25), (2, 0.75)):
        cell = main_cell(sweep, "all", "fedavg", seed, {})
        wrote(tmp_path, cell, {"global": 0.5}, unseen={"global": {"recall": value}})
    (table,) = sweep_table(sweep, run_sweep(sweep, tmp_path).records, tmp_path)
    rows = {row[:3]: row[3] for row in score_cells(table)}
    assert rows["fedavg", "global", "2"] == "0.500 ± 0.000"
    assert rows["fedavg", "global~unseen", "2"] == "0.500 ± 0.354"
