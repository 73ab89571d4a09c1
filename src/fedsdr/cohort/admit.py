"""The gate: no update counts before it has passed here, in process or over a wire."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from fedsdr.errors import UpdateRefused
from fedsdr.types import Tensors, Update

METRICS = frozenset({"loss", "examples", "steps", "tokens"})  # or "loss_2" …, one per further stage
HEAVIEST = 1e9


@dataclass(frozen=True, slots=True)
class Expected:
    """What an update of this round has to be."""

    run: str
    round: int
    base_digest: str
    clients: Collection[str]
    shared: Tensors
    heaviest: Mapping[str, float] | None = None  # client -> examples it enrolled with, where known


def admit(update: Update, expected: Expected, seen: Collection[str] = ()) -> Update:
    """The update itself, or `UpdateRefused` naming client, tensor and reason."""
    who = update.client_id

    def refuse(reason: str, tensor: str | None = None) -> UpdateRefused:
        return UpdateRefused(str(who)[:80], reason, tensor)

    if not isinstance(who, str) or who not in expected.clients:
        raise refuse("this client was not asked in this round")
    if who in seen:
        raise refuse("a second update of this client in one round")
    if update.run != expected.run:
        raise refuse("it belongs to another run")
    if update.round != expected.round:
        raise refuse(f"it belongs to round {update.round!r}, not {expected.round}")
    if update.base_digest != expected.base_digest:
        raise refuse("it was trained on another base model")
    _admit_weight(update, expected)
    for name, value in update.metrics.items():
        if str(name).rstrip("0123456789").rstrip("_") not in METRICS:
            raise refuse(f"metric {str(name)[:80]!r} is not on the list of what may be sent")
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise refuse(f"metric {name!r} is no finite number")
    for name in expected.shared:
        if name not in update.shared:
            raise refuse("missing", name)
    for name, tensor in update.shared.items():
        if name not in expected.shared:
            raise refuse("not asked for", str(name)[:200])
        if not isinstance(tensor, torch.Tensor):
            raise refuse(f"a {type(tensor).__name__}, not a tensor", name)
        want = expected.shared[name]
        if tensor.is_sparse or tensor.layout != torch.strided or tensor.is_quantized:
            raise refuse("not a dense tensor", name)
        if tensor.shape != want.shape:
            raise refuse(f"shape {tuple(tensor.shape)}, expected {tuple(want.shape)}", name)
        if tensor.dtype != want.dtype:
            raise refuse(f"dtype {tensor.dtype}, expected {want.dtype}", name)
        if not bool(torch.isfinite(tensor).all()):
            raise refuse("holds NaN or infinity", name)
    return update


def _admit_weight(update: Update, expected: Expected) -> None:
    weight, who = update.weight, update.client_id
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not math.isfinite(weight)
    ):
        raise UpdateRefused(who, f"weight {str(weight)[:40]} is no finite number")
    if weight <= 0:
        raise UpdateRefused(who, f"weight {weight} is not above 0")
    limit = (expected.heaviest or {}).get(who, HEAVIEST)
    if weight > limit:
        raise UpdateRefused(
            who, f"weight {weight:g} is above what this client may weigh ({limit:g})"
        )
