"""Gradient checkpointing: a decoder layer's inner activations are computed again in the backward
pass, which costs a second forward pass and saves most of the memory.

The second pass runs when the first is long over: it must find the branches that the layers wore,
and the rows that were packed, as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
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
