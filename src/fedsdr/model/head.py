"""From last states to logits, only as far as somebody asks: the loss of a large vocabulary is
computed piece by piece, and its [tokens, vocabulary] logits never exist as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

PIECE = 1 << 24  # logits at a time: 64 MiB in fp32


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer and what the model does to its logits: y = cap · tanh(scale · W h / cap)."""

    layer: nn.Module
    scale: float = 1.0
    cap: float | None = None

    @property
    def weight(self) -> Tensor:
        """[V, d]"""
        return self.layer.get_parameter("weight")

    def __call__(self, states: Tensor) -> Tensor:
        logits: Tensor = self.layer(states.to(self.weight.dtype))  # some sum in fp32
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


@dataclass(slots=True)
class Outputs:
    """What the model says at n places: the last states [n, d] and the head, or ready logits where
    its head is of an unknown kind."""

    states: Tensor | None
    head: Head | None
    ready: Tensor | None = field(default=None)

    def logits(self) -> Tensor:
        """[n, V], made once."""
        if self.ready is None:
            assert self.head is not None
            self.ready = self.head(cast(Tensor, self.states))
        return self.ready

    def nll(self, targets: Tensor) -> Tensor:
        """[n]: −log p(target), in fp32 at least."""
        if self.ready is None and self.head is not None:
            states = cast(Tensor, self.states)
            if len(targets) * self.head.weight.shape[0] > PIECE:
                return cast(Tensor, _Fused.apply(states, targets, self.head))
        return cross_entropy(self.logits(), targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), targets, reduction="none")


def find_head(net: PreTrainedModel) -> Head | None:
    """The model's head, if head(last states) are its logits: tried out on a few tokens, since a
    model may do to its logits what no configuration key tells."""
    layer, config = cast(Any, net).get_output_embeddings(), cast(Any, net.config)
    if not isinstance(layer, nn.Module):
        return None
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    head = Head(layer, scale, getattr(config, "final_logit_softcapping", None))
    ids = torch.arange(4, device=net.device)[None]
    with torch.no_grad():
        wanted = net(input_ids=ids, use_cache=False).logits
        below = cast(Any, net.base_model)(input_ids=ids, use_cache=False)
        states = getattr(below, "last_hidden_state", None)  # Llama 4 gives logits here too
        if states is None or states.shape[-1] != head.weight.shape[-1]:
            return None
        logits = head(states).to(wanted.dtype)  # some widen their logits
        return head if torch.allclose(logits, wanted, rtol=1e-3, atol=1e-4) else None


class _Fused(torch.autograd.Function):
    """−log p of n targets. The head is frozen, so backward needs no more than the gradient by the
    states, one [n, d], which the forward pass leaves behind piece by piece:

        ∂(−log p_t)/∂h = scale · Wᵀ ((softmax(y) − e_t) ⊙ (1 − (y/cap)²))
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Head) -> Tensor:
        wide = torch.promote_types(states.dtype, torch.float32)
        losses = torch.empty(len(targets), dtype=wide, device=states.device)
        grads = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        size = max(1, PIECE // head.weight.shape[0])
        for first in range(0, len(targets), size):
            piece = slice(first, first + size)
            logits = head(states[piece]).to(wide)
            losses[piece] = cross_entropy(logits, targets[piece])
            if grads is not None:
                slope = logits.softmax(dim=-1)
                slope[torch.arange(len(slope), device=slope.device), targets[piece]] -= 1
                if head.cap is not None:
                    slope *= 1 - (logits / head.cap).square()
                grads[piece] = (slope * head.scale).to(head.weight.dtype) @ head.weight
        if grads is not None:
            ctx.save_for_backward(grads)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * upstream[0][:, None].to(grads.dtype), None, None
