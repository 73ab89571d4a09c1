"""Server rules that change the base: the mean product Σ p_k B_k A_k enters the model exactly.

What R cannot hold goes into the frozen, clientless branch P, at the same scale α/r, so that W0
itself is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsdr.parts import lowrank
from fedsdr.parts.combine import Downlink, Mean, Same
from fedsdr.parts.lora_rules import mean_product, named, pairs, without_r
from fedsdr.parts.lowrank import Pair
from fedsdr.tensors import generator
from fedsdr.types import FOLD, ServerState, Update


@dataclass(frozen=True, slots=True)
class Merged:
    """FLoRA (Wang et al. 2024): the clients' pairs side by side are the mean product itself; it is
    merged, and R starts anew.

    P ← P + Σ p_k (r/r_k) B_k A_k,   A uniform in ±1/√in,   B ← 0
    """

    downlink: Downlink

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        rest, terms = without_r(state, updates), mean_product(state, updates, self.downlink)
        shared = folded(rest.shared, terms)
        for layer, (a, b) in pairs(state.shared).items():
            shared |= named("R", layer, Pair(_fresh(a, state, layer), torch.zeros_like(b)))
        return replace(rest, shared=shared)


@dataclass(frozen=True, slots=True)
class MeanAndResidual:
    """FedEx-LoRA (Singhal et al. 2025): R is averaged as in FedAvg, and what the product of the
    means lacks of the mean product goes into the base.

    A ← Ā,   B ← B̄,   P ← P + Σ p_k B_k A_k − B̄ Ā
    """

    def __call__(self, state: ServerState, updates: Iterable[Update]) -> ServerState:
        averaged, terms = Mean()(state, updates), mean_product(state, updates, Same())
        # The means as they are stored, so that P makes up for their rounding too.
        for layer, mean in pairs(averaged.shared).items():
            terms[layer].append(mean.scaled(-1.0))
        return replace(averaged, shared=folded(averaged.shared, terms))


def folded(shared: Mapping[str, Tensor], terms: Mapping[str, Sequence[Pair]]) -> dict[str, Tensor]:
    """P + Σ of these products, layer by layer; a layer of P that is zero is left out."""
    kept, tensors = pairs(shared, FOLD), dict(shared)
    for layer, of in terms.items():
        before = tensors.pop(f"{FOLD}/{layer}.W", kept.get(layer))
        tensors = {n: t for n, t in tensors.items() if n[:-2] != f"{FOLD}/{layer}"}
        after = lowrank.add(before, of, shared[f"R/{layer}.A"].dtype)
        if isinstance(after, Pair):
            tensors |= named(FOLD, layer, after)
        elif after is not None:
            tensors[f"{FOLD}/{layer}.W"] = after
    return tensors


def _fresh(a: Tensor, state: ServerState, layer: str) -> Tensor:
    """A new start, as every LoRA branch has it; other numbers in every round and layer."""
    random = generator(state.seed, "flora", state.round + 1, f"R/{layer}.A")
    drawn = torch.rand(a.shape, generator=random, dtype=torch.float64)
    return ((2 * drawn - 1) / math.sqrt(a.shape[1])).to(a)
