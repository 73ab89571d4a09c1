"""A cell's result: one small JSON file, written once the cell is done or has failed.

Which point of the grid a method runs at: the best by validation, on seeds of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch

from fedsdr import __version__
from fedsdr.coordinator.loop import ROUNDS
from fedsdr.errors import CorruptArtifact, FedsdrError, RunError
from fedsdr.evaluate.finished import RunResult
from fedsdr.jobs.sources import Scorer
from fedsdr.jobs.sweep.cells import Cell, Changes, Sweep, point_words, tuning_cells
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import write_json_atomic
from fedsdr.runs.ledger import TIMINGS
from fedsdr.runs.plain import read_plain

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


@dataclass(frozen=True, slots=True)
class Tried:
    """A point of the grid: its score on each tuning seed, and why it has none where it failed."""

    point: Changes
    scores: Mapping[int, float]
    failed: Mapping[int, str]

    @property
    def mean(self) -> float | None:
        """None for a point that failed on any seed: it cannot be picked."""
        return fmean(self.scores.values()) if self.scores and not self.failed else None


@dataclass(frozen=True, slots=True)
class Tuned:
    """One method in one setting. `missing` are the tuning cells still to be run."""

    setting: str
    label: str
    tried: tuple[Tried, ...]
    missing: tuple[str, ...]
    measure: str = ""
    higher_is_better: bool = True

    @property
    def pick(self) -> Changes | None:
        """The best point, the first of equals; None where it is not known yet or all failed."""
        scored = [(t.mean, t.point) for t in self.tried if t.mean is not None]
        if self.missing or not scored:
            return None
        best = max if self.higher_is_better else min
        return best(scored, key=lambda pair: pair[0])[1]

    @property
    def name(self) -> str:
        return self.label if self.setting == "all" else f"{self.setting}, {self.label}"

    @property
    def edges(self) -> list[str]:
        """In words, where the pick is the first or last of the numbers tried."""
        lines = list[str]()
        for key, value in (self.pick or {}).items():
            values = [t.point[key] for t in self.tried]
            numbers = {v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
            if value in numbers and len(numbers) > 1 and value in (min(numbers), max(numbers)):
                end, more = ("lowest", "lower") if value == min(numbers) else ("highest", "higher")
                lines.append(
                    f"{self.name}: {key}={value} is the {end} value of its grid; a {more} one may "
                    "be better"
                )
        return lines

    @property
    def losers(self) -> list[str]:
        return [
            f"{self.name}: {point_words(t.point)} failed on seed {seed}: {why}"
            for t in self.tried
            for seed, why in t.failed.items()
        ]


def tune(sweep: Sweep, out: Path, setting: str, label: str) -> Tuned:
    """From the tuning cells that are there."""
    tried, missing = dict[str, Tried](), list[str]()
    judged = dict[str, Any]()
    for cell in tuning_cells(sweep, setting, label):
        here = tried.setdefault(point_words(cell.point), Tried(cell.point, {}, {}))
        record = read_record(out, cell)
        if record is None:
            missing.append(cell.name)
            continue
        if "failed" in record:
            failed = {**here.failed, cell.seed: str(record["failed"])}
            here = Tried(cell.point, here.scores, failed)
        else:
            judged = record["validation"]
            here = Tried(cell.point, {**here.scores, cell.seed: score(record)}, here.failed)
        tried[point_words(cell.point)] = here
    return Tuned(
        setting,
        label,
        tuple(tried.values()),
        tuple(missing),
        judged.get("measure", ""),
        judged.get("higher_is_better", True),
    )


def tune_all(sweep: Sweep, out: Path, labels: Iterable[str] | None = None) -> list[Tuned]:
    if sweep.tune is None:
        return []
    chosen = product(sweep.settings, sweep.methods if labels is None else labels)
    return [tune(sweep, out, setting, label) for setting, label in chosen]


def score(record: Record) -> float:
    """The mean over the deployed mixes of each one's best validation score."""
    return fmean(record["validation"]["best"].values())


def write_tuning(sweep: Sweep, out: Path, methods: Iterable[Tuned]) -> None:
    if sweep.tune is not None:
        write_json_atomic(out / "tuning.json", tuning_json(sweep, methods))


def tuning_json(sweep: Sweep, methods: Iterable[Tuned]) -> dict[str, Any]:
    """The whole grid with all scores, and the picks."""
    if (asked := sweep.tune) is None:
        return {}
    settings = dict[str, dict[str, Any]]()
    for tuned in methods:
        settings.setdefault(tuned.setting, {})[tuned.label] = {
            "measure": tuned.measure,
            "higher_is_better": tuned.higher_is_better,
            "tried": [
                {
                    "point": dict(t.point),
                    "scores": {str(seed): value for seed, value in t.scores.items()},
                    "mean": t.mean,
                    "failed": {str(seed): why for seed, why in t.failed.items()},
                }
                for t in tuned.tried
            ],
            "missing": list(tuned.missing),
            "picked": tuned.pick,
            "edges": tuned.edges,
        }
    return {
        "format": FORMAT,
        "seeds": list(asked.seeds),
        "grid": asked.grid,
        "also": asked.also,
        "changes": asked.changes,
        "settings": settings,
    }
