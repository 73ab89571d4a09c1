"""Objectives: what a term minimises, one value per client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Through = Literal["now", "start", "base"]
Where = Literal["response", "input"]


class Outputs(Protocol):
    """What the model says at n places; how, its room knows."""

    def logits(self) -> Tensor:
        """[n, V], made once."""
        ...

    def nll(self, targets: Tensor) -> Tensor:
        """[n]: −log p(target), in fp32 at least."""
        ...


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one forward pass says of n tokens, client by client: those of the response that are
    trained, or those of the input."""

    outputs: Outputs  # what predicts each token
    targets: Tensor  # [n]
    weights: Tensor  # [n], 1 for a token of the input
    owner: Tensor  # [n], the client's number in the stack
    where: Where = "response"
    hidden: tuple[Tensor, ...] = ()  # per layer [n, d], where asked for

    @property
    def logits(self) -> Tensor:
        """[n, V]; made where an objective asks for them, as the loss alone does not."""
        return self.outputs.logits()

    def nll(self) -> Tensor:
        """[n]: −log p(token)."""
        return self.outputs.nll(self.targets)


class Injected(Protocol):
    """An injection at work, for one forward pass of K clients. Rows stand as [K, n, ...]; without
    padding as [N, ...], and then the latent dimensions of all clients side by side."""

    def latent(self, layer: str, hidden: Tensor) -> Tensor:
        """A·h, before B."""
        ...

    def output(self, layer: str, change: Tensor) -> Tensor:
        """B·A·h."""
        ...


class Injection(Protocol):
    def draw(
        self, noise: Sequence[torch.Generator], lengths: Tensor, progress: Sequence[float]
    ) -> Injected:
        """One disturbance per client, from its own generator; `lengths` are the rows', client by
        client, equally many each; `progress`: how far each client is in its stage."""
        ...


class Local(Protocol):
    """What an objective sees of K clients' local step."""

    @property
    def branches(self) -> Mapping[str, Tensor]:
        """Every branch [K, P], as it is now; what the term trains has gradients."""
        ...

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """Of these, what the term trains."""
        ...

    @property
    def start(self) -> Mapping[str, Tensor]:
        """Every branch [K, P], as the round began."""
        ...

    @property
    def share_of_step(self) -> float:
        """The part of the optimiser step that this micro-batch is (what is no mean over tokens is
        weighted by it)."""
        ...

    @property
    def progress(self) -> Sequence[float]:
        """How far each client is in its stage: 0 at its first step, near 1 at its last."""
        ...

    def predict(
        self,
        through: Through = "now",
        where: Where = "response",
        hidden: bool = False,
        injection: Injection | None = None,
    ) -> Predicted:
        """A forward pass: through the term's branches as they are now, as the round began (no
        gradient), or the base alone (no gradient). The same pass is not run twice."""
        ...

    def mean(self, values: Tensor, of: Predicted) -> Tensor:
        """[K]: Σ weight · value over these tokens, per weight of the whole optimiser step."""
        ...


class Objective(Protocol):
    def __call__(self, local: Local) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """L_k = −(1/N_k) Σ log p(y | c, x) over the client's trained tokens in the whole optimiser step
    (docs/method.md)."""

    def __call__(self, local: Local) -> Tensor:
        predicted = local.predict()
        return local.mean(predicted.nll(), predicted)


@dataclass(frozen=True, slots=True)
class Proximal:
    """(μ/2) ‖w − w_g‖², squared. w_g is the trained branch as the round began (FedProx, Li et al.
    2020), or another branch, `to`, as the round began (Ditto, Li et al. 2021)."""

    mu: float
    to: str | None = None

    def __call__(self, local: Local) -> Tensor:
        drift = [
            (w - local.start[self.to or branch]).square().sum(dim=1)
            for branch, w in local.trained.items()
        ]
        return 0.5 * self.mu * local.share_of_step * sum(drift[1:], drift[0])


@dataclass(frozen=True, slots=True)
class ControlVariate:
    """SCAFFOLD (Karimireddy et al. 2020): ⟨c − c_k, w⟩, whose gradient is the correction c − c_k.
    `server` and `own` name the branches that hold c and c_k."""

    server: str
    own: str

    def __call__(self, local: Local) -> Tensor:
        correction = (local.branches[self.server] - local.branches[self.own]).detach()
        (w,) = local.trained.values()
        return local.share_of_step * (correction * w).sum(dim=1)


@dataclass(frozen=True, slots=True)
class Sum:
    terms: tuple[Objective, ...]

    def __call__(self, local: Local) -> Tensor:
        first, *rest = (term(local) for term in self.terms)
        return sum(rest, first)
