"""A first forward pass over a few tokens, which shows what no configuration key tells."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from fedsdr.errors import ModelError
from fedsdr.model.base import linear_layers


def rigid_layers(net: PreTrainedModel) -> frozenset[str]:
    """The linear layers (without the head) that a LoRA layer cannot stand in for: the model reads
    their weights itself, and would not ask it (Mamba's `dt_proj`), or takes more from them than
    W x (Llama 4's `router`)."""
    head = net.get_output_embeddings()
    layers = {name: layer for name, layer in linear_layers(net).items() if layer is not head}
    watch = _Reads(layers)
    ids = torch.arange(4, device=net.device)[None]
    try:
        with torch.no_grad(), watch.calls(), watch:
            out = net(input_ids=ids, use_cache=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        why = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{net.name_or_path}: {type(net).__name__} does not run on {net.device} ({why}); try "
            "another model.dtype, such as float32"
        ) from error
    if getattr(out, "past_key_values", None) is None:
        raise ModelError(
            f"{net.name_or_path}: {type(net).__name__} keeps no keys and values of what it has "
            "read, so that it cannot generate here; take a model with attention"
        )
    return frozenset(watch.rigid)


class _Reads(TorchFunctionMode):
    """Notes every use of a layer's weight outside a call of that layer, and every call that gives
    more than a tensor."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.layers, self.running, self.rigid = layers, list[nn.Module](), set[str]()
        self.owner = {id(layer.weight): name for name, layer in layers.items()}

    @contextmanager
    def calls(self) -> Generator[None]:
        def enter(layer: nn.Module, _: object) -> None:
            self.running.append(layer)

        def leave(layer: nn.Module, _: object, out: object) -> None:
            self.running.pop()
            if not isinstance(out, Tensor):
                self.rigid.add(self.owner[id(layer.weight)])

        with ExitStack() as undo:
            for layer in self.layers.values():
                undo.callback(layer.register_forward_pre_hook(enter).remove)
                undo.callback(layer.register_forward_hook(leave).remove)
            yield

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        given = kwargs or {}
        for value in (*args, *given.values()):
            name = self.owner.get(id(value)) if isinstance(value, Tensor) else None
            if name is not None and self.layers[name] not in self.running:
                self.rigid.add(name)
        return func(*args, **given)
