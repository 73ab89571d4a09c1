"""Crowds of made-up updates for server rules: one of them may lie, and it can be watched how they
are read."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsdr.tensors import generator
from fedsdr.types import ServerState, Tensors, Update

A, B = "R/layer.A", "R/layer.B"


def crowd(n: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Update]:
    """n clients whose changes are 12 + 6 normal numbers, of weights 2, 3, …"""
    return [
        Update(
            run="run",
            round=1,
            client_id=f"c{k}",
            base_digest="base",
            weight=2.0 + k,
            shared={
                A: torch.randn(3, 4, generator=generator(seed, k, "A"), dtype=dtype),
                B: torch.randn(6, generator=generator(seed, k, "B"), dtype=dtype),
            },
        )
        for k in range(n)
    ]


def zeros(dtype: torch.dtype = torch.float32) -> ServerState:
    return ServerState(0, {A: torch.zeros(3, 4, dtype=dtype), B: torch.zeros(6, dtype=dtype)})


def flat(shared: Tensors) -> np.ndarray:
    return np.concatenate([shared[name].double().numpy().ravel() for name in (A, B)])


def points(updates: Sequence[Update]) -> np.ndarray:
    return np.stack([flat(u.shared) for u in updates])


def attack(crowd: list[Update], at: int, times: float) -> tuple[list[Update], list[Update]]:
    """The honest ones, and all with client `at` lying."""
    liar = crowd[at]
    lie = replace(liar, shared={name: t * times for name, t in liar.shared.items()})
    honest = [u for u in crowd if u is not liar]
    return honest, [lie if u is liar else u for u in crowd]


@dataclass(slots=True)
class Spool:
    """Makes updates anew at every pass, and counts how many live at once and how many passes."""

    updates: Sequence[Update]
    alive: int = 0
    most: int = 0
    passes: int = 0

    def __iter__(self) -> Iterator[Update]:
        self.passes += 1
        return (self._fresh(k) for k in range(len(self.updates)))

    def _fresh(self, k: int) -> Update:
        u = self.updates[k]
        copy = {name: t.clone() for name, t in u.shared.items()}
        fresh = Watched(
            run=u.run,
            round=u.round,
            client_id=u.client_id,
            base_digest=u.base_digest,
            weight=u.weight,
            shared=copy,
        )
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(fresh, self._gone)
        return fresh

    def _gone(self) -> None:
        self.alive -= 1


class Watched(Update):
    """Without slots, so that it can be watched."""


def update(client: str, weight: float, **halves: Tensor | Sequence[float]) -> Update:
    shared = {
        f"R/layer.{half}": torch.as_tensor(values, dtype=torch.float64)
        for half, values in halves.items()
    }
    return Update(
        run="run", round=1, client_id=client, base_digest="base", weight=weight, shared=shared
    )


def line(*values: float, weights: Sequence[float] = ()) -> list[Update]:
    chosen = weights or [10.0**k for k in range(len(values))]
    return [update(f"c{k}", n, B=[x]) for k, (x, n) in enumerate(zip(values, chosen, strict=True))]


def start(size: int = 1, dtype: torch.dtype = torch.float64) -> ServerState:
    return ServerState(4, {B: torch.zeros(size, dtype=dtype)}, {"m": torch.ones(1)}, 11, 9)
