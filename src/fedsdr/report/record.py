"""One run as its directory tells it.

A run at a glance: what one line of a list says, and each client's course in a few numbers.

Records are taken as they were found: a number that is none is left out, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from fedsdr.report.safe_text import short

Row = Mapping[str, Any]
State = Literal["finished", "running", "stopped", "failed", "purged"]

STATES: Mapping[State, str] = {
    "finished": "finished",
    "running": "under way",
    "stopped": "stopped before its end",
    "failed": "failed",
    "purged": "purged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is missing is None, or has no rows; what is damaged is a sentence in `notes`."""

    path: Path
    name: str  # what the page calls it
    state: State
    facts: Row  # run.json
    recipe_text: str
    recipe: Row
    rounds: Sequence[Row] = ()
    validation: Sequence[Row] = ()
    diagnostics: Sequence[Row] = ()
    timings: Sequence[Row] = ()
    audit: Sequence[Row] = ()  # rewriting_audit.jsonl
    profile: Row | None = None
    rewriting: Row | None = None
    diagnosis: Row | None = None
    results: Row | None = None
    setting: str = ""  # of a sweep's cell
    notes: Sequence[str] = ()
    changed: bool = False  # run.json or the recipe is not what was written

    @property
    def method(self) -> str:
        name = (self.results or {}).get("method") or self.facts.get("algorithm")
        return short(name or "unknown method")

    @property
    def seed(self) -> int | None:
        seed = (self.results or {}).get("seed", self.facts.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def world(self) -> str:
        return short((self.results or {}).get("world") or self.facts.get("world") or "")

    @property
    def base(self) -> str:
        """A digest of the base model, where it is known."""
        return short(self.facts.get("base_digest") or "")

    @property
    def synthetic(self) -> bool:
        """Atlas made every text of this run: nothing in it is private. What was changed by hand is
        not believed."""
        data, from_python = self.recipe.get("data"), self.facts.get("from_python")
        if self.changed or not isinstance(data, Mapping) or not isinstance(from_python, Mapping):
            return False
        rows = any(data.get(source) for source in ("file", "files", "test_files"))
        return bool(data.get("atlas")) and not rows and from_python.get("clients") is False

    @property
    def unscored(self) -> str:
        """Why there are no final scores."""
        return {
            "finished": "There were no test rows to score on.",
            "running": "There are no final scores yet: the run is under way.",
            "stopped": f"There are no final scores yet: `fedsdr resume {self.path}` goes on.",
            "failed": "There are no scores: the run failed.",
            "purged": "There will be no final scores: the run was purged before its end.",
        }[self.state]

    @property
    def clients(self) -> list[str]:
        """Everyone who appears anywhere in the run, in order."""
        scored = [c for of in (self.results or {}).get("clients", {}).values() for c in of]
        trained = [c for row in self.rounds for c in row.get("losses", {})]
        profiled = list((self.profile or {}).get("clients", {}))
        return sorted({*scored, *trained, *profiled}, key=natural)


def natural(name: str) -> list[tuple[int, int | str]]:
    """c2 before c10."""
    parts, digits = list[tuple[int, int | str]](), ""
    for character in f"{name}\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits)))
            digits = ""
        parts.append((1, character))
    return parts


TRAINING_LOSS = "training loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    name: str
    method: str
    seed: int | None
    state: State
    round: int  # the last one that counts
    rounds: int | None  # how many there are to be
    loss: float | None  # of training, mean over clients, in the last round
    measure: str  # what `scores` are of
    split: str  # test once the run is finished, validation before
    scores: Mapping[str, float]  # by deployed mix, mean over clients
    bytes_up: float
    bytes_down: float
    seconds_left: float | None  # at the pace so far; None where no pace is known


@dataclass(frozen=True, slots=True)
class Course:
    """One client's measure by round, in one deployed mix (or in its own training)."""

    client: str
    mix: str
    rounds: tuple[int, ...]
    values: tuple[float, ...]


def glance(record: RunRecord) -> Glance:
    rows, results = record.rounds, record.results
    last = rows[-1] if rows else {}
    done = whole((results or {}).get("rounds")) or whole(last.get("round")) or 0
    planned = whole(_at(record.recipe, "training", "rounds"))
    split, scores = "validation", _last_validation(rows)
    if results is not None:
        split, scores = "test", scores_of(results.get("scores"))
    measure = main_measure(m for values in scores.values() for m in values)
    up, down = (total(record, key) for key in ("bytes_up", "bytes_down"))
    return Glance(
        name=record.name,
        method=record.method,
        seed=record.seed,
        state=record.state,
        round=done,
        rounds=planned or (done if results is not None else None),
        loss=number(last.get("loss")),
        measure=measure,
        split=split,
        scores={mix: values[measure] for mix, values in scores.items() if measure in values},
        bytes_up=up,
        bytes_down=down,
        seconds_left=_left(record, done, planned) if record.state == "running" else None,
    )


def courses(record: RunRecord) -> tuple[str, list[Course]]:
    """The measure, and each client's course: on validation data by mix, else its training loss."""
    points_of = dict[tuple[str, str], list[tuple[int, float]]]()
    evaluated = [(row["round"], _by_client(row.get("scores"))) for row in record.validation]
    measure = main_measure(m for _, rows in evaluated for _, _, scores in rows for m in scores)
    for round, rows in evaluated:
        for mix, client, scores in rows:
            if measure in scores:
                points_of.setdefault((client, mix), []).append((round, scores[measure]))
    if not points_of:
        measure = TRAINING_LOSS
        for row in record.rounds:
            for client, loss in _numbers(row.get("losses")).items():
                points_of.setdefault((client, "training"), []).append((row["round"], loss))
    ordered = sorted(points_of.items(), key=lambda of: (natural(of[0][0]), of[0][1]))
    return measure, [
        Course(client, mix, tuple(r for r, _ in points), tuple(v for _, v in points))
        for (client, mix), points in ordered
    ]


def main_measure(there: Iterable[str]) -> str:
    """What validation is judged by: Atlas's recall, else the held-out loss, else what is there."""
    names = dict.fromkeys(there)
    return next((m for m in ("recall", "loss") if m in names), next(iter(names), ""))


def number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _last_validation(rows: Sequence[Row]) -> Mapping[str, Mapping[str, float]]:
    return next((s for row in reversed(rows) if (s := scores_of(row.get("validation")))), {})


def scores_of(by_mix: object) -> dict[str, dict[str, float]]:
    scores = {mix: _numbers(values) for mix, values in _row(by_mix).items()}
    return {mix: values for mix, values in scores.items() if values}


def _by_client(by_mix: object) -> list[tuple[str, str, dict[str, float]]]:
    return [
        (mix, client, _numbers(scores))
        for mix, clients in _row(by_mix).items()
        for client, scores in _row(clients).items()
    ]


def total(record: RunRecord, key: str) -> float:
    """Of the rounds; a sweep's cell has no rounds, only the sum."""
    if record.rounds:
        return sum(number(row.get(key)) or 0.0 for row in record.rounds)
    return number((record.results or {}).get(key)) or 0.0


def _left(record: RunRecord, done: int, planned: int | None) -> float | None:
    """Rounds still to come, each as long as those so far took on average."""
    timed = [row for row in record.timings if (whole(row.get("round")) or 0) > 0]
    rounds = {row["round"] for row in timed}
    if not rounds or planned is None:
        return None
    seconds = sum(number(row.get("seconds")) or 0.0 for row in timed)
    return max(0, planned - done) * seconds / len(rounds)


def _numbers(values: object) -> dict[str, float]:
    return {key: v for key, value in _row(values).items() if (v := number(value)) is not None}


def _row(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _at(tree: Row, *keys: str) -> object:
    value: object = tree
    for key in keys:
        value = _row(value).get(key)
    return value
