"""The gate of reports: what a client may tell in answer to anything but an order to train."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from fedsdr.coordinator.reports import Inquiry
from fedsdr.distill.audit import audit_row, client_audit
from fedsdr.distill.prompts import choose_template
from fedsdr.distill.selection import Choice, Draft
from fedsdr.types import Example, Lost, Order, Report, Task

LENGTHS = {
    "edges": [0, 8], "counts": [1, 2], "p10": 3, "p50": 4, "p90": None, "mean": 4.5
}  # fmt: skip
PROFILE: dict[str, Any] = {
    "rows": {"train": 3, "validation": 0, "test": 1},
    "domains": {"medicine": 3},
    "origins": {},
    "prompt_tokens": LENGTHS,
    "response_tokens": {"raw": LENGTHS},
}
EXAMPLE = Example("e", "What colour?", "It is green.")
AUDIT = asdict(
    client_audit(
        [
            audit_row(
                EXAMPLE,
                "a",
                choose_template(EXAMPLE, "auto"),
                Choice("Green.", True, 0, ()),
                [Draft("Green.", False)],
            )
        ]
    )
)
GOOD: dict[Task, Any] = {
    "score": {"loss": 1.5, "perplexity": math.inf},
    "profile": PROFILE,
    "rewrite": {"audit": AUDIT, "faithful": {"fact": [2, 3]}},
    "answer": {"answers": 5},
    "save": {"adapters": 1},
}


class Clients:
    """Each answers as it is told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.orders = answers, list[Order]()

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterable[Any]:
        self.orders += orders
        return self.answers


def told(task: Task, *answers: Any, clients: Sequence[str] = ("a", "b")) -> tuple[Any, list[str]]:
    said = list[str]()
    return Inquiry(Clients(*answers), "run", 1, said.append)(task, clients, 2), said


def report(task: Task, values: Any, client: Any = "a", **other: Any) -> Report:
    return replace(Report("run", 2, client, task, values), **other)


@pytest.mark.parametrize("task", GOOD)
def test_what_is_on_the_list_is_let_through(task: Task) -> None:
    found, said = told(task, report(task, GOOD[task], "b"), report(task, GOOD[task]))
    assert (list(found), said) == (["a", "b"], []), "in the clients' order"


def test_a_client_that_rewrites_nothing_tells_nothing() -> None:
    assert told("rewrite", report("rewrite", {})) == ({}, [])


BAD: dict[str, tuple[Task, Any]] = {
    "text for a number": ("score", {"loss": "the patient's name is Ada"}),
    "a truth for a number": ("score", {"loss": True}),
    "a record in a name": ("score", {"the patient's name is Ada": 1.0}),
    "a list": ("score", [1.0]),
    "nothing": ("score", None),
    "100 measures": ("score", {f"m{i}": 1.0 for i in range(100)}),
    "an object": ("score", {"loss": object()}),
    "one key too many": ("profile", {**PROFILE, "prompts": ["who is ill?"]}),
    "one key too few": ("profile", {k: v for k, v in PROFILE.items() if k != "rows"}),
    "a long label": ("profile", {**PROFILE, "domains": {"x" * 81: 1}}),
    "66 labels": ("profile", {**PROFILE, "domains": {f"d{i}": 9 for i in range(66)}}),
    "rows below zero": ("profile", {**PROFILE, "rows": {"train": -1, "validation": 0, "test": 0}}),
    "rows beyond all": (
        "profile", {**PROFILE, "rows": {"train": 10**40, "validation": 0, "test": 0}}
    ),
    "a third view": ("profile", {**PROFILE, "response_tokens": dict.fromkeys("abc", LENGTHS)}),
    "texts in an audit": ("rewrite", {"audit": {**AUDIT, "texts": ["raw", "new"]}}),
    "no audit": ("rewrite", {"audit": {}}),
    "three counts": ("rewrite", {"audit": AUDIT, "faithful": {"fact": [1, 2, 3]}}),
    "the answers themselves": ("answer", {"answers": ["It is Ada."]}),
    "more than a count": ("answer", {"answers": 1, "texts": ["It is Ada."]}),
    "a path": ("save", {"adapters": 1, "folder": "/home"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_is_refused_by_client_and_task(name: str) -> None:
    task, values = BAD[name]
    found, (line,) = told(task, report(task, values), report(task, GOOD[task], "b"))
    assert list(found) == ["b"]
    assert line.startswith(f"update of client 'a' refused: its {task} is not what may be sent")
    assert "Ada" not in line
    assert len(line) < 400


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (report("score", {"loss": 1.0}, "z"), "was not asked"),
        (report("score", {"loss": 1.0}, 7), "was not asked"),
        (report("score", {"loss": 1.0}, run="other"), "answers another order"),
        (report("score", {"loss": 1.0}, round=3), "answers another order"),
        (report("profile", PROFILE), "answers another order"),
        (object(), "was not asked"),
        (None, "was not asked"),
    ],
)
def test_an_answer_to_another_question_is_none(answer: Any, why: str) -> None:
    found, (line,) = told("score", answer)
    assert found == {}
    assert why in line


def test_a_second_answer_does_not_count() -> None:
    one, other = report("score", {"loss": 1.0}), report("score", {"loss": 0.0})
    found, (line,) = told("score", one, other)
    assert found == {"a": {"loss": 1.0}}
    assert "a second answer to score" in line


def test_the_words_of_a_lost_client_steer_no_terminal() -> None:
    _, (line, other) = told("score", Lost("a\x1b[2J", "\x1b[31m\n" + "x" * 10**6), Lost("b", 7))
    assert line.isprintable()
    assert len(line) < 400
    assert other == "client 'b' lost: 7"


def test_a_client_that_is_lost_is_named() -> None:
    found, (line,) = told("score", Lost("a", "its power went off"), report("score", {}, "b"))
    assert found == {"b": {}}
    assert line == "client 'a' lost: its power went off"
