"""Filters: what becomes of clients' changes before they are combined.

What a filter returns is read as its input is: re-iterable, in the same order, one update at a time
in memory. Norms and distances go over all of a change together, in fp64: squares of 1e6 overflow
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from fedsdr.errors import RecipeError, RoundFailed
from fedsdr.parts.robust import stacks
from fedsdr.types import ServerState, Tensors, Update


@dataclass(frozen=True, slots=True)
class NormClip:
    """Δ_k ← Δ_k · min(1, limit/‖Δ_k‖) (Sun et al. 2019); without a limit, the median of this
    round's norms is it."""

    limit: float | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not 0 < self.limit < math.inf:
            raise RecipeError(
                "server.filters: the norm that clip keeps changes within must be a number above "
                f"0, it is {self.limit}"
            )

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> Iterable[Update]:
        if self.limit is not None:
            return _Clipped(updates, self.limit)
        norms = [norm(update.shared) for update in updates]
        return _Clipped(updates, median(norms)) if norms else updates


@dataclass(frozen=True, slots=True)
class Krum:
    """Krum (Blanchard et al. 2017), against f = `byzantine` liars among n: the client is kept whose
    n − f − 2 nearest others are nearest, by the sum of squared distances; of multi-Krum, the `keep`
    first by this score. Equal scores go by client id."""

    byzantine: int
    keep: int = 1

    def __post_init__(self) -> None:
        if self.byzantine < 0:
            raise RecipeError(
                "server.filters: the number of liars that krum is to withstand must not be "
                f"negative, it is {self.byzantine}"
            )
        if self.keep < 1:
            raise RecipeError(
                "server.filters: the number of clients that multi_krum keeps must be at least 1, "
                f"it is {self.keep}"
            )

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> Iterable[Update]:
        clients = [update.client_id for update in updates]
        self._require_enough(len(clients), state.round + 1)
        scores = self._scores(updates, len(clients))
        best = sorted(zip(scores, clients, strict=True))[: self.keep]
        return _Kept(updates, {client for _, client in best})

    def _scores(self, updates: Iterable[Update], n: int) -> list[float]:
        squared = torch.zeros(n, n, dtype=torch.float64)
        for _, stack in stacks(updates):
            rows = stack.flatten(1).double()
            for i in range(n - 1):
                # By differences: a Gram matrix would lose small distances of large changes.
                squared[i, i + 1 :] += (rows[i + 1 :] - rows[i]).square().sum(dim=1)
        others = (squared + squared.T).fill_diagonal_(torch.inf).sort(dim=1).values
        return others[:, : n - self.byzantine - 2].sum(dim=1).tolist()

    def _require_enough(self, n: int, round: int) -> None:
        f = self.byzantine
        least = 2 * f + 3
        if n < least:
            lower = f"set f to at most {(n - 3) // 2} in server.filters, or " if n >= 3 else ""
            raise RoundFailed(
                f"round {round}: Krum against f = {f} liars needs n >= 2f + 3 = {least} updates, "
                f"there are n = {n}: {lower}have more clients take part (training.participation)"
            )
        if self.keep > n - f:
            raise RoundFailed(
                f"round {round}: multi-Krum is to keep {self.keep} of n = {n} updates of which "
                f"f = {f} may be lies: keep at most n - f = {n - f} (server.filters)"
            )


@dataclass(frozen=True, slots=True)
class _Clipped:
    updates: Iterable[Update]
    limit: float

    def __iter__(self) -> Iterator[Update]:
        for update in self.updates:
            length = norm(update.shared)
            yield update if length <= self.limit else _scaled(update, self.limit / length)


@dataclass(frozen=True, slots=True)
class _Kept:
    updates: Iterable[Update]
    clients: Collection[str]

    def __iter__(self) -> Iterator[Update]:
        return (update for update in self.updates if update.client_id in self.clients)


def norm(change: Tensors) -> float:
    """The Euclidean norm of all tensors together, in fp64."""
    lengths = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in change.values())
    return math.hypot(*map(float, lengths))


def _scaled(update: Update, factor: float) -> Update:
    return replace(update, shared={n: _times(t, factor) for n, t in update.shared.items()})


def _times(tensor: Tensor, factor: float) -> Tensor:
    return (tensor.double() * factor).to(torch.promote_types(tensor.dtype, torch.float32))
