"""Momentum and the adaptive rules, on numbers worked out by hand.

Each round's Δ is the mean of two clients of weights 1 and 3 that sent Δ + 3 and Δ − 1; forgetting
the weights gives Δ + 1. All rules start from w = 0, and β₁ = β₂ = 3/4, so that β and 1 − β differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.parts.combine import Combine, Mean
from fedsdr.parts.server_rules import Adagrad, Adam, Adaptive, Momentum, Yogi
from fedsdr.tensors import digest, generator
from fedsdr.types import ServerState, Update

W = "R/layer.B"
RULES: dict[str, Combine] = {
    "momentum": Momentum(0.75, 2.0),
    "momentum, damped": Momentum(0.75, 2.0, "damped"),
    "adagrad": Adaptive(Adagrad(), 4.0, 3.0, 0.75),
    "adagrad, m²": Adaptive(Adagrad(), 4.0, 3.0, 0.75, "squared_momentum"),
    "adam": Adaptive(Adam(0.75), 4.0, 6.0, 0.75),
    "adam, m²": Adaptive(Adam(0.75), 4.0, 6.0, 0.75, "squared_momentum"),
    "yogi": Adaptive(Yogi(0.75), 3.0, 5.0, 0.75),
    "yogi, m²": Adaptive(Yogi(0.75), 3.0, 5.0, 0.75, "squared_momentum"),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def update(client: str, weight: float, dtype: torch.dtype, **values: float) -> Update:
    shared = {f"R/layer.{name}": torch.tensor([x], dtype=dtype) for name, x in values.items()}
    return Update(
        run="run", round=1, client_id=client, base_digest="base", weight=weight, shared=shared
    )


def two_clients(dtype: torch.dtype = torch.float64, **deltas: float) -> list[Update]:
    return [
        update("a", 1, dtype, **{name: delta + 3 for name, delta in deltas.items()}),
        update("b", 3, dtype, **{name: delta - 1 for name, delta in deltas.items()}),
    ]


def start(dtype: torch.dtype = torch.float64) -> ServerState:
    shared = {f"R/layer.{half}": torch.zeros(1, dtype=dtype) for half in "AB"}
    return ServerState(0, shared, seed=11, clients=5)


def trajectory(rule: Combine, deltas: Sequence[float]) -> Iterator[ServerState]:
    state = start()
    for delta in deltas:
        state = rule(state, two_clients(B=delta))
        yield state


def path(rule: Combine, *deltas: float) -> list[float]:
    return [state.shared[W].item() for state in trajectory(rule, deltas)]


def memory(rule: Combine, slot: str, *deltas: float) -> list[float]:
    return [state.slots[f"{slot}/{W}"].item() for state in trajectory(rule, deltas)]


def test_momentum() -> None:
    """β = 3/4, η = 2, Δ = 1, 2, −4:

    v = 1,   (3/4)·1 + 2 = 11/4,   (3/4)(11/4) − 4 = −31/16
    w = 2,   2 + 11/2 = 7.5,       7.5 − 31/8 = 3.625
    """
    assert memory(RULES["momentum"], "v", 1, 2, -4) == [1, 2.75, -1.9375]
    assert path(RULES["momentum"], 1, 2, -4) == [2, 7.5, 3.625]


def test_damped_momentum() -> None:
    """β = 3/4, η = 2, Δ = 1, 2, −4; the first Δ counts whole, the later ones by 1/4:

    v = 1,   (3/4)·1 + (1/4)·2 = 5/4,   (3/4)(5/4) − (1/4)·4 = −1/16
    w = 2,   2 + 5/2 = 4.5,             4.5 − 1/8 = 4.375
    """
    assert memory(RULES["momentum, damped"], "v", 1, 2, -4) == [1, 1.25, -0.0625]
    assert path(RULES["momentum, damped"], 1, 2, -4) == [2, 4.5, 4.375]


def test_adagrad() -> None:
    """τ = 3, v₀ = 9, η = 4, Δ = 4, 12, −84:

    m = 1,               3/4 + 3 = 15/4,          45/16 − 21 = −291/16
    v = 9 + 16 = 5²,     25 + 144 = 13²,          169 + 7056 = 85²
    w = 4·1/(5 + 3),     1/2 + 15/(13 + 3),       23/16 − (291/4)/(85 + 3)
    """
    rule = RULES["adagrad"]
    assert memory(rule, "m", 4, 12, -84) == [1, 15 / 4, -291 / 16]
    assert memory(rule, "v", 4, 12, -84) == [25, 169, 7225]
    assert path(rule, 4, 12, -84) == pytest.approx([1 / 2, 23 / 16, 23 / 16 - 291 / 352], rel=1e-14)


def test_adam() -> None:
    """τ = 6, v₀ = 36, η = 4, Δ = 26, 46, −166; Δ²/4 = 13², 23², 83²:

    m = 13/2,            39/8 + 23/2 = 131/8,     393/32 − 83/2 = −935/32
    v = 27 + 169 = 14²,  147 + 529 = 26²,         507 + 6889 = 86²
    w = 26/(14 + 6),     1.3 + 65.5/(26 + 6),     1.3 + 65.5/32 − 116.875/(86 + 6)

    Bias correction would divide m by 1/4 in the first round.
    """
    rule = RULES["adam"]
    assert memory(rule, "m", 26, 46, -166) == [13 / 2, 131 / 8, -935 / 32]
    assert memory(rule, "v", 26, 46, -166) == [196, 676, 7396]
    second = 1.3 + 65.5 / 32
    expected = [1.3, second, second - 116.875 / 92]
    assert path(rule, 26, 46, -166) == pytest.approx(expected, rel=1e-14)


def test_yogi() -> None:
    """τ = 5, v₀ = 25, η = 3, Δ = 24, 10, −12: v below Δ², above it, and equal to it (sign 0).

    m = 6,                     9/2 + 5/2 = 7,          21/4 − 3 = 9/4
    v = 25 + 24²/4 = 13²,      169 − 10²/4 = 12²,      144
    w = 18/(13 + 5),           1 + 21/(12 + 5),        1 + 21/17 + 6.75/(12 + 5)
    """
    rule = RULES["yogi"]
    assert memory(rule, "m", 24, 10, -12) == [6, 7, 9 / 4]
    assert memory(rule, "v", 24, 10, -12) == [169, 144, 144]
    expected = [1, 38 / 17, 44.75 / 17]
    assert path(rule, 24, 10, -12) == pytest.approx(expected, rel=1e-14)


def codebase(kind: str, rounds: list[list[tuple[float, np.ndarray]]]) -> np.ndarray:
    """The rules of a much-used codebase, written down from its source in plain numpy: per round the
    clients' (number of rows, change). β₁ = .8, β₂ = .95, η = .3, τ = .01."""
    beta1, beta2, eta, tau = 0.8, 0.95, 0.3, 0.01
    w, m, v = np.zeros(7), np.zeros(7), np.full(7, tau**2)
    for number, clients in enumerate(rounds):
        rows = sum(n for n, _ in clients)
        if kind == "fedavgm":
            delta = sum(change * n / rows for n, change in clients)
            m = beta1 * m + (1 - beta1) * delta if number > 0 else delta
            w = w + m
            continue
        delta = sum(change for _, change in clients) / len(clients)
        if kind == "fedadagrad":
            m = delta
            v = v + np.square(m)
        else:
            m = beta1 * m + (1 - beta1) * delta if number > 0 else delta
            square = np.square(m)
            if kind == "fedyogi":
                v = v - (1 - beta2) * square * np.sign(v - square)
            else:
                v = beta2 * v + (1 - beta2) * square
        w = w + eta * m / (np.sqrt(v) + tau)
    return w


@pytest.mark.parametrize("kind", ["fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_the_codebases_variants_are_what_that_codebase_computes(kind: str) -> None:
    """Ten rounds in fp64, of clients with unlike numbers of rows, others in every round."""
    options: dict[str, dict[str, Any]] = {
        "fedavgm": {"momentum": 0.8, "server_lr": 1.0, "variant": "damped"},
        "fedadagrad": {"server_lr": 0.3, "tau": 0.01, "variant": "squared_momentum"},
        "fedyogi": {"beta1": 0.8, "beta2": 0.95},
    }
    adaptive = {"server_lr": 0.3, "tau": 0.01, "variant": "squared_momentum"}
    given = options.get(kind, {"beta1": 0.8, "beta2": 0.95})
    rule = make_algorithm(kind, adaptive | given if kind != "fedavgm" else given).combine
    random = np.random.default_rng(3)
    rounds = [
        [(float(n), random.normal(0, 0.1, 7)) for n in random.integers(1, 90, size=2 + number % 4)]
        for number in range(10)
    ]
    state = ServerState(0, {W: torch.zeros(7, dtype=torch.float64)})
    for number, clients in enumerate(rounds):
        updates = [
            Update(
                run="run",
                round=number + 1,
                client_id=f"c{k}",
                base_digest="base",
                weight=n,
                shared={W: torch.tensor(change)},
            )
            for k, (n, change) in enumerate(clients)
        ]
        state = rule(state, updates)
    far = float(np.abs(state.shared[W].numpy() - codebase(kind, rounds)).max())
    assert far <= 1e-12, f"{kind} is {far:.1e} away after ten rounds"


@pytest.mark.parametrize("variant", ["textbook", "damped"])
def test_without_momentum_at_rate_one_the_rule_is_the_mean(variant: str) -> None:
    """To the bit, over rounds: v = 0·v + 1·Δ."""
    rule = Momentum(0.0, 1.0, "damped" if variant == "damped" else "textbook")
    ours = means = ServerState(0, {W: torch.ones(4, 3)})
    for round in range(3):
        updates = [
            Update(
                run="run",
                round=round,
                client_id=c,
                base_digest="base",
                weight=n,
                shared={W: torch.randn(4, 3, generator=generator(c, round))},
            )
            for c, n in (("a", 3.0), ("b", 5.0), ("c", 1.0))
        ]
        ours, means = rule(ours, updates), Mean()(means, updates)
        assert digest(ours.shared) == digest(means.shared)


@every_rule
def test_the_first_step_goes_the_way_of_the_mean(rule: Combine) -> None:
    (up,), (down,) = path(rule, 8.0), path(rule, -8.0)
    assert up > 0 > down
    if getattr(rule, "variant", "textbook") != "squared_momentum":  # whose clients count alike
        assert up == -down


@every_rule
def test_a_tensor_that_nobody_trained_rests_with_its_memory(rule: Combine) -> None:
    """B, AB, A, AB: each half must move as if the rounds without it had not been."""
    state = start()
    b, ab, a, both = {"B": 24.0}, {"A": 24.0, "B": 10.0}, {"A": 10.0}, {"A": -7.0, "B": -7.0}
    for deltas in (b, ab, a, both):
        before, state = state, rule(state, two_clients(torch.float64, **deltas))
        for half in {"A", "B"} - set(deltas):
            name = f"R/layer.{half}"
            assert state.shared[name].equal(before.shared[name])
            kept = {slot for slot in before.slots if slot.endswith(name)}
            assert kept == {slot for slot in state.slots if slot.endswith(name)}
            assert all(state.slots[slot].equal(before.slots[slot]) for slot in kept)
    straight = path(rule, 24.0, 10.0, -7.0)[-1]
    assert [w.item() for w in state.shared.values()] == [straight, straight]


@every_rule
def test_a_round_in_which_nothing_is_shared_changes_only_its_number(rule: Combine) -> None:
    before = rule(start(), two_clients(B=8.0))
    after = rule(before, two_clients())
    assert after.round == 2
    assert digest(after.shared) == digest(before.shared)
    assert digest(after.slots) == digest(before.slots)


@every_rule
def test_control_variates_are_stepped_like_any_tensor(rule: Combine) -> None:
    both = {name: torch.zeros(1) for name in (W, "C/layer.B")}
    sent = Update(
        run="run",
        round=1,
        client_id="a",
        base_digest="base",
        weight=1.0,
        shared={name: torch.tensor([8.0]) for name in both},
    )
    after = rule(ServerState(0, both), [sent])
    assert after.shared["C/layer.B"].item() == after.shared[W].item() != 0


@every_rule
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("sent", [torch.float64, torch.float32, torch.bfloat16])
def test_the_state_keeps_its_dtype_and_memory_is_single_at_least(
    rule: Combine, dtype: torch.dtype, wide: torch.dtype, sent: torch.dtype
) -> None:
    state = start(dtype)
    for _ in range(2):
        state = rule(state, two_clients(sent, A=4.0, B=12.0))
    assert {w.dtype for w in state.shared.values()} == {dtype}
    assert {slot.dtype for slot in state.slots.values()} == {wide}


@every_rule
def test_the_order_of_clients_does_not_matter(rule: Combine) -> None:
    """Exactly, since every partial sum is a small whole number."""
    clients = [update(c, n, torch.float32, A=x, B=-x) for c, n, x in (("a", 2, 8), ("b", 6, 16))]
    clients.append(update("c", 8, torch.float32, A=-6, B=1))
    found: set[str] = set()
    for order in permutations(clients):
        state = rule(rule(start(torch.float32), order), order)
        found.add(digest(state.shared) + digest(state.slots))
    assert len(found) == 1


@every_rule
def test_a_state_read_back_from_its_bytes_goes_on_the_same(rule: Combine) -> None:
    rounds = [
        two_clients(torch.float32, A=a, B=b) for a, b in ((0.3, 7.1), (1.7, -2.9), (5.3, 0.1))
    ]
    straight = saved = start(torch.float32)
    for updates in rounds:
        read = (load(save(dict(t))) for t in (saved.shared, saved.slots))
        saved = rule(ServerState(saved.round, *read, seed=11, clients=5), updates)
        straight = rule(straight, updates)
    assert digest(saved.shared) == digest(straight.shared)
    assert digest(saved.slots) == digest(straight.slots)
    assert saved.round == straight.round == 3


@every_rule
def test_earlier_states_stay_as_they_were_and_the_run_is_remembered(rule: Combine) -> None:
    states, seen = [start()], [digest(start().shared)]
    for delta in (24.0, 10.0, -7.0):
        states.append(rule(states[-1], two_clients(A=1.0, B=delta)))
        seen.append(digest(states[-1].shared) + digest(states[-1].slots))
    assert [digest(s.shared) + (digest(s.slots) if s.round else "") for s in states] == seen
    assert {(s.seed, s.clients) for s in states} == {(11, 5)}
    assert all(after.round == before.round + 1 for before, after in pairwise(states))


@every_rule
def test_slots_are_named_after_the_memory_and_the_tensor(rule: Combine) -> None:
    found = set(rule(start(), two_clients(B=1.0)).slots)
    assert found == ({f"v/{W}"} if isinstance(rule, Momentum) else {f"m/{W}", f"v/{W}"})
