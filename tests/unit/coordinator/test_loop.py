"""The round loop with a cohort of numbers: who is asked, at what rate, and when it stops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.coordinator.loop import (
    Judge,
    LoopSettings,
    Observe,
    Outcome,
    learning_rate,
    run_rounds,
    sample_clients,
)
from fedsdr.errors import CorruptArtifact, RoundFailed, RunError
from fedsdr.runs.digests import SpooledUpdates
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import ServerState, Update

pytestmark = pytest.mark.usefixtures("no_fsync")
SETTINGS = LoopSettings(run="run", seed=1, rounds=4, lr=0.1)
NAMES = [f"c{i:02}" for i in range(10)]


class Counting:
    """Every client adds 1 to the only number, and tells what it was asked."""

    def __init__(self, silent: tuple[str, ...] = ()) -> None:
        self.asked: list[tuple[int, str]] = []
        self.rates: list[float] = []
        self.silent = silent

    def ask(self, orders: Any, answered: Any) -> Any:
        for order in orders:
            self.asked.append((order.round, order.client_id))
            self.rates.append(order.settings["lr"])
            if order.client_id not in self.silent:
                change = {"R/w": torch.ones(1)}
                metrics = {"loss": 1.0, "steps": 2, "steps_2": 3, "tokens": 10, "examples": 4}
                yield Update(
                    run="run",
                    round=order.round,
                    client_id=order.client_id,
                    base_digest="base",
                    weight=4.0,
                    shared=change,
                    metrics=metrics,
                )


def run(
    root: Path,
    cohort: Counting | None = None,
    judge: Judge | None = None,
    clients: tuple[str, ...] = ("a", "b"),
    observe: Observe | None = None,
    **settings: Any,
) -> tuple[Outcome, RunDirectory]:
    try:
        directory = RunDirectory.create(root, "", {"run": "run"})
    except RunError:
        directory = RunDirectory.open(root)
    outcome = run_rounds(
        fedavg(),
        cohort or Counting(),
        clients=clients,
        first=ServerState(0, {"R/w": torch.zeros(1)}),
        run=directory,
        settings=replace(SETTINGS, **settings),
        base_digest="base",
        judge=judge,
        observe=observe,
    )
    return outcome, directory


def judging(scores: Mapping[int, float], higher: bool = True) -> Judge:
    """A judge with a fixed score per round."""
    return Judge(lambda s: {"global": {"a": {"recall": scores[s.round]}}}, "recall", higher)


def test_a_constant_rate() -> None:
    assert {learning_rate(SETTINGS, r) for r in range(1, 5)} == {0.1}


def test_a_cosine_from_lr_to_min_lr() -> None:
    """Five rounds: cos(0, π/4, π/2, 3π/4, π) is 1, √½, 0, −√½, −1 between 0.1 and 0.02."""
    settings = replace(SETTINGS, rounds=5, schedule="cosine", min_lr=0.02)
    half = 0.04 * math.sqrt(0.5)
    expected = [0.1, 0.06 + half, 0.06, 0.06 - half, 0.02]
    assert [learning_rate(settings, r) for r in range(1, 6)] == pytest.approx(expected)
    assert learning_rate(replace(settings, rounds=1), 1) == 0.1


def test_the_rate_reaches_the_clients_and_the_rows(tmp_path: Path) -> None:
    cohort = Counting()
    _, directory = run(tmp_path / "r", cohort, clients=("a",), schedule="cosine")
    assert [row["lr"] for row in directory.rows("rounds.jsonl")] == cohort.rates
    assert len(set(cohort.rates)) == 4


@pytest.mark.parametrize(
    ("participation", "clients", "count"),
    [
        (1.0, 10, 10),
        (0.5, 10, 5),
        (0.28, 25, 7),  # 0.28 * 25 is 7.000000000000001
        (0.25, 10, 3),
        (0.01, 10, 1),
        (3, 10, 3),
        (30, 10, 10),
    ],
)
def test_how_many_take_part(participation: float, clients: int, count: int) -> None:
    names = [f"c{i:02}" for i in range(clients)]
    drawn = sample_clients(names, replace(SETTINGS, participation=participation), 1)
    assert len(set(drawn)) == len(drawn) == count
    assert set(drawn) <= set(names)


def test_who_takes_part_hangs_on_seed_and_round_alone() -> None:
    settings = replace(SETTINGS, participation=3)
    drawn = [tuple(sample_clients(NAMES, settings, r)) for r in range(1, 40)]
    assert drawn == [tuple(sample_clients(NAMES[::-1], settings, r)) for r in range(1, 40)]
    assert len(set(drawn)) > 25
    assert {name for own in drawn for name in own} == set(NAMES)
    assert tuple(sample_clients(NAMES, replace(settings, seed=2), 1)) != drawn[0]


def test_a_row_says_what_was_done(tmp_path: Path) -> None:
    outcome, directory = run(tmp_path / "r", rounds=2)
    assert outcome.state.shared["R/w"].item() == 2.0
    row = directory.rows("rounds.jsonl")[1]
    assert (row["round"], row["clients"], row["refused"]) == (2, 2, [])
    assert row["losses"] == {"a": 1.0, "b": 1.0}
    assert (row["loss_of"], row["other_losses"]) == ("R on raw", {})
    assert (row["loss"], row["steps"], row["tokens"]) == (1.0, 10, 20)
    assert (row["bytes_up"], row["bytes_down"]) == (8, 8)
    ledger = directory.rows("ledger.jsonl")
    assert [(m["round"], m["client"], m["bytes"]) for m in ledger] == [
        (1, "a", 4), (1, "b", 4), (2, "a", 4), (2, "b", 4)
    ]  # fmt: skip


def test_what_each_client_scored_is_kept_beside_the_means(tmp_path: Path) -> None:
    """Of "b" the judge knows no redundancy: the mean is over those that have one."""
    by_client = {
        "global": {"a": {"recall": 0.25, "redundancy": 0.5}, "b": {"recall": 0.75}},
        "personal": {"a": {"recall": 1.0}, "b": {"recall": 0.0}},
    }
    judge = Judge(lambda state: by_client, "recall", True)
    _, directory = run(tmp_path / "r", judge=judge, rounds=3, evaluate_every=2)
    assert directory.rows("validation.jsonl") == [
        {"round": 2, "scores": by_client}, {"round": 3, "scores": by_client}
    ]  # fmt: skip
    assert [row["validation"] for row in directory.rows("rounds.jsonl")] == [
        {},
        *2 * [{"global": {"recall": 0.5, "redundancy": 0.5}, "personal": {"recall": 0.5}}],
    ]


def test_who_observes_sees_both_states_and_all_that_was_admitted(tmp_path: Path) -> None:
    def observe(
        before: ServerState, admitted: SpooledUpdates, counted: Any, after: ServerState
    ) -> Mapping[str, Any]:
        change = float(after.shared["R/w"] - before.shared["R/w"])
        return {"change": change, "clients": [u.client_id for u in admitted for _ in range(2)]}

    _, directory = run(tmp_path / "r", rounds=2, observe=observe)
    assert directory.rows("diagnostics.jsonl") == [
        {"round": n, "change": 1.0, "clients": ["a", "a", "b", "b"]} for n in (1, 2)
    ]


def test_seconds_by_phase(tmp_path: Path) -> None:
    judge = judging({2: 0.5})
    _, directory = run(tmp_path / "r", judge=judge, rounds=2, evaluate_every=2)
    rows = directory.rows("timings.jsonl")
    assert [(row["round"], row["phase"]) for row in rows] == [
        (1, "training"), (1, "combining"), (2, "training"), (2, "combining"), (2, "validation")
    ]  # fmt: skip
    assert all(0.0 <= row["seconds"] < 60.0 for row in rows)


def test_a_round_that_failed_leaves_no_rows_for_the_next_try(tmp_path: Path) -> None:
    judge = judging({1: 0.5, 2: math.nan})
    with pytest.raises(RoundFailed, match="diverged"):
        run(tmp_path / "r", judge=judge, rounds=2)
    _, directory = run(tmp_path / "r", judge=judging({2: 0.5}), rounds=2)
    assert [row["round"] for row in directory.rows("validation.jsonl")] == [1, 2]
    phases = [row["phase"] for row in directory.rows("timings.jsonl") if row["round"] == 2]
    assert phases == ["training", "combining", "validation"]


def test_a_quorum(tmp_path: Path) -> None:
    two = Counting(silent=("b",))
    outcome, _ = run(tmp_path / "r", two, clients=("a", "b", "c"), quorum=2, rounds=1)
    assert outcome.state.round == 1
    with pytest.raises(RoundFailed, match="round 1: 1 of 3 clients answered, 2 are needed"):
        run(tmp_path / "s", Counting(silent=("b", "c")), clients=("a", "b", "c"), quorum=2)
    with pytest.raises(RoundFailed, match="no client answered"):
        run(tmp_path / "t", Counting(silent=("a", "b")))


def test_a_failed_round_can_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(RoundFailed):
        run(tmp_path / "r", Counting(silent=("b",)), quorum=2, rounds=2)
    outcome, directory = run(tmp_path / "r", Counting(), quorum=2, rounds=2)
    assert outcome.state.shared["R/w"].item() == 2.0
    assert len(directory.rows("rounds.jsonl")) == 2


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ({1: 0.1, 2: 0.4, 3: 0.3, 4: 0.2}, True, 2),
        ({1: 0.1, 2: 0.4, 3: 0.4, 4: 0.2}, True, 2),  # the earlier of equals
        ({1: 3.0, 2: 2.0, 3: 1.0, 4: 1.5}, False, 3),
        ({1: math.nan, 2: 0.1, 3: 0.0, 4: 0.0}, True, 2),
    ],
)
def test_the_best_round_on_validation(
    scores: dict[int, float], higher: bool, best: int, tmp_path: Path
) -> None:
    finite = {r: s for r, s in scores.items() if math.isfinite(s)}
    judge = Judge(
        lambda s: {"global": {"a": {"recall": scores[s.round]} if s.round in finite else {}}},
        "recall",
        higher,
    )
    outcome, directory = run(tmp_path / "r", judge=judge)
    assert outcome.best == {"global": best}
    assert outcome.state.round == 4
    kept = directory.load_checkpoint(best).tensors["shared"]["R/w"].item()
    assert kept == best
    assert directory.checkpoints() == sorted({best, 3, 4})
    assert directory.rows("rounds.jsonl")[-1]["best_rounds"] == {"global": best}


def test_every_deployed_model_has_a_best_round_of_its_own(tmp_path: Path) -> None:
    scores = {
        "global": {1: 0.4, 2: 0.1, 3: 0.1, 4: 0.1},
        "personal": {1: 0, 2: 0.3, 3: 0.5, 4: 0.2},
    }
    judge = Judge(
        lambda s: {mix: {"a": {"recall": of[s.round]}} for mix, of in scores.items()},
        "recall",
        True,
    )
    outcome, directory = run(tmp_path / "r", judge=judge)
    assert outcome.best == {"global": 1, "personal": 3}
    assert directory.checkpoints() == [1, 3, 4]


def test_a_validation_score_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    judge = judging({1: 0.1, 2: math.nan, 3: 0.3, 4: 0.2})
    with pytest.raises(RoundFailed, match=r"round 2: the global model's recall .* diverged"):
        run(tmp_path / "r", judge=judge)


def test_without_validation_the_last_round_is_the_best(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path / "r")
    assert outcome.best == {}
    assert outcome.chosen("global") == 4


def test_validation_every_n_rounds_and_at_the_end(tmp_path: Path) -> None:
    judge = judging(dict.fromkeys(range(1, 8), 0.5))
    _, directory = run(tmp_path / "r", judge=judge, rounds=7, evaluate_every=3)
    rows = directory.rows("rounds.jsonl")
    assert [row["round"] for row in rows if row["validation"]] == [3, 6, 7]


def test_patience(tmp_path: Path) -> None:
    """Best at 2, then two evaluations without a better one: no round 5, nor by a resume."""
    judge = judging({1: 0.1, 2: 0.4, 3: 0.3, 4: 0.2, 5: 0.9, 6: 0.9})
    outcome, directory = run(tmp_path / "r", judge=judge, rounds=6, patience=2)
    assert (outcome.state.round, outcome.chosen("global")) == (4, 2)
    again, _ = run(tmp_path / "r", judge=judge, rounds=6, patience=2)
    assert (again.state.round, again.chosen("global")) == (4, 2)
    assert len(directory.rows("rounds.jsonl")) == 4


def test_a_finished_run_is_not_trained_on(tmp_path: Path) -> None:
    run(tmp_path / "r")
    cohort = Counting()
    outcome, _ = run(tmp_path / "r", cohort)
    assert cohort.asked == []
    assert outcome.state.shared["R/w"].item() == 4.0


def test_without_one_whole_checkpoint_it_says_so(tmp_path: Path) -> None:
    _, directory = run(tmp_path / "r")
    for file in directory.root.glob("checkpoints/*/state.json"):
        file.write_text("{}")
    with pytest.raises(CorruptArtifact, match=r"no checkpoint that can be used.*round 4.*round 3"):
        run(tmp_path / "r")
