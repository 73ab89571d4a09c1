"""After every rule the state is one to go on from, or the rule is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from aggregators import aggregators, asked, expected, first_state, honest
from fedsdr.coordinator.admit import admit
from fedsdr.coordinator.combining import combined
from fedsdr.errors import FedsdrError, RoundFailed
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.combine import Mean
from fedsdr.types import ServerState, Update

ALL = aggregators()
every_rule = pytest.mark.parametrize("name", ALL)
LARGEST, SMALLEST = 1e6, 1e-45  # the largest that the gate lets through; the least denormal


def constant(value: float) -> Callable[[Tensor, int], Tensor]:
    return lambda tensor, client: torch.full_like(tensor, value)


EXTREME: dict[str, Callable[[Tensor, int], Tensor]] = {
    "all zero": constant(0.0),
    "all the largest": constant(LARGEST),
    "all the least": constant(-LARGEST),
    "denormals": constant(SMALLEST),
    "opposite": lambda t, k: torch.full_like(t, LARGEST * (-1) ** k),
    "identical": lambda t, k: torch.ones_like(t) * 0.01,
    "one far away": lambda t, k: torch.full_like(t, LARGEST if k == 2 else 0.0),
    "tiny and huge": lambda t, k: torch.full_like(t, 1e-30 if k % 2 else LARGEST),
    "one number": lambda t, k: torch.zeros_like(t).index_fill_(0, torch.tensor([0]), LARGEST),
}


def is_finite(state: ServerState) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in (state.shared | state.slots).values())


def step(
    algorithm: Algorithm, state: ServerState, updates: list[Update]
) -> tuple[ServerState, str]:
    """The next state, or the state as it is and why."""
    for update in updates:
        admit(update, expected(algorithm, state))
    try:
        _, after = combined(algorithm, state, updates, asked(algorithm, state))
    except RoundFailed as error:
        return state, str(error)
    assert is_finite(after)
    return after, ""


@every_rule
def test_honest_updates_make_a_state_round_after_round(name: str) -> None:
    algorithm = ALL[name]
    state = first_state(algorithm)
    for number in range(1, 5):
        state, why = step(algorithm, state, honest(algorithm, state))
        assert (state.round, why) == (number, "")


@every_rule
@pytest.mark.parametrize("kind", EXTREME)
def test_within_the_gates_bounds_nothing_makes_a_broken_state(name: str, kind: str) -> None:
    """In the first round, where slots are new, and in a later one."""
    algorithm = ALL[name]
    for before in (0, 2):
        state = first_state(algorithm)
        for _ in range(before):
            state, _ = step(algorithm, state, honest(algorithm, state))
        updates = [
            replace(u, shared={n: EXTREME[kind](t, k) for n, t in u.shared.items()})
            for k, u in enumerate(honest(algorithm, state))
        ]
        _, why = step(algorithm, state, updates)
        if why:
            assert kind not in ("all zero", "identical", "denormals"), why
            assert why.startswith(f"round {before + 1}: ")
            assert algorithm.name in why or "needs n >= 2f + 3" in why


@every_rule
def test_one_client_alone_is_enough_or_too_few_by_name(name: str) -> None:
    algorithm = ALL[name]
    state = first_state(algorithm)
    _, why = step(algorithm, state, honest(algorithm, state)[:1])
    if "krum" in name:
        assert "needs n >= 2f + 3 = 5 updates, there are n = 1" in why
    else:
        assert why == ""


@every_rule
def test_equal_weights_count_alike_whoever_has_more_rows(name: str) -> None:
    algorithm = ALL[name]
    state = first_state(algorithm)
    wants = expected(algorithm, state, equal=True)
    for update in honest(algorithm, state, equal=True):
        admit(update, wants)
        for weight in (12.0, 0.5, 1.0000001, 1e-50):
            with pytest.raises(FedsdrError, match="not what this client weighs, 1"):
                admit(replace(update, weight=weight), wants)


class Junk:
    """A rule that does what it is told instead of its work."""

    def __init__(self, make: Callable[[ServerState, list[Update]], Any]) -> None:
        self.make = make

    def __call__(self, state: ServerState, updates: Any) -> Any:
        return self.make(state, list(updates))


def after(**changes: Any) -> Callable[[ServerState, list[Update]], Any]:
    return lambda s, u: replace(s, **{"round": s.round + 1} | changes)


def with_shared(change: Callable[[dict[str, Any]], Any]) -> Callable[[ServerState, Any], Any]:
    return lambda s, u: replace(s, round=s.round + 1, shared=change(dict(s.shared)))


A = "R/model.layers.0.mlp.up.A"
RULES: dict[str, tuple[Callable[[ServerState, list[Update]], Any], str]] = {
    "None": (lambda s, u: None, "returns a NoneType, no state"),
    "a dict": (lambda s, u: dict(s.shared), "returns a dict, no state"),
    "tensors": (lambda s, u: (s, s), "returns a tuple, no state"),
    "the same round": (lambda s, u: s, "the state of another round"),
    "two rounds": (after(round=9), "the state of another round"),
    "another seed": (after(seed=99), "the state of another round or run"),
    "shared is None": (after(shared=None), "returns a NoneType, no mapping"),
    "shared is a list": (after(shared=[]), "returns a list, no mapping"),
    "nothing": (after(shared={}), f"leaves out, tensor '{A}'"),
    "one less": (with_shared(lambda t: {n: x for n, x in t.items() if n != A}), "leaves out"),
    "one more": (with_shared(lambda t: {**t, "R/new.A": t[A]}), "adds, tensor 'R/new.A'"),
    "no names": (with_shared(lambda t: {**t, 7: t[A]}), "adds, tensor '7'"),
    "the base": (with_shared(lambda t: {**t, "P/x.W": t[A]}), "changes the base"),
    "transposed": (with_shared(lambda t: {**t, A: t[A].T}), "shape (5, 2), not (2, 5)"),
    "a scalar": (with_shared(lambda t: {**t, A: t[A].sum()}), "shape (), not (2, 5)"),
    "fp64": (with_shared(lambda t: {**t, A: t[A].double()}), "dtype torch.float64, not torch.fl"),
    "whole": (with_shared(lambda t: {**t, A: t[A].long()}), "dtype torch.int64"),
    "a gradient": (with_shared(lambda t: {**t, A: t[A].requires_grad_()}), "requires a gradient"),
    "numpy": (with_shared(lambda t: {**t, A: t[A].numpy()}), "returns a ndarray, not a tensor"),
    "a number": (with_shared(lambda t: {**t, A: 0.0}), "returns a float, not a tensor"),
    "sparse": (with_shared(lambda t: {**t, A: t[A].to_sparse()}), "no dense tensor"),
    "meta": (with_shared(lambda t: {**t, A: t[A].to("meta")}), "no dense tensor"),
    "NaN": (with_shared(lambda t: {**t, A: t[A] / 0 * 0}), "returns NaN or infinity"),
    "infinity": (with_shared(lambda t: {**t, A: torch.full_like(t[A], torch.inf)}), "returns NaN"),
    "huge": (with_shared(lambda t: {**t, A: torch.full_like(t[A], 1e30)}), "beyond 1e+09"),
    "a slot of NaN": (after(slots={"m": torch.full((2,), torch.nan)}), "returns NaN or infinity"),
    "a slot of text": (after(slots={"m": "text"}), "returns a str, not a tensor, tensor 'm'"),
    "slots are None": (after(slots=None), "no mapping of names to slots"),
    "an error": (lambda s, u: 1 / 0, "broke (ZeroDivisionError: division by zero)"),
    "a name too many": (lambda s, u: s.shared["x"], "broke (KeyError: 'x')"),
    "no such matrix": (
        lambda s, u: torch.linalg.solve(torch.zeros(2, 2), torch.ones(2)),
        "broke (_LinAlgError",
    ),
}


@pytest.mark.parametrize("kind", RULES)
def test_a_rule_that_answers_with_junk_is_named(kind: str) -> None:
    make, told = RULES[kind]
    algorithm = replace(ALL["fedavg"], combine=Junk(make))
    state = first_state(algorithm)
    with pytest.raises(RoundFailed) as caught:
        combined(algorithm, state, honest(algorithm, state), asked(algorithm, state))
    said = str(caught.value)
    assert said.startswith("round 1: the server's rule Junk of fedavg ")
    assert told in said


def test_a_slot_may_be_added_and_none_lost_or_reshaped() -> None:
    algorithm = ALL["fedavg"]
    state = replace(first_state(algorithm), slots={"m": torch.ones(3)})
    updates, wanted = honest(algorithm, state), asked(algorithm, state)

    def rule(slots: Any) -> Algorithm:
        return replace(algorithm, combine=Junk(after(slots=slots)))

    more = {"m": torch.ones(3), "n": torch.zeros(1)}
    assert combined(rule(more), state, updates, wanted)[1].slots == more
    for slots, told in (
        ({"n": torch.ones(3)}, "loses what it remembered, tensor 'm'"),
        ({"m": torch.ones(4)}, r"shape \(4,\), not \(3,\)"),
        ({"m": torch.ones(3).half()}, "dtype torch.float16"),
        ({"m": torch.full((3,), 1e35)}, "beyond 1e\\+30"),
    ):
        with pytest.raises(RoundFailed, match=told):
            combined(rule(slots), state, updates, wanted)


FILTERS: dict[str, tuple[Callable[[list[Update]], Any], str]] = {
    "None": (lambda u: None, "returns a NoneType, no updates"),
    "a number": (lambda u: 3, "returns a int, no updates"),
    "none left": (lambda u: [], "lets no update through"),
    "read once": (lambda u: iter(u), "can be read once only"),
    "a generator": (lambda u: (x for x in u), "can be read once only"),
    "no updates": (lambda u: [1, 2], "lets a int through"),
    "one twice": (lambda u: [u[0], u[0]], "twice or unasked"),
    "backwards": (lambda u: u[::-1], "twice or unasked"),
    "a stranger": (lambda u: [replace(u[0], client_id="zz")], "client 'zz' through"),
    "no weight": (lambda u: [replace(u[0], weight=0.0)], "what is no number above 0"),
    "NaN for a weight": (lambda u: [replace(u[0], weight=torch.nan)], "no number above 0"),
    "a tensor less": (lambda u: [replace(u[0], shared={})], f"leaves out, tensor '{A}'"),
    "NaN": (
        lambda u: [replace(u[0], shared={n: t / 0 * 0 for n, t in u[0].shared.items()})],
        "returns NaN or infinity",
    ),
    "another shape": (
        lambda u: [replace(u[0], shared={n: t[:1] for n, t in u[0].shared.items()})],
        "returns shape (1, 5), not (2, 5)",
    ),
    "an error": (lambda u: u[99], "broke (IndexError"),
}


class Sift:
    def __init__(self, make: Callable[[list[Update]], Any]) -> None:
        self.make = make

    def __call__(self, state: ServerState, updates: Any) -> Any:
        return self.make(list(updates))


@pytest.mark.parametrize("kind", FILTERS)
def test_a_filter_that_answers_with_junk_is_named(kind: str) -> None:
    make, told = FILTERS[kind]
    algorithm = replace(ALL["fedavg"], filters=(Sift(make),))
    state = first_state(algorithm)
    with pytest.raises(RoundFailed) as caught:
        combined(algorithm, state, honest(algorithm, state), asked(algorithm, state))
    said = str(caught.value)
    assert said.startswith("round 1: the filter Sift of fedavg ")
    assert told in said


def test_a_filter_that_leaves_all_alone_changes_nothing() -> None:
    algorithm = ALL["fedavg"]
    state = first_state(algorithm)
    updates, wanted = honest(algorithm, state), asked(algorithm, state)
    same = replace(algorithm, filters=(Sift(lambda u: u),))
    kept, ours = combined(same, state, updates, wanted)
    assert [u.client_id for u in kept] == [u.client_id for u in kept] == list(wanted)
    theirs = Mean()(state, updates)
    assert all(torch.equal(ours.shared[n], theirs.shared[n]) for n in theirs.shared)


def test_there_are_all_rules() -> None:
    assert len(ALL) >= 33
