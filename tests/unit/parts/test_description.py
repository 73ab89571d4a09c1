"""What a value is, in words: alike for equal values, different wherever something differs."""

from __future__ import annotations

import enum
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.registry import factories, make_algorithm
from fedsdr.parts.algorithm import Algorithm, Fade, Rule, Stage, Term
from fedsdr.parts.description import MOST, described, difference
from fedsdr.parts.moves import When
from fedsdr.parts.objectives import CrossEntropy, Proximal, Sum
from fedsdr.parts.robust import CoordinateMedian
from fedsdr.parts.views import Raw, Rewritten


@dataclass(frozen=True, slots=True)
class Own:
    weight: float
    names: dict[str, float] = field(default_factory=lambda: dict[str, float]())

    def __call__(self, local: Any) -> Any:
        return self.weight


class Plain:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, local: Any) -> Any:
        return self.weight * 2


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def rule(state: Any, updates: Any) -> Any:
    return state


def scaled(by: float) -> Callable[[Any, Any], Any]:
    return lambda state, updates: (state, by)


def plain(**changes: Any) -> Algorithm:
    term = Term(Raw(), forward="R", train="R", objective=Sum((CrossEntropy(), Proximal(5.0))))
    return replace(Algorithm("mine", (Stage((term,)),)), **changes)


def staged(**changes: Any) -> Algorithm:
    (stage,) = plain().stages
    return plain(stages=(replace(stage, **changes),))


def termed(**changes: Any) -> Algorithm:
    (stage,) = plain().stages
    return plain(stages=(replace(stage, terms=(replace(stage.terms[0], **changes),)),))


OTHERS: dict[str, tuple[Any, str]] = {
    "name": (plain(name="yours"), "algorithm.name is 'yours' and was 'mine'"),
    "mu": (
        termed(objective=Sum((CrossEntropy(), Proximal(1.0)))),
        r"algorithm.stages\[0\].terms\[0\].objective.terms\[1\].mu is 1.0 and was 5.0",
    ),
    "objective": (termed(objective=CrossEntropy()), "objective is the default and was fedsdr"),
    "objective, ours": (termed(objective=Own(1.0)), "objective is test_description.Own"),
    "a float that is no int": (
        termed(objective=Sum((CrossEntropy(), Proximal(5)))),
        "mu is 5 and was 5.0",
    ),
    "view": (termed(view=Rewritten("facts")), "view is fedsdr.Rewritten"),
    "forward": (termed(forward="R+S"), "forward is 'R\\+S'"),
    "weight": (termed(weight=0.5), "weight is 0.5 and was the default"),
    "fade": (termed(fade=Fade("R", 0.5)), "fade is fedsdr.Fade"),
    "when": (staged(when=When(2)), "when is fedsdr.When"),
    "rule": (staged(rule=Rule("sgd", 0.1)), "rule is fedsdr.Rule"),
    "two stages": (plain(stages=plain().stages * 2), "stages is tuple of 2 and was tuple of 1"),
    "share": (plain(share="R.B"), "share is 'R.B'"),
    "combine": (
        plain(combine=CoordinateMedian()),
        "combine is fedsdr.CoordinateMedian",
    ),
    "a function": (plain(combine=rule), "combine is function test_description.rule"),
    "deploys": (plain(deploys={"global": "R", "own": "R"}), "deploys is dict of"),
    "keep": (plain(keep="reset"), "keep is 'reset'"),
    "starts": (plain(starts={"R": "zero"}), "starts is dict of"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_every_part_counts(what: str) -> None:
    other, said = OTHERS[what]
    told = difference(described(plain(), "algorithm"), described(other, "algorithm"))
    assert told is not None
    assert re.search(said, told), told
    assert difference(described(other, "algorithm"), described(plain(), "algorithm"))


def test_equal_values_are_described_alike() -> None:
    assert described(plain(), "algorithm") == described(plain(), "algorithm")
    assert difference(described(plain(), "a"), described(plain(), "a")) is None
    assert described(termed(weight=1.0), "a") == described(plain(), "a")  # the default


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Own(1.0), Own(2.0)),
        (Own(1.0, {"q": 1.0}), Own(1.0, {"q": 2.0})),
        (Plain(1.0), Plain(2.0)),
        (scaled(1.0), scaled(2.0)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x=1: x, lambda x=2: x),
        (functools.partial(rule, 1), functools.partial(rule, 2)),
        (Plain(1.0).__call__, Plain(2.0).__call__),
        (torch.ones(3), torch.ones(4)),
        (torch.ones(3), torch.ones(3, dtype=torch.float64)),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),  # the order of mixes is that of their rows
        ({1, 2}, {1, 3}),
        ((1, 2), [1, 2]),
        (True, 1),
        ("1", 1),
        (0.0, -0.0),
        (float("nan"), 1.0),
        (Color.RED, Color.BLUE),
        (Path("a"), Path("b")),
        ("x" * 300, "x" * 299 + "y"),
        (Raw, CrossEntropy),
        (list(range(900)), [*range(899), 0]),
    ],
)
def test_whatever_differs_is_seen(one: object, other: object) -> None:
    assert difference(described(one, "x"), described(other, "x"))
    assert difference(described(one, "x"), described(one, "x")) is None


def test_an_edited_class_of_the_users_own_is_seen() -> None:
    def made(body: str) -> object:
        space: dict[str, Any] = {"__name__": "mine"}
        source = f"class Mine:\n    mu = 1\n    def __call__(self, x):\n        return {body}\n"
        exec(compile(source, "mine.py", "exec"), space)
        return space["Mine"]()

    told = difference(described(made("x + 1"), "rule"), described(made("x + 2"), "rule"))
    assert told is not None
    assert told.startswith("rule (code) is 3.")
    assert difference(described(made("x + 1"), "rule"), described(made("x + 1"), "rule")) is None
    ours, theirs = described(made("x + 1"), "rule"), described(made("x + 1"), "rule")
    assert difference({**ours, "rule (code)": "3.9 0123"}, theirs) is None  # by another Python


def test_what_cannot_be_described_is_said_so_and_nothing_hangs() -> None:
    assert "cannot be described" in described(iter([1]), "x")["x"]
    knot: list[Any] = [1]
    knot.append(knot)
    assert described(knot, "x")["x[1]"] == "(itself)"
    deep: Any = 0
    for _ in range(500):
        deep = (deep,)
    assert "too deep" in json.dumps(described(deep, "x"))
    assert len(described(list(range(10**5)), "x")) == MOST + 1


@pytest.mark.parametrize("name", sorted(factories()))
def test_in_another_process_it_is_the_same(name: str) -> None:
    """No address, no order of a set: what is compared was written by a process that died."""
    text = json.dumps(described(make_algorithm(name, {}), "algorithm"))
    assert "0x" not in text
    assert len(text) < 8000


def test_hashes_of_another_process_change_nothing() -> None:
    script = (
        "import json\nfrom fedsdr.parts.description import described\n"
        "def f(x):\n    return x in {'a', 'b', 'c', 'd'}\n"
        "print(json.dumps(described([f, {'a', 'b', 'c'}, frozenset('xyz')], 'x')))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
