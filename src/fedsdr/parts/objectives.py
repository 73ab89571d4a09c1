"""Objectives: what a term minimises, one value per client.

FDSP's objectives (docs/method.md): distillation from the model as the round began, and
consistency under structural perturbation.

    L = CE + λ_d L_kd + λ_r L_rep + λ_c L_cons

Each is a term of its own, so that a half that is switched off costs no forward pass. Within a `Sum`
those that need hidden states stand first: the passes are then shared by all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

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


TokenWeights = Literal["uniform", "confidence", "gold"]
LayerWeights = Literal["uniform", "depth", "drift"]
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Distilled:
    """λ_d L_kd, L_kd = τ² Σ_t w_t KL(p_global ‖ p_local)/Σ_t w_t over the response tokens, both at
    temperature τ; the teacher is the broadcast adapter on the same base.

    w_t: 1, 1 − H(p_g)/log V, or p_g(gold), of the teacher at temperature 1. `growth`: λ_d becomes
    λ_d (1 + growth · ‖w − w_start‖/‖w_start‖), measured on what the client trains.

    Σ_t w_t of the whole optimiser step is not known to its first micro-batch: each micro-batch has
    its own quotient, which counts by its share of the client's trained tokens. With equal weights
    that is exact; with others micro-batches change the loss by as much as their mean w_t differ.
    """

    weight: float
    temperature: float = 2.0
    tokens: TokenWeights = "confidence"
    growth: float = 0.0

    def __call__(self, local: Local) -> Tensor:
        now, teacher = local.predict(), local.predict("start")
        values = divergence(teacher.logits, now.logits, self.temperature)
        counts = token_weights(teacher, self.tokens)
        mean = local.mean(counts * values, now) / local.mean(counts, now).clamp_min(TINY)
        share = local.mean(torch.ones_like(counts), now)
        size = self.weight * (1 + self.growth * drift(local)) if self.growth else self.weight
        return size * self.temperature**2 * share * mean


@dataclass(frozen=True, slots=True)
class Represented:
    """λ_r L_rep, L_rep = Σ_l ω_l (1 − cos(h_local^l, stopgrad h_global^l)), mean over the response
    tokens. Σ_l ω_l = 1: `uniform`; `depth`, ω_l ∝ l; or `drift`, ω_l in proportion to how far this
    token's state has moved in layer l (without gradient), so that micro-batches add up exactly."""

    weight: float
    layers: LayerWeights = "uniform"

    def __call__(self, local: Local) -> Tensor:
        now, teacher = local.predict(hidden=True), local.predict("start", hidden=True)
        apart = distances(now, teacher)
        if self.layers == "drift":
            counts = apart.detach().clamp_min(0.0) + 1e-6  # where nothing has moved: uniform
        else:
            depth = torch.arange(1, len(apart) + 1, dtype=apart.dtype, device=apart.device)
            counts = (depth if self.layers == "depth" else torch.ones_like(depth))[:, None]
        return self.weight * local.mean((counts / counts.sum(dim=0) * apart).sum(dim=0), now)


@dataclass(frozen=True, slots=True)
class Consistent:
    """λ_c L_cons, L_cons = KL(stopgrad p_clean ‖ p_perturbed) + β·mean_l(1 − cos(h_clean,
    h_perturbed)), mean over the response tokens."""

    weight: float
    injection: Injection
    beta: float = 1.0

    def __call__(self, local: Local) -> Tensor:
        hidden = self.beta > 0
        clean = local.predict(hidden=hidden)
        perturbed = local.predict(hidden=hidden, injection=self.injection)
        values = divergence(clean.logits.detach(), perturbed.logits)
        if hidden:
            values = values + self.beta * distances(clean, perturbed).mean(dim=0)
        return self.weight * local.mean(values, clean)


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """[n]: KL(teacher ‖ student) between next-token distributions, from logits [n, V]."""
    log_p, log_q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return F.log_softmax(_wide(logits) / temperature, dim=-1)


def token_weights(teacher: Predicted, kind: TokenWeights) -> Tensor:
    """[n]: what each token's divergence counts."""
    log_p = log_probabilities(teacher.logits)
    if kind == "gold":
        return log_p.gather(1, teacher.targets[:, None])[:, 0].exp()
    if kind == "confidence":
        entropy = -(log_p.exp() * log_p).sum(dim=-1)
        return (1 - entropy / math.log(log_p.shape[1])).clamp_min(0.0)
    return torch.ones_like(log_p[:, 0])


def distances(one: Predicted, other: Predicted) -> Tensor:
    """[layers, n]: 1 − cos between the same token's states."""
    pairs = zip(one.hidden, other.hidden, strict=True)
    return torch.stack([1 - F.cosine_similarity(_wide(a), _wide(b), dim=-1) for a, b in pairs])


@torch.no_grad()
def drift(local: Local) -> Tensor:
    """[K]: ‖w − w_start‖/‖w_start‖ over what is trained, without gradient."""
    names = list(local.trained)
    begin = torch.cat([local.start[b] for b in names], dim=1)
    now = torch.cat([local.trained[b] for b in names], dim=1)
    return (now - begin).norm(dim=1) / begin.norm(dim=1).clamp_min(TINY)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
