"""The server's side of an algorithm: what it sends down, what becomes of the clients' changes
before they are combined (filters), and the rule from them to the next shared state.

Updates come as a re-iterable sequence sorted by client id (they lie on disk), so a mean holds one
adapter in memory, not one per client, and the order in which clients answered cannot matter.

DiLoCo's outer step (Douillard et al. 2023): the server takes a Nesterov step along the mean
change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fedsdr.types import ServerState, Update


class Combine(Protocol):
    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState: ...


class Filter(Protocol):
    def __call__(self, state: ServerState, updates: Iterable[Update]) -> Iterable[Update]: ...


class Downlink(Protocol):
    def __call__(self, state: ServerState, rank: int | None) -> Mapping[str, Tensor]:
        """What a client of this rank gets (None: the full rank)."""
        ...


@dataclass(frozen=True, slots=True)
class Same:
    """The same for all."""

    def __call__(self, state: ServerState, rank: int | None) -> Mapping[str, Tensor]:
        return state.shared


@dataclass(frozen=True, slots=True)
class Mean:
    """FedAvg (McMahan et al. 2017) on changes: w ← w + Σ (n_k/n) Δ_k."""

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        return moved(state, weighted_mean(updates))


def moved(state: ServerState, change: Mapping[str, Tensor]) -> ServerState:
    """The next state, w + change; what nobody sent (as it was not trained this round) stays."""
    shared = {n: w + change[n].to(w.dtype) if n in change else w for n, w in state.shared.items()}
    return replace(state, round=state.round + 1, shared=shared)


def weighted_mean(updates: Iterable[Update]) -> Mapping[str, Tensor]:
    """Σ (n_k/n) Δ_k, streamed, in fp32 (fp64 where the run is)."""
    total, sums = 0.0, dict[str, Tensor]()
    for update in updates:
        total += update.weight
        for name, tensor in update.shared.items():
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
            sums[name] = (
                sums[name].add_(wide, alpha=update.weight) if name in sums else wide * update.weight
            )
    return {name: tensor / total for name, tensor in sums.items()}


@dataclass(frozen=True, slots=True)
class Nesterov:
    """v ← β·v + Δ, w ← w + η·(Δ + β·v), as torch.optim.SGD(nesterov=True) with the gradient −Δ. The
    first `plain` rounds take the mean as it is, and leave v alone.

    η = 1 and β = 0 are FedAvg. v lies in the slots, "v/<tensor>"; a tensor that nobody sent rests.
    """

    lr: float
    momentum: float
    plain: int = 0

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        change = weighted_mean(updates)
        if state.round < self.plain:
            return moved(state, change)
        slots, steps = dict(state.slots), dict[str, torch.Tensor]()
        for name, delta in change.items():
            v = slots.get(f"v/{name}")
            v = delta if v is None else self.momentum * v + delta
            steps[name] = self.lr * (delta + self.momentum * v)
            slots[f"v/{name}"] = v
        return replace(moved(state, steps), slots=slots)
