"""The server's step: filters, then the rule, and a look at what they made of the updates.

Rules and filters may come from anybody's package, and clients within the gate's bounds can still
make one overflow. What breaks, or answers with what is no next state, is named; the state of the
round before stays.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fedsdr.errors import FedsdrError, RoundFailed
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.combine import Filter
from fedsdr.tensors import fault
from fedsdr.types import FOLD, ServerState, Tensors, Update

LARGEST = 1e9  # in the shared state; an adapter with such numbers says nothing any more
LARGEST_SLOT = 1e30  # slots hold squares


def combined(
    algorithm: Algorithm,
    state: ServerState,
    updates: Iterable[Update],
    asked: Mapping[str, Tensors],
) -> tuple[Iterable[Update], ServerState]:
    """What the filters let count, and the next state. `asked`: of each client, what its update
    holds."""
    kept = updates
    for sift in algorithm.filters:
        blame = _Blame(f"the filter {_name(sift)} of {algorithm.name}", state.round + 1)
        kept = _sifted(sift, state, kept, asked, blame)
    blame = _Blame(
        f"the server's rule {_name(algorithm.combine)} of {algorithm.name}", state.round + 1
    )
    with blame.named():
        after = algorithm.combine(state, kept)
    _look(after, state, algorithm.folds(), blame)
    return kept, after


@dataclass(frozen=True, slots=True)
class _Blame:
    """Whose fault it is."""

    who: str
    round: int

    def failed(self, what: str, tensor: object = None) -> RoundFailed:
        where = "" if tensor is None else f", tensor {str(tensor)[:200]!r}"
        return RoundFailed(f"round {self.round}: {self.who} {what}{where}")

    @contextmanager
    def named(self) -> Generator[None]:
        try:
            yield
        except FedsdrError:
            raise
        except Exception as error:
            raise self.failed(f"broke ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, slots=True)
class _Sifted:
    """A filter's updates, looked at whenever they are read."""

    kept: Iterable[Update]
    asked: Mapping[str, Tensors]
    blame: _Blame

    def __iter__(self) -> Iterator[Update]:
        last = ""
        with self.blame.named():
            for update in self.kept:
                self._look(update, last)
                last = update.client_id
                yield update
        if not last:
            raise self.blame.failed("lets no update through")

    def _look(self, update: Any, last: str) -> None:
        if not isinstance(update, Update):
            raise self.blame.failed(f"lets a {type(update).__name__} through, no update")
        client = update.client_id
        if client not in self.asked or client <= last:
            raise self.blame.failed(f"lets client {str(client)[:80]!r} through, twice or unasked")
        weight = cast(Any, update.weight)
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise self.blame.failed(f"weighs client {client!r} by what is no number above 0")
        _same_names(update.shared, self.asked[client], self.blame)
        for name, want in self.asked[client].items():
            _look_at(update.shared[name], want.shape, None, math.inf, name, self.blame)


def _sifted(
    sift: Filter,
    state: ServerState,
    updates: Iterable[Update],
    asked: Mapping[str, Tensors],
    blame: _Blame,
) -> Iterable[Update]:
    with blame.named():
        kept: Any = sift(state, updates)
    if not isinstance(kept, Iterable):
        raise blame.failed(f"returns a {type(kept).__name__}, no updates")
    if isinstance(kept, Iterator):
        raise blame.failed("returns what can be read once only; rules read as often as they like")
    return _Sifted(cast(Iterable[Update], kept), asked, blame)


def _look(after: Any, before: ServerState, folds: bool, blame: _Blame) -> None:
    """Whether this is a state that the next round can begin from."""
    if not isinstance(after, ServerState):
        raise blame.failed(f"returns a {type(after).__name__}, no state")
    if (after.round, after.seed, after.clients) != (before.round + 1, before.seed, before.clients):
        raise blame.failed("returns the state of another round or run")
    ours, theirs = _without_fold(before.shared, blame), _without_fold(after.shared, blame)
    _same_names(theirs, ours, blame)
    for name, want in ours.items():
        _look_at(theirs[name], want.shape, want.dtype, LARGEST, name, blame)
    for name in (n for n in after.shared if n not in theirs):
        if not folds:
            raise blame.failed("changes the base, which no deployed mix wears", name)
        _look_at(after.shared[name], _fold_shape(name, after, blame), None, LARGEST, name, blame)
    slots = _mapping(after.slots, "slots", blame)
    for name in before.slots:
        if name not in slots:
            raise blame.failed("loses what it remembered", name)
    for name, slot in slots.items():
        known = before.slots.get(name)
        shape, dtype = (None, None) if known is None else (known.shape, known.dtype)
        _look_at(slot, shape, dtype, LARGEST_SLOT, name, blame)


def _fold_shape(name: str, after: ServerState, blame: _Blame) -> Collection[int]:
    """What P's tensor has to be beside its other half and R's: [r, in], [out, r], or [out, in]."""
    layer, _, half = name.partition("/")[2].rpartition(".")
    a, b = (after.shared.get(f"R/{layer}.{h}") for h in "AB")
    other = after.shared.get(f"{FOLD}/{layer}.{'B' if half == 'A' else 'A'}")
    if a is None or b is None or half not in ("A", "B", "W") or (half != "W" and other is None):
        raise blame.failed("returns a part of the base that belongs to no layer", name)
    if half == "W":
        return (b.shape[0], a.shape[1])
    rank = after.shared[name].shape[0 if half == "A" else -1]
    return (rank, a.shape[1]) if half == "A" else (b.shape[0], cast(Tensor, other).shape[0])


def _look_at(
    tensor: Any,
    shape: Collection[int] | None,
    dtype: torch.dtype | None,
    most: float,
    name: object,
    blame: _Blame,
) -> None:
    if not isinstance(name, str):
        raise blame.failed("returns a tensor without a name", name)
    if wrong := fault(tensor, shape, dtype, most):
        raise blame.failed(f"returns {wrong}", name)
    if tensor.requires_grad:
        raise blame.failed("returns a tensor that requires a gradient", name)


def _same_names(given: Any, wanted: Tensors, blame: _Blame) -> None:
    known = _mapping(given, "tensors", blame)
    for name in wanted:
        if name not in known:
            raise blame.failed("leaves out", name)
    for name in known:
        if name not in wanted:
            raise blame.failed("adds", name)


def _without_fold(shared: Any, blame: _Blame) -> Tensors:
    known = _mapping(shared, "tensors", blame)
    return {n: t for n, t in known.items() if not str(n).startswith(f"{FOLD}/")}


def _mapping(value: Any, what: str, blame: _Blame) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise blame.failed(f"returns a {type(value).__name__}, no mapping of names to {what}")
    return cast(Mapping[str, Any], value)


def _name(part: object) -> str:
    return str(getattr(part, "__name__", type(part).__name__))
