"""A cell's result: one small JSON file, written once the cell is done or has failed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from fedsdr import __version__
from fedsdr.coordinator.loop import ROUNDS
from fedsdr.errors import CorruptArtifact, FedsdrError, RunError
from fedsdr.evaluate.finished import RunResult
from fedsdr.jobs.sources import Scorer
from fedsdr.jobs.sweep.cells import Cell
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import write_json_atomic
from fedsdr.runs.plain import read_plain
from fedsdr.runs.timings import TIMINGS

FORMAT, LARGEST = 1, 10**8  # bytes
NEEDED = ("format", "label", "setting", "seed", "recipe_sha256")
WHEN_DONE = ("world", "lr", "scores", "steps", "bytes_up", "bytes_down", "seconds", "validation")
Record = Mapping[str, Any]


def record_path(out: Path, cell: Cell) -> Path:
    return out / f"{cell.name}.json"


def read_record(out: Path, cell: Cell) -> Record | None:
    """What is known of a cell; None where it is still to be run."""
    path = record_path(out, cell)
    try:
        content: Any = json.loads(read_plain(path, LARGEST, CorruptArtifact))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(
            f"{path} cannot be read ({error}); delete it, and run again"
        ) from None
    record = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    needed = NEEDED if "failed" in record else (*NEEDED, *WHEN_DONE)
    if record.get("format") != FORMAT or any(key not in record for key in needed):
        raise CorruptArtifact(f"{path} is no result of this version; delete it, and run again")
    if record["recipe_sha256"] != cell.digest:
        if "failed" in record:
            return None  # what failed with another recipe says nothing about this one
        raise RunError(
            f"{path} was made with another recipe; choose another --out, or delete the file to run "
            "this cell again"
        )
    return record


def write_record(out: Path, cell: Cell, record: Record) -> None:
    write_json_atomic(record_path(out, cell), record)


def failure(cell: Cell, error: FedsdrError) -> Record:
    return {**_identity(cell), "failed": str(error)}


def success(
    cell: Cell, results: Mapping[str, Any], run: RunDirectory, scorer: Scorer, resumed: bool
) -> Record:
    """`seconds` is outside what is the same every time; a cell that was resumed has none, as
    nobody saw its whole time."""
    seconds = dict[str, float]()
    for row in () if resumed else run.rows(TIMINGS):
        if row["round"] == 0:  # the others are parts of "rounds"
            seconds[row["phase"]] = round(seconds.get(row["phase"], 0.0) + row["seconds"], 3)
    return {
        **{key: value for key, value in results.items() if key != "clients"},
        **_identity(cell),
        "seconds": seconds,
        "validation": {
            "measure": scorer.best_on,
            "higher_is_better": scorer.higher_is_better,
            "best": _best(run.rows(ROUNDS), scorer),
        },
    }


def run_result(out: Path, cell: Cell, record: Record) -> RunResult:
    """As the comparison takes it; scores on clients that never trained are a model of their own."""
    unseen = {f"{mix}~unseen": scores for mix, scores in record.get("unseen", {}).items()}
    return RunResult(
        path=str(record_path(out, cell)),
        method=cell.label,
        seed=cell.seed,
        world=record["world"],
        lr=float(record["lr"]),
        scores={**record["scores"], **unseen},
    )


def _identity(cell: Cell) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "label": cell.label,
        "setting": cell.setting,
        "seed": cell.seed,
        "point": dict(cell.point),
        "changes": dict(cell.changes),
        "recipe_sha256": cell.digest,
        "fedsdr": __version__,
        "torch": torch.__version__,
    }


def _best(rows: Sequence[Mapping[str, Any]], scorer: Scorer) -> dict[str, float]:
    """By deployed mix, the best validation score of any round."""
    by_mix = dict[str, list[float]]()
    for row in rows:
        for mix, scores in row["validation"].items():
            if scorer.best_on in scores:
                by_mix.setdefault(mix, []).append(scores[scorer.best_on])
    choose = max if scorer.higher_is_better else min
    return {mix: choose(values) for mix, values in by_mix.items()}
