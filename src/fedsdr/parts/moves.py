"""Moves: what a stage does to whole branches before or after it trains, without any gradient.

Each sees K clients' branches side by side ([K, P] per branch) and answers with the new value of
one.

When: the rounds in which something happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedsdr.errors import RecipeError


@dataclass(frozen=True, slots=True)
class When:
    """The rounds (from 1) from `first` to `last`, every `every`-th of these."""

    first: int = 1
    last: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.first < 1 or self.every < 1:
            raise RecipeError(
                f"rounds from {self.first} on, every {self.every}: both must be at least 1"
            )

    def __call__(self, round: int) -> bool:
        past = self.last is not None and round > self.last
        return round >= self.first and not past and (round - self.first) % self.every == 0


EVERY_ROUND = When()


Flats = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Trained:
    """What a stage leaves behind, for moves that reckon with it: how it began, each client's steps,
    the rate."""

    began: Flats
    steps: Tensor  # [K]
    lr: float


class Move(Protocol):
    @property
    def into(self) -> str:
        """The branch that is replaced."""
        ...

    def when(self, round: int) -> bool: ...
    def __call__(self, flats: Flats, stage: Trained) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Copy:
    """`into` ← `source`."""

    into: str
    source: str
    rounds: When = EVERY_ROUND

    def when(self, round: int) -> bool:
        return self.rounds(round)

    def __call__(self, flats: Flats, stage: Trained) -> Tensor:
        return flats[self.source].clone()


@dataclass(frozen=True, slots=True)
class Interpolate:
    """`into` ← old + (into − old) ⊙ weights (FedALA: Zhang et al. 2023, eq. 2)."""

    into: str
    old: str
    weights: str

    def when(self, round: int) -> bool:
        return True

    def __call__(self, flats: Flats, stage: Trained) -> Tensor:
        return torch.lerp(flats[self.old], flats[self.into], flats[self.weights])
