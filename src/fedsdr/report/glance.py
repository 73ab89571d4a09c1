"""A run at a glance: what one line of a list says, and each client's course in a few numbers.

Records are taken as they were found: a number that is none is left out, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fedsdr.report.record import Row, RunRecord, State, natural

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
