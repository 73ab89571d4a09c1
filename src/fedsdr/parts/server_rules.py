"""Server rules with a memory: the mean change Δ is treated as a gradient, and the server takes a
momentum or an adaptive step along it.

Memory lies in the slots, "m/<tensor>" and "v/<tensor>", in fp32 at least. A tensor that no client
trained in a round rests: neither it nor its memory changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedsdr.errors import RecipeError
from fedsdr.parts.combine import weighted_mean
from fedsdr.types import ServerState, Update


@dataclass(frozen=True, slots=True)
class Momentum:
    """FedAvgM (Hsu et al. 2019): v ← β·v + Δ, w ← w + η·v.

    `damped` is the rule of a much-used codebase instead: v ← β·v + (1 − β)·Δ, and at a tensor's
    first round v = Δ.
    """

    momentum: float
    server_lr: float
    variant: Literal["textbook", "damped"] = "textbook"

    def __post_init__(self) -> None:
        _require_positive("server_lr", self.server_lr)
        _require_decay("momentum", self.momentum)

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        shared, slots = dict(state.shared), dict(state.slots)
        for name, mean in weighted_mean(updates).items():
            w = shared[name]
            v = self._velocity(slots.get(f"v/{name}"), mean.to(_wide(w)))
            shared[name] = w + (self.server_lr * v).to(w.dtype)
            slots[f"v/{name}"] = v
        return replace(state, round=state.round + 1, shared=shared, slots=slots)

    def _velocity(self, v: Tensor | None, delta: Tensor) -> Tensor:
        if v is None:
            return delta
        fresh = 1 - self.momentum if self.variant == "damped" else 1.0
        return self.momentum * v + fresh * delta


class SecondMoment(Protocol):
    def __call__(self, v: Tensor, square: Tensor) -> Tensor:
        """The next v, from the last one and this round's Δ²."""
        ...


@dataclass(frozen=True, slots=True)
class Adaptive:
    """FedOpt (Reddi et al. 2021, Algorithm 2), from m = 0 and v = τ², without bias correction:

        m ← β₁·m + (1 − β₁)·Δ,   v ← `second`(v, Δ²),   w ← w + η·m / (√v + τ)

    `squared_momentum` is the rule of a much-used codebase instead: v sees m² in place of Δ², m = Δ
    at a tensor's first round, and Δ is the plain mean, in which all clients count alike.
    """

    second: SecondMoment
    server_lr: float
    tau: float
    beta1: float
    variant: Literal["textbook", "squared_momentum"] = "textbook"

    def __post_init__(self) -> None:
        _require_positive("server_lr", self.server_lr)
        if not 1e-18 <= self.tau <= 1e18:  # else τ² is 0 or infinite in fp32
            raise RecipeError(
                f"algorithm.tau must be a number from 1e-18 to 1e18, it is {self.tau}"
            )
        _require_decay("beta1", self.beta1)

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        shared, slots = dict(state.shared), dict(state.slots)
        squared = self.variant == "squared_momentum"
        if squared:
            updates = (replace(update, weight=1.0) for update in updates)
        for name, mean in weighted_mean(updates).items():
            w = shared[name]
            delta = mean.to(_wide(w))
            m, v = slots.get(f"m/{name}"), slots.get(f"v/{name}")
            v = torch.full_like(delta, self.tau**2) if v is None else v
            if m is None:
                m = delta if squared else (1 - self.beta1) * delta
            else:
                m = self.beta1 * m + (1 - self.beta1) * delta
            v = self.second(v, (m if squared else delta).square())
            step = self.server_lr * m / (v.sqrt() + self.tau)
            shared[name] = w + step.to(w.dtype)
            slots[f"m/{name}"], slots[f"v/{name}"] = m, v
        return replace(state, round=state.round + 1, shared=shared, slots=slots)


@dataclass(frozen=True, slots=True)
class Adagrad:
    """v ← v + Δ²."""

    def __call__(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square


@dataclass(frozen=True, slots=True)
class Adam:
    """v ← β₂·v + (1 − β₂)·Δ²."""

    beta2: float

    def __post_init__(self) -> None:
        _require_decay("beta2", self.beta2)

    def __call__(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True, slots=True)
class Yogi:
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""

    beta2: float

    def __post_init__(self) -> None:
        _require_decay("beta2", self.beta2)

    def __call__(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * torch.sign(v - square)


def _wide(w: Tensor) -> torch.dtype:
    return torch.promote_types(w.dtype, torch.float32)


def _require_positive(option: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise RecipeError(f"algorithm.{option} must be a number above 0, it is {value}")


def _require_decay(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise RecipeError(f"algorithm.{option} must lie in 0 <= {option} < 1, it is {value}")
