"""Objectives: what a term minimises, one value per client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Local(Protocol):
    """What an objective sees of K clients' local step."""

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """Branch -> [K, P], as trained now."""
        ...

    @property
    def start(self) -> Mapping[str, Tensor]:
        """Branch -> [K, P], as the round began."""
        ...

    @property
    def share_of_step(self) -> float:
        """The part of the optimiser step that this micro-batch is (what is no mean over tokens is
        weighted by it)."""
        ...

    def cross_entropy(self) -> Tensor:
        """[K]: −Σ weight · log p(token) over this micro-batch, per weight of the whole optimiser
        step."""
        ...


class Objective(Protocol):
    def __call__(self, local: Local) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """L_k = −(1/N_k) Σ log p(y | c, x) over the client's trained tokens in the whole optimiser step
    (METHOD.md §2)."""

    def __call__(self, local: Local) -> Tensor:
        return local.cross_entropy()


@dataclass(frozen=True, slots=True)
class Proximal:
    """FedProx (Li et al. 2020): (μ/2) ‖w − w_g‖², squared, w_g being the weights that the round
    began with."""

    mu: float

    def __call__(self, local: Local) -> Tensor:
        drift = [
            (w - local.start[branch]).square().sum(dim=1) for branch, w in local.trained.items()
        ]
        return 0.5 * self.mu * local.share_of_step * sum(drift[1:], drift[0])


@dataclass(frozen=True, slots=True)
class Sum:
    terms: tuple[Objective, ...]

    def __call__(self, local: Local) -> Tensor:
        first, *rest = (term(local) for term in self.terms)
        return sum(rest, first)
