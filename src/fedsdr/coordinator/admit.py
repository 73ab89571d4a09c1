"""The gate: no update counts before it has passed here, in process or over a wire."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fedsdr.coordinator.claims import Claims
from fedsdr.errors import UpdateRefused, shown
from fedsdr.tensors import fault
from fedsdr.types import Report, Tensors, Update

LARGEST = 1e6  # beyond it, a change of an adapter is no training result but an overflow to be


@dataclass(frozen=True, slots=True)
class Expected:
    """What an update of this round has to be."""

    run: str
    round: int
    base_digest: str
    shared: Mapping[str, Tensors]  # of every client that was asked
    claims: Mapping[str, Claims] = field(default_factory=lambda: dict[str, Claims]())  # if known


def admit(update: object, expected: Expected, seen: Collection[str] = ()) -> Update:
    """The update itself, or `UpdateRefused` naming client, tensor and reason."""
    claimed = cast(Any, update)  # its types are what a stranger says they are
    who = claimed.client_id if isinstance(update, Update | Report) else None

    def refuse(reason: str, tensor: str | None = None) -> UpdateRefused:
        return UpdateRefused(who[:80] if isinstance(who, str) else shown(who), reason, tensor)

    if not isinstance(who, str) or who not in expected.shared:
        raise refuse("this client was not asked in this round")
    if not isinstance(update, Update):
        raise refuse("it is no update")
    if who in seen:
        raise refuse("a second update of this client in one round")
    if claimed.run != expected.run:
        raise refuse("it belongs to another run")
    if type(claimed.round) is not int or claimed.round != expected.round:
        raise refuse(f"it does not belong to round {expected.round}")
    if claimed.base_digest != expected.base_digest:
        raise refuse("it was trained on another base model")
    if not _is_finite(claimed.weight):
        raise refuse(f"weight {shown(claimed.weight)} is no finite number")
    if claimed.weight <= 0:
        raise refuse(f"weight {claimed.weight} is not above 0")
    claims = expected.claims.get(who, Claims())
    if not claims.weight.holds(claimed.weight):
        raise refuse(f"weight {claimed.weight:g} is not what this client weighs, {claims.weight}")
    metrics, shared = _mapping(claimed.metrics), _mapping(claimed.shared)
    if metrics is None:
        raise refuse("its metrics are no mapping of names to numbers")
    for name, value in metrics.items():
        span = claims.span(name) if isinstance(name, str) else None
        if span is None:
            raise refuse(f"metric {shown(name)} is not on the list of what may be sent")
        if not _is_finite(value):
            raise refuse(f"metric {name!r} is no finite number")
        if not span.holds(value):
            raise refuse(f"metric {name!r} is {value:g}; it must be {span}")
    for name in claims.metrics or ():
        if name not in metrics:
            raise refuse(f"metric {name!r} is missing")
    if shared is None:
        raise refuse("what it shares is no mapping of names to tensors")
    wanted = expected.shared[who]
    for name in wanted:
        if name not in shared:
            raise refuse("missing", name)
    for name, tensor in shared.items():
        if name not in wanted:
            raise refuse("not asked for", name[:200] if isinstance(name, str) else shown(name))
        want = wanted[name]
        if wrong := fault(tensor, want.shape, want.dtype, LARGEST):
            raise refuse(wrong, name)
    return update


def _mapping(value: object) -> Mapping[Any, Any] | None:
    return cast(Mapping[Any, Any], value) if isinstance(value, Mapping) else None


def _is_finite(value: object) -> bool:
    """A plain number that a double can hold: math.isfinite raises on integers beyond that."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN
