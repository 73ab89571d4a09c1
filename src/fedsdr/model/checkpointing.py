"""Gradient checkpointing: a decoder layer's inner activations are computed again in the backward
pass, which costs a second forward pass and saves most of the memory.

The second pass runs when the first is long over: it must find the branches that the layers wore,
and the rows that were packed, as they were.

The rows of a key-value cache: which of them go on, and which new ones join them.

All rows of a batch end in the same column. So rows of another batch join them by being padded on
the left, where their attention mask is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, cat, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from fedsdr.errors import ModelError
from fedsdr.model.base import BaseModel
from fedsdr.model.flat import as_packed
from fedsdr.model.lora import Attire, StackedLinear

Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def with_checkpointing(base: BaseModel) -> BaseModel:
    """The same base, whose training passes keep only what enters each decoder layer."""
    layers = [m for m in base.net.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{base.path}: {type(base.net).__name__} cannot recompute its layers; set "
            "model.checkpointing: false"
        )
    switch = _Switch()
    for layer in layers:
        layer.forward = partial(_through, switch, base.net, layer.forward)
    return replace(base, checkpointing=True, saving=switch.on)


@dataclass(slots=True)
class _Switch:
    """On only in passes that will have a backward one: generation keeps its cache."""

    active: bool = field(default=False)

    @contextmanager
    def on(self) -> Generator[None]:
        self.active = torch.is_grad_enabled()
        try:
            yield
        finally:
            self.active = False


def _through(
    switch: _Switch, net: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    worn = {m: m.attire for m in net.modules() if isinstance(m, StackedLinear)}
    # A disturbance draws its noise as it goes: a second pass would draw another.
    if not switch.active or any(attire.injected for attire in worn.values()):
        return forward(*args, **kwargs)
    packed = as_packed(net)

    def contexts() -> Contexts:
        return nullcontext(), _again(worn, packed)

    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=contexts,
        **kwargs,
    )


@contextmanager
def _again(
    worn: dict[StackedLinear, Attire], packed: Callable[[], AbstractContextManager[None]]
) -> Generator[None]:
    before = {layer: layer.attire for layer in worn}
    for layer, attire in worn.items():
        layer.attire = attire
    try:
        with packed():
            yield
    finally:
        for layer, attire in before.items():
            layer.attire = attire


def can_regroup(cache: object) -> bool:
    """Whether all of it is keys and values by column. A recurrent state, say, is not."""
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in known for layer in cast(Any, cache).layers)


def regroup(caches: Sequence[object], index: Tensor, length: int) -> object:
    """The first cache, now with the rows `index` of all caches' rows one after another, each cut or
    padded on the left to `length` columns."""
    first, *_others = layered = [cast(Any, cache).layers for cache in caches]
    for number, layer in enumerate(first):
        kept = length
        if isinstance(layer, DynamicSlidingWindowLayer):
            kept = min(length, layer.sliding_window - 1)
            layer.cumulative_length = length
        same = [layers[number] for layers in layered]
        layer.keys = aligned([part.keys for part in same], index, kept, dim=-2)
        layer.values = aligned([part.values for part in same], index, kept, dim=-2)
    return caches[0]


def aligned(parts: Sequence[Tensor], index: Tensor, length: int, dim: int = -1) -> Tensor:
    """The rows `index` of all parts one after another, cut or padded to `length` before `dim`'s
    first column."""
    # A negative padding cuts.
    padding = [(0,) * 2 * (-1 - dim) + (length - part.shape[dim], 0) for part in parts]
    return cat([pad(p, by) for p, by in zip(parts, padding, strict=True)]).index_select(0, index)
