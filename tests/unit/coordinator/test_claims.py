"""What clients say of themselves: honest ones pass, others cannot say more than they could know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.registry import make_algorithm
from fedsdr.coordinator.admit import Enrolled, Expected, Span, admit
from fedsdr.coordinator.gather import Cohort
from fedsdr.coordinator.loop import LoopSettings, run_rounds
from fedsdr.errors import UpdateRefused
from fedsdr.jobs.train import resume, train
from fedsdr.model.base import BaseModel
from fedsdr.parts.local import LocalSettings
from fedsdr.runs.artifact import load_artifact, save_artifact
from fedsdr.runs.digests import spool
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import Order, ServerState, Update
from toy import clients, recipe, tiny_folder, toy

pytestmark = pytest.mark.usefixtures("no_fsync")
TRAINING = LocalSettings(epochs=2.0, batch=3)
SHARED = {"R/l.A": torch.zeros(2, 3)}


def test_a_span_holds_its_ends_and_no_parts_of_a_count() -> None:
    count = Span(0, 3, whole=True)
    assert [count.holds(x) for x in (0, 3, 3.0, 4, -1, 0.5)] == [True] * 3 + [False] * 3
    assert str(count) == "a whole number from 0 to 3"
    assert str(Span(5.0, 5.0)) == "5"


def test_what_the_order_can_take_is_known() -> None:
    """Seven rows by three are three batches, twice; of 64 tokens at most."""
    claims = Enrolled(7, TRAINING, 64).claims(make_algorithm("fedsdr"), 1)
    assert claims.weight == Span(7.0, 7.0)
    assert claims.metrics is not None
    assert set(claims.metrics) == {
        *("examples", "loss", "loss_2", "steps", "steps_2", "tokens", "tokens_2")
    }
    assert claims.metrics["steps_2"] == Span(0, 6, whole=True)
    assert claims.metrics["tokens"] == Span(0, 6 * 3 * 64, whole=True)
    assert claims.metrics["examples"] == Span(7, 7, whole=True)
    assert Enrolled(7, TRAINING, 64, equal=True).claims(fedavg(), 1).weight == Span(1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "options", "by_round"),
    [
        ("fedavg", {}, [{"loss"}] * 3),
        ("fedsdr", {}, [{"loss", "loss_2"}] * 3),
        ("fedsdr", {"schedule": "joint"}, [{"loss", "loss_1_2"}] * 3),
        ("fedsdr", {"schedule": "warmup"}, [{"loss"}, {"loss_2"}, {"loss_2"}]),
        ("fedala", {}, [{"loss_3"}, {"loss", "loss_3"}, {"loss_2", "loss_3"}]),
        ("rolora", {}, [{"loss"}, {"loss_2"}, {"loss"}]),
    ],
)
def test_only_stages_that_run_have_metrics(
    name: str, options: dict[str, Any], by_round: list[set[str]]
) -> None:
    algorithm, enrolled = make_algorithm(name, options), Enrolled(4, TRAINING, 64)
    for number, losses in enumerate(by_round, 1):
        metrics = enrolled.claims(algorithm, number).metrics or {}
        assert {metric for metric in metrics if metric.startswith("loss")} == losses


GOOD = Update(
    run="run",
    round=1,
    client_id="a",
    base_digest="base",
    weight=7.0,
    shared={"R/l.A": torch.ones(2, 3)},
    metrics={"examples": 7, "loss": 1.0, "steps": 6, "tokens": 100},
)
CLAIMS = {"a": Enrolled(7, TRAINING, 64).claims(fedavg(), 1)}
EXPECTED = Expected("run", 1, "base", {"a": SHARED}, CLAIMS)


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"examples": 8}, "'examples' is 8; it must be 7"),
        ({"examples": 6}, "'examples' is 6; it must be 7"),
        ({"steps": 7}, "'steps' is 7; it must be a whole number from 0 to 6"),
        ({"steps": 1.7e308}, "'steps' is 1.7e+308"),
        ({"steps": 5.5}, "a whole number from 0 to 6"),
        ({"tokens": 6 * 3 * 64 + 1}, "'tokens' is 1153"),
        ({"loss": 1e6 + 1}, "a number from 0 to 1e+06"),
        ({"loss": -1e-9}, "a number from 0 to 1e+06"),
        ({"loss_2": 1.0}, "'loss_2' is not on the list"),
        ({"steps_2": 1}, "'steps_2' is not on the list"),
        ({"loss_1_2": 1.0}, "'loss_1_2' is not on the list"),
        *(({name: None}, f"metric {name!r} is missing") for name in GOOD.metrics),
    ],
)
def test_a_claim_beyond_the_order_is_refused(metrics: dict[str, Any], told: str) -> None:
    changed = {n: v for n, v in {**GOOD.metrics, **metrics}.items() if v is not None}
    admit(GOOD, EXPECTED)
    with pytest.raises(UpdateRefused) as caught:
        admit(replace(GOOD, metrics=changed), EXPECTED)
    assert told in str(caught.value)


@pytest.mark.parametrize("weight", [12.0, 6.0, 7.0000001, 1e-50, 1e9])
def test_a_weight_is_the_number_of_rows_or_one(weight: float) -> None:
    for equal in (False, True):
        claims = {"a": Enrolled(7, TRAINING, 64, equal).claims(fedavg(), 1)}
        with pytest.raises(UpdateRefused, match="not what this client weighs, "):
            admit(replace(GOOD, weight=weight), replace(EXPECTED, claims=claims))


@pytest.mark.parametrize("name", ["fedavg", "fedsdr", "fedala", "rolora", "local", "fdlora"])
def test_honest_clients_pass_exactly(name: str, base64: BaseModel, tmp_path: Path) -> None:
    data = clients((2, 7, 4))
    enrolled = {c: Enrolled(len(d.train), LocalSettings(batch=3), 256) for c, d in data.items()}
    with toy(base64, make_algorithm(name), tmp_path / "run", data) as one:
        one.play(3, enrolled=enrolled)
        rows = one.run.rows("rounds.jsonl")
    assert [(row["clients"], row["refused"]) for row in rows] == [(3, [])] * 3


class Answers:
    """A cohort whose clients answer what they are told to; it keeps who was asked."""

    def __init__(self, make: Callable[[Order], Update]) -> None:
        self.make = make
        self.asked = list[str]()

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Any:
        for order in orders:
            if order.client_id not in answered:
                self.asked.append(order.client_id)
                yield self.make(order)


def plain(order: Order, **changes: Any) -> Update:
    ones = {name: torch.ones_like(tensor) for name, tensor in order.shared.items()}
    metrics = {"loss": 1.0, "steps": 6, "tokens": 10, "examples": 7}
    update = Update(
        run="run",
        round=order.round,
        client_id=order.client_id,
        base_digest="base",
        weight=7.0,
        shared=ones,
        metrics=metrics,
    )
    return replace(update, **changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": {"steps": 1.7e308}}, "metric 'steps' is 1.7e+308"),
        ({"metrics": {"loss": "high"}}, "metric 'loss' is no finite number"),
        ({"metrics": {}}, "metric 'loss' is missing"),
        ({"metrics": [1]}, "its metrics are no mapping"),
        ({"weight": 1e-50}, "weight 1e-50"),
        ({"weight": "7"}, "weight '7' is no finite number"),
        ({"run": "another"}, "another run"),
        ({"round": 9}, "does not belong to round 1"),
        ({"base_digest": "other"}, "another base model"),
        ({"shared": {"R/l.A": torch.full((2, 3), torch.nan)}}, "NaN or infinity"),
        ({"shared": {"R/l.A": torch.ones(3)}}, "shape (3,)"),
        ({"shared": {}}, "missing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_was_spooled_passes_the_gate_again(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    """As one version may have let through what the next refuses; the client is asked again."""
    run = RunDirectory.create(tmp_path / "run", "", {"run": "run"})
    order = Order(run="run", round=1, client_id="a", task="train", seed=1, shared=SHARED)
    good = plain(Order(run="run", round=1, client_id="b", task="train", seed=1, shared=SHARED))
    stored = {"metrics": dict(good.metrics), **changes}
    meta = {
        "run": stored.get("run", "run"),
        "round": stored.get("round", 1),
        "base": stored.get("base_digest", "base"),
        "weight": stored.get("weight", 7.0),
        "metrics": stored["metrics"],
    }
    run.save_update("a", 1, {"shared": stored.get("shared", plain(order).shared)}, meta)
    spool(run, good)
    notes, cohort = list[str](), Answers(plain)
    settings = LoopSettings(
        run="run", seed=1, rounds=2, lr=0.1, enrolled={c: Enrolled(7, TRAINING, 64) for c in "ab"}
    )
    outcome = run_rounds(
        fedavg(),
        cohort,
        clients=["a", "b"],
        first=ServerState(0, SHARED),
        run=run,
        settings=settings,
        base_digest="base",
        note=notes.append,
    )
    assert cohort.asked == ["a", "a", "b"]  # "b" had answered round 1 before
    assert len(notes) == 1
    assert told in notes[0]
    assert "dropped and asked for again" in notes[0]
    assert torch.equal(outcome.state.shared["R/l.A"], torch.full((2, 3), 2.0))
    assert [row["refused"] for row in run.rows("rounds.jsonl")] == [[], []]


def test_a_spooled_update_without_its_facts_is_asked_for_again(tmp_path: Path) -> None:
    """Whole, as far as its hashes go."""
    run = RunDirectory.create(tmp_path / "run", "", {"run": "run"})
    for client, meta in (("a", {"weight": 1.0}), ("b", [])):
        at = f"updates/round-00001/{client}"
        about: dict[str, Any] = {"run": "run", "at": at, "states": {}}
        save_artifact(run.root / at, {"shared": SHARED}, {"about": about, "meta": meta})
        assert load_artifact(run.root / at).meta["meta"] == meta
    notes, cohort = list[str](), Answers(plain)
    run_rounds(
        fedavg(),
        cohort,
        clients=["a", "b"],
        first=ServerState(0, SHARED),
        run=run,
        settings=LoopSettings(run="run", seed=1, rounds=1, lr=0.1),
        base_digest="base",
        note=notes.append,
    )
    assert cohort.asked == ["a", "b"]
    assert len(notes) == 2


class Lying:
    """One client of a real run claims more steps than all doubles hold."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort

    def ask(self, orders: Any, answered: Any) -> Any:
        for update in self.cohort.ask(orders, answered):
            if isinstance(update, Update) and update.client_id == "c0":
                yield replace(update, metrics={**update.metrics, "steps": 1.7e308})
            else:
                yield update


def test_one_client_cannot_stop_a_run_or_its_resume(tmp_path: Path) -> None:
    given = list(clients((2, 4, 3)).values())
    chosen = recipe(
        tiny_folder(tmp_path / "model"), algorithm={"name": "fedavg"}, training={"rounds": 2}
    )
    results = train(chosen, tmp_path / "run", clients=given, wrap=Lying)
    rows = RunDirectory.open(tmp_path / "run").rows("rounds.jsonl")
    assert [len(row["refused"]) for row in rows] == [1, 1]
    assert "update of client 'c0' refused: metric 'steps' is 1.7e+308" in rows[0]["refused"][0]
    assert results["steps"] == sum(row["steps"] for row in rows) < 100
    assert resume(tmp_path / "run", clients=given, wrap=Lying)["steps"] == results["steps"]
