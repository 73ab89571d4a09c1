"""FDSP's four measures (docs/method.md) of a deployed model: semantic retention, structural
stability, generalisation, parameter efficiency.

Each takes one model, at its own round; where the server's rule changes the base, it has to be
folded in (`lora.folded`) by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsdr.data.render import Block, make_block, render, render_prompt
from fedsdr.evaluate.scoring import Worn
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Algorithm, PerInput, mix_weights
from fedsdr.parts.injection import Disturbance
from fedsdr.parts.objectives import Injected, Predicted
from fedsdr.tensors import generator
from fedsdr.training.step import predict
from fedsdr.types import Example

SIGMAS = (0.3, 1.0, 3.0)
ROWS = 32  # at a time; the draws depend on it, so it is no setting


@torch.no_grad()
def semantic_retention(model: Worn, prompts: Sequence[Example]) -> float:
    """Mean cosine between the tuned model's and the base's last-layer states at the last token of
    each prompt, from which the answer begins."""
    base, cosines = model.lora.base, list[Tensor]()
    rows = [render_prompt(base, e) for e in prompts]
    for first in range(0, len(rows), ROWS):
        some = rows[first : first + ROWS]
        with _worn(model):
            tuned = base.last_states(some).double()
        cosines.append(F.cosine_similarity(tuned, base.last_states(some).double()))
    return float(torch.cat(cosines).mean())


@dataclass(frozen=True, slots=True)
class Stability:
    """What is left under Gaussian noise of `sigma` on every module's adapter output."""

    sigma: float
    loss: float  # 1 − |Δloss|/loss
    agreement: float  # share of response tokens whose likeliest next token stays
    cka: float  # linear CKA of the states, mean over the layers


@torch.no_grad()
def structural_stability(
    model: Worn, examples: Sequence[Example], sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> tuple[Stability, ...]:
    """Clean against perturbed on the examples' responses. Every σ gets the same draws, so that only
    their size differs."""
    base = model.lora.base
    rows = [render(base, e, model.max_length) for e in examples]
    tallies = [_Tally() for _ in sigmas]
    for first in range(0, len(rows), ROWS):
        block = make_block([rows[first : first + ROWS]], base.pad, base.net.device)
        clean = _pass(model, block)
        for sigma, tally in zip(sigmas, tallies, strict=True):
            noise = Disturbance("gaussian", 1.0, 1.0, sigma, warmup=0.0)
            random = generator(seed, "structural stability", first)
            tally.add(clean, _pass(model, block, noise.draw([random], block.lengths, [1.0])))
    return tuple(tally.means(sigma) for sigma, tally in zip(sigmas, tallies, strict=True))


def generalisation(
    seen: Mapping[str, float], unseen: Mapping[str, float]
) -> Mapping[str, tuple[float, float, float]]:
    """Measure -> (on clients that trained, on those that never did, seen − unseen)."""
    return {m: (seen[m], unseen[m], seen[m] - unseen[m]) for m in seen if m in unseen}


@dataclass(frozen=True, slots=True)
class Efficiency:
    trainable: int  # numbers that a client trains
    total: int  # these and the base's
    bytes_up: float  # per round, all clients together
    bytes_down: float
    gain: float  # of a score over the base's, per million trained numbers

    @property
    def share(self) -> float:
        return self.trainable / self.total


def parameter_efficiency(
    lora: StackedLora, algorithm: Algorithm, results: Mapping[str, Any], gain: float
) -> Efficiency:
    """`results`: of the run (results.json); `gain`: its model's score less the base's."""
    trainable = count_trained(lora, algorithm)
    total = trainable + sum(p.numel() for p in lora.base.net.parameters())
    up, down = (results[f"bytes_{way}"] / results["rounds"] for way in ("up", "down"))
    return Efficiency(trainable, total, up, down, gain / (trainable / 1e6))


def count_trained(lora: StackedLora, algorithm: Algorithm) -> int:
    """Numbers of all parts ("R", "R.B") that any stage trains."""
    parts = set[str]().union(*(stage.trains() for stage in algorithm.stages))
    return sum(
        piece.stop - piece.start
        for branch, layout in lora.layouts.items()
        for piece in layout.pieces
        if branch in parts or f"{branch}.{piece.name[-1]}" in parts
    )


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. 2019: ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred states [n, d]."""
    moments = _Moments()
    moments.add(x, y)
    return moments.cka()


@dataclass(slots=True)
class _Moments:
    """Sums of states and their products, so that no state has to be kept."""

    count: int = 0
    sums: list[Tensor] = field(default_factory=lambda: list[Tensor]())

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        new = [x.sum(dim=0), y.sum(dim=0), x.T @ x, y.T @ y, y.T @ x]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.count else new
        self.count += len(x)

    def cka(self) -> float:
        x, y, xx, yy, yx = self.sums
        norm = [
            (product - torch.outer(a, b) / self.count).square().sum().sqrt()
            for product, a, b in ((yx, y, x), (xx, x, x), (yy, y, y))
        ]
        return float(norm[0] ** 2 / (norm[1] * norm[2]))


@dataclass(slots=True)
class _Tally:
    losses: tuple[float, float] = (0.0, 0.0)  # summed: clean, perturbed
    tokens: int = 0
    same: int = 0
    layers: list[_Moments] = field(default_factory=lambda: list[_Moments]())

    def add(self, clean: Predicted, perturbed: Predicted) -> None:
        one, two = (float((p.nll() * p.weights).sum()) for p in (clean, perturbed))
        self.losses = (self.losses[0] + one, self.losses[1] + two)
        self.same += int((clean.logits.argmax(dim=1) == perturbed.logits.argmax(dim=1)).sum())
        self.tokens += len(clean.targets)
        self.layers = self.layers or [_Moments() for _ in clean.hidden]
        for moments, x, y in zip(self.layers, clean.hidden, perturbed.hidden, strict=True):
            moments.add(x, y)

    def means(self, sigma: float) -> Stability:
        clean, perturbed = self.losses
        cka = sum(moments.cka() for moments in self.layers) / len(self.layers)
        return Stability(sigma, 1 - abs(perturbed - clean) / clean, self.same / self.tokens, cka)


def _pass(model: Worn, block: Block, injected: Injected | None = None) -> Predicted:
    with _worn(model, injected):
        return predict(model.lora.base, block, hidden=True)


def _worn(model: Worn, injected: Injected | None = None) -> AbstractContextManager[None]:
    if model.models != 1 or isinstance(model.mix, PerInput):
        raise ValueError("structure is measured of one model at a time, whose mix is fixed")
    return model.lora.wear(model.flats, mix_weights(model.mix), injected=injected)
