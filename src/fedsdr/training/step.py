"""What an objective sees of a local step, and the forward passes it may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsdr.data.render import Block
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Blend
from fedsdr.parts.objectives import Injection, Predicted, Through, Where


@dataclass(slots=True, kw_only=True)
class LocalStep:
    """One micro-batch of K clients through one term's branches (what an objective sees)."""

    lora: StackedLora
    block: Block
    mix: Mapping[str, float]
    branches: Mapping[str, Tensor]
    trained: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    factors: Mapping[str, Tensor]
    denominators: Mapping[Where, Tensor]  # [K], over the whole optimiser step
    share_of_step: float
    progress: Sequence[float]
    noise: Sequence[torch.Generator]
    blend: Blend | None = None
    passes: dict[tuple[Through, Where], Predicted] = field(
        default_factory=lambda: dict[tuple[Through, Where], Predicted]()
    )

    def predict(
        self,
        through: Through = "now",
        where: Where = "response",
        hidden: bool = False,
        injection: Injection | None = None,
    ) -> Predicted:
        known = self.passes.get((through, where))
        if injection is None and known is not None and (known.hidden or not hidden):
            return known
        flats, mix = (self._blended() if through == "now" else self.start), self.mix
        if through == "base":
            mix = dict[str, float]()
        injected = None
        if injection is not None:
            injected = injection.draw(self.noise, self.block.lengths, self.progress)
        with (
            torch.set_grad_enabled(through == "now"),
            self.lora.wear(flats, mix, self.factors, injected),
        ):
            predicted = predict(self.lora.base, self.block, where, hidden)
        if injection is None:
            self.passes[through, where] = predicted
        return predicted

    def mean(self, values: Tensor, of: Predicted) -> Tensor:
        summed = per_client(values * of.weights, of, self.block.clients)
        return summed / self.denominators[of.where]

    def _blended(self) -> Mapping[str, Tensor]:
        if self.blend is None:
            return self.branches
        old, new, w = (
            self.branches[b] for b in (self.blend.old, self.blend.into, self.blend.weights)
        )
        return {**self.branches, self.blend.into: torch.lerp(old, new, w)}


def predict(
    base: BaseModel, block: Block, where: Where = "response", hidden: bool = False
) -> Predicted:
    """What the base, with whatever it wears, says of the block's tokens."""
    weights = block.weights[:, 1:]
    chosen = weights > 0
    if where == "input":
        real = torch.arange(1, block.ids.shape[1], device=block.ids.device) < block.lengths[:, None]
        chosen = real & ~chosen
    outputs, states = base.predictions(block.ids, block.lengths, chosen, hidden)
    owner = torch.nonzero(chosen)[:, 0] // (block.ids.shape[0] // block.clients)
    kept = weights[chosen] if where == "response" else torch.ones_like(weights[chosen])
    wide = torch.promote_types(base.dtype, torch.float32)
    return Predicted(outputs, block.ids[:, 1:][chosen], kept.to(wide), owner, where, states)


def summed_nll(base: BaseModel, block: Block) -> Tensor:
    """[K]: Σ weight · −log p(token | what stands before it), for each client of the block."""
    predicted = predict(base, block)
    return per_client(predicted.nll() * predicted.weights, predicted, block.clients)


def per_client(values: Tensor, of: Predicted, clients: int) -> Tensor:
    zeros = torch.zeros(clients, dtype=values.dtype, device=values.device)
    return zeros.index_add(0, of.owner, values)
