"""Malformed updates by the thousand, at every way of combining: refused by name, or harmless.

    FEDSDR_FUZZ=10000 pytest -s tests/fuzz/test_updates.py

An update that an oracle of its own, below, holds to be malformed must not pass the gate, and one
that is in order must; whatever passes must leave a whole state, or a failed round that says whose
fault it is. Nothing here can hang, so all is tried in this process.
"""

from __future__ import annotations

import math
import random
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aggregators import CLIENTS, aggregators, asked, expected, first_state, honest
from attack import Outcome, Tally, how_many
from fedsdr.coordinator.admit import Expected, admit
from fedsdr.coordinator.combining import combined
from fedsdr.errors import FedsdrError, RoundFailed, UpdateRefused
from fedsdr.parts.algorithm import Algorithm
from fedsdr.types import ServerState, Update

ALL = aggregators()
NAN, INF = math.nan, math.inf
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 0.5, 2, 3, 1e-6, 1e-7, 1e-50, 5e-324, 1e-300, 1e6, 1000001, 1e9, 1e10, 1e12, 1e13,
    1e30, 1e39, 1e300, 1.7e308, -1e300, NAN, INF, -INF, 2**53, 2**63, 10**30, 10**400, 10**5000,
    True, False, None, "1", "NaN", b"1", 1j, [1], {}, (1,), torch.tensor(1.0), np.float64(1.0),
    np.float32(1.0), np.int64(3), float,
)  # fmt: skip
NAMES: tuple[Any, ...] = (
    "", "loss", "loss_2", "loss_1_2", "loss_99", "loss_0", "steps", "steps_2", "tokens", "tokens_3",
    "examples", "examples_2", "Loss", "loss ", "loss\n", "ｌoss", "prompt", "x" * 500, 7, None,
    b"a", "\x1b[31m", ("loss",), True,
)  # fmt: skip


def odd_tensor(like: Tensor, draw: random.Random) -> Any:
    """Something in a tensor's place."""
    value = draw.choice((NAN, INF, -INF, 1.1e6, -2e6, 3e38, 1e6, -1e6, 0.0, 1e-45, 1e-30, 1.0))
    one = like.clone()
    one.view(-1)[draw.randrange(one.numel())] = value
    rows, columns = like.shape
    makes: tuple[Callable[[], Any], ...] = (
        lambda: one,
        lambda: one,
        lambda: torch.full_like(like, value),
        lambda: like.T,
        lambda: like.T.contiguous().T,  # in order, whatever its strides
        lambda: like[:1],
        lambda: like[:, :1],
        lambda: like.flatten(),
        lambda: like[None],
        lambda: like.sum(),
        lambda: torch.zeros(0),
        lambda: torch.zeros(1),
        lambda: torch.zeros(rows + 1, columns),
        lambda: torch.zeros(1).expand(rows, columns),  # in order, without memory of its own
        lambda: like.double(),
        lambda: like.half(),
        lambda: like.bfloat16(),
        lambda: like.long(),
        lambda: like > 0,
        lambda: like.to(torch.cfloat),
        lambda: like.to_sparse(),
        lambda: like.to_sparse_csr(),
        lambda: like.to("meta"),
        lambda: like.numpy(),
        lambda: like.tolist(),
        lambda: torch.nn.Parameter(like),  # in order: what it would remember is not kept
        lambda: draw.choice(NUMBERS),
    )
    return draw.choice(makes)()


def mutated(update: Update, expected: Expected, draw: random.Random) -> Update:
    """One to three changes of any field; of every fourth only what is in order."""
    if draw.random() < 0.25:
        return extreme(update, expected, draw)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        update = CHANGES[draw.choice(tuple(CHANGES))](update, expected, draw)
    return update


def _mapping(value: Any) -> dict[Any, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def change_tensor(u: Update, e: Expected, draw: random.Random) -> Update:
    shared = _mapping(u.shared)
    name = draw.choice([n for n in shared if isinstance(shared[n], Tensor)] or [""])
    if not name or shared[name].dim() != 2 or not shared[name].numel():
        return u
    try:
        return replace(u, shared={**shared, name: odd_tensor(shared[name].detach(), draw)})
    except (RuntimeError, TypeError):  # of a meta or sparse one, from a change before
        return u


def extreme(u: Update, e: Expected, draw: random.Random) -> Update:
    """In order, and as far out as the gate lets through."""
    shared = _mapping(u.shared)
    value = draw.choice((0.0, 1e-45, 1e-38, 1e-20, 1.0, 1e3, 1e6, -1e6))
    plain = (torch.float32, torch.strided, torch.device("cpu"))
    kinds = [(t.dtype, t.layout, t.device) for t in shared.values() if isinstance(t, Tensor)]
    if len(kinds) < len(shared) or any(kind != plain for kind in kinds):
        return u
    if draw.random() < 0.5:
        return replace(u, shared={n: torch.full_like(t, value) for n, t in shared.items()})
    return replace(u, shared={n: (t * abs(value)).clamp(-1e6, 1e6) for n, t in shared.items()})


def change_names(u: Update, e: Expected, draw: random.Random) -> Update:
    shared = _mapping(u.shared)
    if not shared:
        return u
    name = draw.choice(list(shared))
    other = draw.choice(("R/new.A", "S/model.layers.0.mlp.up.A", "", f"{name} ", 7, None, "P/x.W"))
    renamed = {other if n == name else n: t for n, t in shared.items()}
    fewer = {n: t for n, t in shared.items() if n != name}
    return replace(u, shared=draw.choice((renamed, fewer, {**shared, other: shared[name]}, {})))


def change_metric(u: Update, e: Expected, draw: random.Random) -> Update:
    metrics = _mapping(u.metrics)
    if metrics and draw.random() < 0.3:
        del metrics[draw.choice(list(metrics))]
        return replace(u, metrics=metrics)
    name = draw.choice(list(metrics)) if metrics and draw.random() < 0.7 else draw.choice(NAMES)
    return replace(u, metrics={**metrics, name: draw.choice(NUMBERS)})


CHANGES: Mapping[str, Callable[[Update, Expected, random.Random], Update]] = {
    "tensor": change_tensor,
    "tensors": lambda u, e, d: change_tensor(change_tensor(u, e, d), e, d),
    "extreme": extreme,
    "names": change_names,
    "metric": change_metric,
    "weight": lambda u, e, d: replace(u, weight=d.choice(NUMBERS)),
    "run": lambda u, e, d: replace(u, run=d.choice(("", "nur", None, 3, "run "))),
    "round": lambda u, e, d: replace(u, round=d.choice((*NUMBERS, e.round, float(e.round)))),
    "client": lambda u, e, d: replace(
        u, client_id=d.choice((*CLIENTS, "zz", "", None, 3, ["c0"], "c0\n", "x" * 9999))
    ),
    "base": lambda u, e, d: replace(u, base_digest=d.choice(("", "esab", None, 0))),
    "field": lambda u, e, d: replace(
        u, **{d.choice(("shared", "metrics")): d.choice((None, [], 3, "x", {}, [("loss", 1)]))}
    ),
}


def in_order(u: Any, e: Expected, seen: set[str]) -> bool:
    """The oracle: what the documents say of an update, written down a second time."""
    if type(u.client_id) is not str or u.client_id not in CLIENTS or u.client_id in seen:
        return False
    if u.run != "run" or type(u.round) is not int or u.round != e.round or u.base_digest != "base":
        return False
    claims = e.claims[u.client_id]
    assert claims.metrics is not None
    if not _number(u.weight) or u.weight != claims.weight.most or not isinstance(u.metrics, dict):
        return False
    if set(u.metrics) != set(claims.metrics):
        return False
    for name, value in u.metrics.items():
        span = claims.metrics[name]
        if not _number(value) or value < span.least or value > span.most:
            return False
        if not name.startswith("loss") and value != math.floor(value):
            return False
    wanted = e.shared[u.client_id]
    if not isinstance(u.shared, dict) or set(u.shared) != set(wanted):
        return False
    return all(_is_like(u.shared[name], wanted[name]) for name in wanted)


def _number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and -1e308 < value < 1e308


def _is_like(tensor: Any, want: Tensor) -> bool:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        return False
    if tensor.shape != want.shape or tensor.dtype != want.dtype:
        return False
    return all(abs(x) <= 1e6 for x in tensor.detach().flatten().tolist())  # False for NaN


def gate(updates: list[Any], wants: Expected, name: str, tally: Tally) -> list[Update]:
    """What passes, each case counted."""
    kept, seen = list[Update](), set[str]()
    for update in updates:
        good = in_order(update, wants, seen)
        try:
            admit(update, wants, seen)
        except UpdateRefused as error:
            tally.add(name, Outcome("refused", str(error)))
            if good:
                tally.note(name, f"refused what is in order: {error}")
            who = update.client_id
            if isinstance(who, str) and repr(who[:80]) not in str(error):
                tally.note(name, f"does not name client {who[:80]!r}: {error}")
            if len(str(error)) > 600:
                tally.note(name, f"{len(str(error))} characters")
        except Exception:
            tally.add(name, Outcome("traceback", traceback.format_exc()))
        else:
            tally.add(name, Outcome("returned", "admitted"), may_return=good)
            kept.append(update)
            seen.add(update.client_id)
    return kept


def combine(
    algorithm: Algorithm, state: ServerState, kept: list[Update], name: str, tally: Tally
) -> ServerState:
    """The next state, looked at here once more; the one before where the round failed by name."""
    kept = sorted(kept, key=lambda u: u.client_id)
    plain = [replace(u, shared={n: t.detach() for n, t in u.shared.items()}) for u in kept]
    try:
        _, after = combined(algorithm, state, plain, asked(algorithm, state))
    except RoundFailed as error:
        if f"round {state.round + 1}: " not in str(error):
            tally.note(name, f"a failed round without its number: {error}")
        return state
    except FedsdrError as error:
        tally.note(name, f"{type(error).__name__}: {error}")
        return state
    except Exception:
        tally.note(name, traceback.format_exc()[-600:])
        return state
    for tensor_name, tensor in (after.shared | after.slots).items():
        if not all(math.isfinite(x) for x in tensor.flatten().tolist()):
            tally.note(name, f"{tensor_name} is not finite after the round")
    sums = [sum(float(u.metrics.get(m, 0.0)) for u in kept) for m in ("loss", "steps", "tokens")]
    if not all(map(math.isfinite, sums)):
        tally.note(name, f"sums of metrics are {sums}")
    return after


def test_malformed_updates_at_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """One to three of seven clients send something else, three rounds long."""
    tally, draw = Tally("updates × rules"), random.Random(20)
    turn, wanted = 0, how_many(150)
    while sum(tally.counts.values()) - tally.counts["wrong"] < wanted:
        name = tuple(ALL)[turn % len(ALL)]
        algorithm = ALL[name]
        state = first_state(algorithm)
        for _ in range(3):
            wants, updates = expected(algorithm, state), honest(algorithm, state)
            liars = draw.sample(range(len(updates)), draw.choice((1, 1, 2, 3)))
            bad = [mutated(updates[k], wants, draw) for k in liars]
            kept = gate(bad, wants, f"{turn} {name}", tally)
            there = {u.client_id for u in kept}
            good = [u for u in updates if u.client_id not in there]
            for update in good:
                admit(update, wants, there)
            state = combine(algorithm, state, [*kept, *good], f"{turn} {name}", tally)
        turn += 1
    with capsys.disabled():
        print(f"\n{tally} at {min(turn, len(ALL))} of {len(ALL)} rules")
    assert tally.bad == []
    assert tally.counts["returned"]
    assert tally.counts["refused"]
