"""The gate: whatever a client sends, it is admitted as it should be or refused with a reason."""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.coordinator.admit import Claims, Expected, Span, admit
from fedsdr.coordinator.loop import LoopSettings, run_rounds
from fedsdr.errors import RoundFailed, UpdateRefused
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import Lost, ServerState, Update

A, B = "R/l.A", "R/l.B"
SHARED = {A: torch.zeros(2, 3), B: torch.zeros(4, 2)}
EXPECTED = Expected("run", 3, "base", {"a": SHARED, "b": SHARED}, {"a": Claims(Span(5.0, 5.0))})
GOOD = Update(
    run="run",
    round=3,
    client_id="a",
    base_digest="base",
    weight=5.0,
    shared={A: torch.ones(2, 3), B: torch.ones(4, 2)},
    metrics={"loss": 1.0},
)


def with_tensor(value: Any, name: str = A) -> Any:
    return {"shared": {**GOOD.shared, name: value}}


def filled(value: float) -> torch.Tensor:
    one = torch.ones(2, 3)
    one[1, 2] = value
    return one


NAN, INF = math.nan, math.inf
with warnings.catch_warnings():  # torch calls these kinds of tensors beta or deprecated
    warnings.simplefilter("ignore")
    ROWS = torch.ones(2, 3).to_sparse_csr()
    QUANTISED = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    NESTED = torch.nested.nested_tensor([torch.ones(3), torch.ones(3)])

BAD: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "NaN": (with_tensor(filled(NAN)), A, "NaN or infinity"),
    "Inf": (with_tensor(filled(INF)), A, "NaN or infinity"),
    "-Inf": (with_tensor(filled(-INF)), A, "NaN or infinity"),
    "all NaN": (with_tensor(torch.full((2, 3), NAN)), A, "NaN or infinity"),
    "NaN in the other": (with_tensor(torch.full((4, 2), NAN), B), B, "NaN or infinity"),
    "transposed": (with_tensor(torch.ones(3, 2)), A, "shape (3, 2), not (2, 3)"),
    "broadcastable (1,)": (with_tensor(torch.ones(1)), A, "shape (1,)"),
    "broadcastable (1, 3)": (with_tensor(torch.ones(1, 3)), A, "shape (1, 3)"),
    "broadcastable (2, 1)": (with_tensor(torch.ones(2, 1)), A, "shape (2, 1)"),
    "scalar": (with_tensor(torch.tensor(1.0)), A, "shape ()"),
    "leading one": (with_tensor(torch.ones(1, 2, 3)), A, "shape (1, 2, 3)"),
    "flat": (with_tensor(torch.ones(6)), A, "shape (6,)"),
    "empty": (with_tensor(torch.ones(0)), A, "shape (0,)"),
    "one row more": (with_tensor(torch.ones(3, 3)), A, "shape (3, 3)"),
    "half": (with_tensor(torch.ones(2, 3).half()), A, "dtype torch.float16"),
    "bfloat16": (with_tensor(torch.ones(2, 3).bfloat16()), A, "dtype torch.bfloat16"),
    "double": (with_tensor(torch.ones(2, 3).double()), A, "dtype torch.float64"),
    "integers": (with_tensor(torch.ones(2, 3, dtype=torch.long)), A, "dtype torch.int64"),
    "booleans": (with_tensor(torch.ones(2, 3, dtype=torch.bool)), A, "dtype torch.bool"),
    "complex": (with_tensor(torch.ones(2, 3, dtype=torch.cfloat)), A, "dtype torch.complex64"),
    "sparse": (with_tensor(torch.ones(2, 3).to_sparse()), A, "no dense tensor"),
    "sparse rows": (with_tensor(ROWS), A, "no dense tensor"),
    "quantised": (
        with_tensor(QUANTISED),
        A,
        "no dense tensor",
    ),
    "no values": (with_tensor(torch.ones(2, 3, device="meta")), A, "no dense tensor"),
    "nested": (
        with_tensor(NESTED),
        A,
        "no dense tensor",
    ),
    "numpy": (with_tensor(np.ones((2, 3), dtype=np.float32)), A, "a ndarray, not a tensor"),
    "list": (with_tensor([[1.0] * 3] * 2), A, "a list, not a tensor"),
    "number": (with_tensor(1.0), A, "a float, not a tensor"),
    "None": (with_tensor(None), A, "a NoneType, not a tensor"),
    "bytes": (with_tensor(b"\0" * 24), A, "a bytes, not a tensor"),
    "missing A": ({"shared": {B: GOOD.shared[B]}}, A, "missing"),
    "missing B": ({"shared": {A: GOOD.shared[A]}}, B, "missing"),
    "nothing shared": ({"shared": {}}, A, "missing"),
    "shared is None": ({"shared": None}, None, "no mapping"),
    "shared is a list": ({"shared": [GOOD.shared[A]]}, None, "no mapping"),
    "an extra tensor": (with_tensor(torch.ones(2, 3), "R/m.A"), "R/m.A", "not asked for"),
    "the private branch": (with_tensor(torch.ones(2, 3), "S/l.A"), "S/l.A", "not asked for"),
    "a tensor without a name": (with_tensor(torch.ones(2, 3), ""), None, "not asked for"),
    "a number for a name": (with_tensor(torch.ones(2, 3), 7), None, "not asked for"),
    "unknown client": ({"client_id": "z"}, None, "not asked"),
    "client is a number": ({"client_id": 3}, None, "not asked"),
    "client is a list": ({"client_id": ["a"]}, None, "not asked"),
    "client is an enormous number": ({"client_id": 10**5000}, None, "not asked"),
    "weight 0": ({"weight": 0.0}, None, "not above 0"),
    "weight negative": ({"weight": -1.0}, None, "not above 0"),
    "weight NaN": ({"weight": NAN}, None, "no finite number"),
    "weight Inf": ({"weight": INF}, None, "no finite number"),
    "weight -Inf": ({"weight": -INF}, None, "no finite number"),
    "weight above its rows": ({"weight": 10.5}, None, "not what this client weighs, 5"),
    "weight below its rows": ({"weight": 4.5}, None, "not what this client weighs, 5"),
    "weight huge, not enrolled": ({"client_id": "b", "weight": 1e10}, None, "from 1e-06 to 1e+09"),
    "weight tiny, not enrolled": ({"client_id": "b", "weight": 1e-50}, None, "from 1e-06 to 1e+0"),
    "weight the least there is": ({"client_id": "b", "weight": 5e-324}, None, "from 1e-06 to 1e"),
    "weight beyond doubles": ({"weight": 10**400}, None, "no finite number"),
    "weight beyond printing": ({"weight": 10**5000}, None, "no finite number"),
    "weight True": ({"weight": True}, None, "no finite number"),
    "weight text": ({"weight": "5"}, None, "no finite number"),
    "weight None": ({"weight": None}, None, "no finite number"),
    "weight tensor": ({"weight": torch.tensor(5.0)}, None, "no finite number"),
    "weight complex": ({"weight": 5 + 0j}, None, "no finite number"),
    "earlier round": ({"round": 2}, None, "round 3"),
    "later round": ({"round": 4}, None, "round 3"),
    "round as a float": ({"round": 3.0}, None, "round 3"),
    "round as text": ({"round": "3"}, None, "round 3"),
    "round None": ({"round": None}, None, "round 3"),
    "another run": ({"run": "nur"}, None, "another run"),
    "no run": ({"run": None}, None, "another run"),
    "another base": ({"base_digest": "esab"}, None, "another base model"),
    "no base": ({"base_digest": ""}, None, "another base model"),
    "metric not allowed": ({"metrics": {"prompt": 1.0}}, None, "'prompt' is not on the list"),
    "metric of a strange stage": ({"metrics": {"loss_999": 1.0}}, None, "not on the list"),
    "metric hiding digits": ({"metrics": {"tokens_31415926535": 1.0}}, None, "not on the list"),
    "metric with a line break": ({"metrics": {"loss\n": 1.0}}, None, "not on the list"),
    "metric without a name": ({"metrics": {3: 1.0}}, None, "not on the list"),
    "metric NaN": ({"metrics": {"loss": NAN}}, None, "'loss' is no finite number"),
    "metric Inf": ({"metrics": {"steps": INF}}, None, "'steps' is no finite number"),
    "metric text": ({"metrics": {"loss": "secret"}}, None, "'loss' is no finite number"),
    "metric True": ({"metrics": {"loss": True}}, None, "'loss' is no finite number"),
    "metric beyond doubles": ({"metrics": {"loss": 10**400}}, None, "'loss' is no finite number"),
    "steps beyond all sums": ({"metrics": {"steps": 1.7e308}}, None, "'steps' is 1.7e+308"),
    "tokens beyond all sums": ({"metrics": {"tokens_2": 1e300}}, None, "'tokens_2' is 1e+300"),
    "steps negative": ({"metrics": {"steps": -1}}, None, "a whole number from 0 to 1e+12"),
    "half a step": ({"metrics": {"steps": 2.5}}, None, "a whole number from 0 to 1e+12"),
    "a loss below zero": ({"metrics": {"loss": -0.5}}, None, "a number from 0 to 1e+06"),
    "a loss beyond reason": ({"metrics": {"loss_2": 1e300}}, None, "a number from 0 to 1e+06"),
    "examples negative": ({"metrics": {"examples": -3}}, None, "a whole number from 0"),
    "metrics are a list": ({"metrics": ["loss"]}, None, "no mapping"),
    "metrics are None": ({"metrics": None}, None, "no mapping"),
}


def test_a_good_update_passes_as_it_is() -> None:
    assert admit(GOOD, EXPECTED) is GOOD
    assert admit(replace(GOOD, weight=5), EXPECTED, {"b"}).weight == 5
    stages = {"loss": 0.0, "loss_2": 1.0, "steps_2": 3, "tokens": 9, "tokens_12": 1, "examples": 5}
    admit(replace(GOOD, metrics=stages), EXPECTED)
    admit(replace(GOOD, client_id="b", weight=1e9), EXPECTED)


def test_there_are_enough_bad_ones() -> None:
    assert len(BAD) >= 60


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_is_refused_by_name(kind: str) -> None:
    changes, tensor, reason = BAD[kind]
    bad = replace(GOOD, **changes)
    with pytest.raises(UpdateRefused) as caught:
        admit(bad, EXPECTED)
    error = caught.value
    assert reason in error.reason
    assert len(str(error)) < 500
    if isinstance(bad.client_id, str):
        assert error.client_id == bad.client_id
        assert repr(bad.client_id) in str(error)
    if tensor is not None:
        assert error.tensor == tensor
        assert repr(tensor) in str(error)


def test_the_second_update_of_a_client_is_refused() -> None:
    with pytest.raises(UpdateRefused, match=r"'a' refused: a second update"):
        admit(GOOD, EXPECTED, {"a"})


ODD = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=8)
    | st.lists(st.integers(), max_size=2)
    | st.just(10**400)
    | st.sampled_from([*SHARED.values(), torch.ones(1), torch.tensor(NAN)])
)
TENSORS = st.dictionaries(
    st.sampled_from([A, B, "S/l.A", ""]) | st.text(max_size=4), ODD, max_size=3
)


@settings(max_examples=300, deadline=None)
@given(
    field=st.sampled_from(
        ["run", "round", "client_id", "base_digest", "weight", "shared", "metrics"]
    ),
    value=ODD | TENSORS,
)
def test_anything_at_all_is_refused_or_is_what_was_asked_for(field: str, value: Any) -> None:
    admitted: Any = None
    with contextlib.suppress(UpdateRefused):
        admitted = admit(replace(GOOD, **{field: value}), EXPECTED)
    if admitted is None:
        return
    assert (admitted.run, admitted.round, admitted.base_digest) == ("run", 3, "base")
    assert type(admitted.round) is int
    least, most = (5, 5) if admitted.client_id == "a" else (1e-6, 1e9)
    assert least <= admitted.weight <= most
    assert {n: t.shape for n, t in admitted.shared.items()} == {
        n: t.shape for n, t in SHARED.items()
    }
    assert all(0 <= v <= 1e12 for v in admitted.metrics.values())


class Scripted:
    """A cohort that answers what it is told to."""

    def __init__(self, *bad: Any) -> None:
        self.bad = bad

    def ask(self, orders: Any, answered: Any) -> Any:
        for order in orders:
            good = replace(GOOD, round=order.round, client_id=order.client_id, weight=1.0)
            if order.client_id != "a":
                yield good
            elif order.round == 1:
                yield from (b if isinstance(b, Lost) else replace(good, **b) for b in self.bad)
            else:
                yield good


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize(
    "bad",
    [
        with_tensor(filled(NAN)),
        {"weight": NAN},
        {"round": 7},
        {"client_id": "z"},
        Lost("a", "asleep"),
    ],
    ids=["NaN", "weight", "round", "stranger", "lost"],
)
def test_a_round_goes_on_without_a_refused_client_and_says_so(bad: Any, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "", {"run": "run"})
    told: list[Any] = []
    outcome = run_rounds(
        fedavg(),
        Scripted(bad),
        clients=["a", "b"],
        first=ServerState(0, SHARED),
        run=run,
        settings=LoopSettings(run="run", seed=1, rounds=2, lr=0.1),
        base_digest="base",
        told=told.append,
    )
    first, second = run.rows("rounds.jsonl")
    assert (first["clients"], second["clients"]) == (1, 2)
    assert len(first["refused"]) == 1
    assert ("'z'" if bad == {"client_id": "z"} else "'a'") in first["refused"][0]
    assert second["refused"] == []
    assert torch.equal(outcome.state.shared[A], torch.full((2, 3), 2.0))
    assert [row["round"] for row in told] == [1, 2]


@pytest.mark.usefixtures("no_fsync")
def test_the_good_one_of_two_updates_of_a_client_counts_once(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "", {"run": "run"})
    first = ServerState(0, SHARED)
    settings = LoopSettings(run="run", seed=1, rounds=1, lr=0.1)
    cohort = Scripted({}, with_tensor(torch.full((2, 3), 9.0)))
    outcome = run_rounds(
        fedavg(),
        cohort,
        clients=["a", "b"],
        first=first,
        run=run,
        settings=settings,
        base_digest="base",
    )
    assert torch.equal(outcome.state.shared[A], torch.ones(2, 3))
    assert "second update" in run.rows("rounds.jsonl")[0]["refused"][0]


@pytest.mark.usefixtures("no_fsync")
def test_too_few_admitted_fail_the_round_with_the_reasons(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "", {"run": "run"})
    settings = LoopSettings(run="run", seed=1, rounds=1, lr=0.1, quorum=2)
    with pytest.raises(RoundFailed, match=r"1 of 2 .*'a' refused: weight"):
        run_rounds(
            fedavg(),
            Scripted({"weight": -1.0}),
            clients=["a", "b"],
            first=ServerState(0, SHARED),
            run=run,
            settings=settings,
            base_digest="base",
        )
