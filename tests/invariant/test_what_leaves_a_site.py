"""All that passes the seam in whole runs: no text of a record, no tensor of a branch that stays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fedsdr.coordinator.gather import Cohort
from fedsdr.jobs.train import train
from fedsdr.model.base import BaseModel
from fedsdr.types import ClientData, Order, Report, Update
from toy import clients, recipe

pytestmark = pytest.mark.usefixtures("no_fsync")
MARK = "Marudelbrant"  # in every text of every record
TASKS = {"train", "rewrite", "profile", "score", "answer", "save"}


@dataclass(slots=True)
class Overheard:
    cohort: Cohort
    tasks: set[str] = field(default_factory=lambda: set[str]())
    answers: list[Any] = field(default_factory=lambda: list[Any]())

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterator[Any]:
        self.tasks |= {order.task for order in orders}
        for answer in self.cohort.ask(orders, answered):
            self.answers.append(answer)
            yield answer


def marked(client: ClientData) -> ClientData:
    def of(rows: Any) -> Any:
        return tuple(
            replace(e, id=f"{MARK}{e.id}", prompt=f"{MARK} {e.prompt}", origin=f"{MARK}{n}",
                    response=f"{MARK} {e.response}", domain="towns")
            for n, e in enumerate(rows)
        )  # fmt: skip

    return replace(
        client, train=of(client.train), validation=of(client.validation), test=of(client.test)
    )


def leaves(value: Any) -> Iterator[Any]:
    """Names and values, however deep."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield from leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.parametrize(
    "options",
    [{}, {"schedule": "joint"}, {"teacher": "global", "redistill_every": 1}],
    ids=["sequential", "joint", "the global model rewrites"],
)
def test_no_record_and_nothing_of_s(
    options: dict[str, Any], tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    heard = list[Overheard]()

    def wrap(cohort: Cohort) -> Cohort:
        heard.append(Overheard(cohort))
        return heard[-1]

    train(
        recipe(tiny_folder, algorithm={"name": "fedsdr", "options": options}),
        tmp_path / "run",
        base=base64,
        clients=[marked(client) for client in clients((6, 5, 7)).values()],
        wrap=wrap,
    )
    (ear,) = heard
    assert ear.tasks == TASKS
    reports = [a for a in ear.answers if isinstance(a, Report)]
    updates = [a for a in ear.answers if isinstance(a, Update)]
    assert len(reports) + len(updates) == len(ear.answers)
    for report in reports:
        assert MARK not in json.dumps(asdict(report))
        texts = {v for v in leaves(report.values) if isinstance(v, str)}
        assert all(len(text) <= 40 and " " not in text for text in texts), texts
    for update in updates:
        assert {name.partition("/")[0] for name in update.shared} == {"R"}
        assert all(type(value) is float or type(value) is int for value in update.metrics.values())
    kept = list((tmp_path / "run" / "clients").rglob("*.jsonl"))
    assert any(MARK in p.read_text() for p in kept), "the answers stayed at home"
