"""Robust rules in place of the mean: a few clients may send anything, and the server still moves
to where the others are.

The median and the trimmed mean work number by number and count every client alike, since a weight
is a client's own word. The geometric median works on the whole change, and weighs.

Filters: what becomes of clients' changes before they are combined.

What a filter returns is read as its input is: re-iterable, in the same order, one update at a time
in memory. Norms and distances go over all of a change together, in fp64: squares of 1e6 overflow
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from fedsdr.errors import RecipeError, RoundFailed
from fedsdr.parts.combine import moved
from fedsdr.types import ServerState, Tensors, Update

HELD = 4  # of `stacks`: as much as so many updates is in memory at once
_TINY = 1e-9  # a share such as 0.29 of 100 is 28.999999999999996 in floating point, and means 29


@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """w ← w + median_k Δ_k, coordinate by coordinate and unweighted (Yin et al. 2018); of an even
    count the mean of the two in the middle."""

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        change = {n: _inner_mean(of, (len(of) - 1) // 2) for n, of in stacks(updates)}
        return moved(state, change)


@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """w ← w + mean of the Δ_k without the ⌊share·n⌋ lowest and as many highest, coordinate by
    coordinate and unweighted (Yin et al. 2018). Below n = 1/share clients nothing is dropped."""

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise RecipeError(
                "server.combine: the share that trimmed_mean drops at each end must lie in "
                f"0 <= share < 0.5, it is {self.share}"
            )

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        change = {n: self._trimmed(of, state.round + 1) for n, of in stacks(updates)}
        return moved(state, change)

    def _trimmed(self, stack: Tensor, round: int) -> Tensor:
        dropped = math.floor(self.share * len(stack) + _TINY)
        if 2 * dropped >= len(stack):
            raise RoundFailed(
                f"round {round}: trimmed_mean({self.share}) of {len(stack)} updates drops "
                f"{dropped} at each end and leaves none: lower the share in server.combine"
            )
        return _inner_mean(stack, dropped)


@dataclass(frozen=True, slots=True)
class GeometricMedian:
    """w ← w + argmin_z Σ p_k ‖z − Δ_k‖ over whole changes, p_k = n_k/n: RFA, by the smoothed
    Weiszfeld algorithm (Pillutla et al. 2022, Algorithm 2), from the mean.

    It stands while less than half of the *weight* lies. It ends after `iterations`, or once the
    gradient of the smoothed objective, at most 1, is within `tolerance`; the paper's test, how much
    the objective falls, ends too early when one far away client makes up most of it.
    """

    iterations: int = 100
    tolerance: float = 1e-6
    nu: float = 1e-6

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise RecipeError(f"iterations must be at least 1, it is {self.iterations}")
        if not 0 <= self.tolerance < math.inf:
            raise RecipeError(f"tolerance must be a number from 0, it is {self.tolerance}")
        if not 0 < self.nu < math.inf:
            raise RecipeError(f"nu must be a number above 0, it is {self.nu}")

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        z, n = _mean(updates, lambda update: update.weight)
        for _ in range(self.iterations):
            last, step = z, _Step(z, self.nu)
            # z ← Σ β_k Δ_k / Σ β_k,   β_k = p_k / max(ν, ‖z − Δ_k‖)
            z, pull = _mean(updates, step)
            # ‖Σ β_k (z − Δ_k)‖, as the mean above is where this would be zero
            if pull / n * _distance(z, last) <= self.tolerance:
                break
        return moved(state, z)


@dataclass(frozen=True, slots=True)
class _Step:
    z: Tensors
    nu: float

    def __call__(self, update: Update) -> float:
        return update.weight / max(self.nu, _distance(update.shared, self.z))


def stacks(updates: Iterable[Update]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of all n clients as one [n, ...], clients in the order given.

    Updates are read once more for every few names, as many as keep memory at about `HELD` updates.
    """
    sizes, count = dict[str, int](), 0
    for update in updates:
        sizes = sizes or {name: tensor.numel() for name, tensor in update.shared.items()}
        count += 1
    for names in _blocks(sizes, sum(sizes.values()) * HELD / max(1, count)):
        columns = {name: list[Tensor]() for name in names}
        for update in updates:
            for name, column in columns.items():
                _require_shape(update, name, column)
                column.append(update.shared[name].clone())  # a view would keep its file in memory
        for name in names:
            yield name, torch.stack(columns.pop(name))


def _require_shape(update: Update, name: str, column: list[Tensor]) -> None:
    shape = tuple(update.shared[name].shape)
    if column and column[0].shape != shape:
        raise RoundFailed(
            f"round {update.round}: client {update.client_id!r} sends {name!r} as {shape}, another "
            f"as {tuple(column[0].shape)}; this server rule compares number by number, so all "
            "ranks must be equal: leave out lora.R.ranks, or the rule"
        )


def _blocks(sizes: Mapping[str, int], limit: float) -> Iterator[list[str]]:
    """The names in order, in blocks of at most `limit` numbers (or of one name)."""
    block, held = list[str](), 0
    for name, size in sizes.items():
        if block and held + size > limit:
            yield block
            block, held = [], 0
        block.append(name)
        held += size
    if block:
        yield block


def _inner_mean(stack: Tensor, dropped: int) -> Tensor:
    """The mean over clients without the `dropped` lowest and highest, in fp64."""
    inner = stack.sort(dim=0).values[dropped : len(stack) - dropped]
    return inner.mean(dim=0, dtype=torch.float64)


def _mean(
    updates: Iterable[Update], weight: Callable[[Update], float]
) -> tuple[dict[str, Tensor], float]:
    """The mean by these weights, streamed, in fp64; and the sum of weights."""
    total, sums = 0.0, dict[str, Tensor]()
    for update in updates:
        weighs = weight(update)
        total += weighs
        for name, tensor in update.shared.items():
            if name not in sums:
                sums[name] = torch.zeros_like(tensor, dtype=torch.float64)
            sums[name].add_(tensor.double(), alpha=weighs)
    return {name: tensor.div_(total) for name, tensor in sums.items()}, total


def _distance(one: Tensors, other: Tensors) -> float:
    """‖one − other‖ over all tensors together, in fp64."""
    return math.hypot(
        *(float(torch.linalg.vector_norm(t.double() - other[n])) for n, t in one.items())
    )


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
