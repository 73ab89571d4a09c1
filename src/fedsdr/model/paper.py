"""A model built without a single number, to see what config.json asks for: not more than the
weights that are there."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import CONFIG_MAPPING, AutoConfig

from fedsdr.errors import ModelError
from fedsdr.model.rehearsal import rehearse
from fedsdr.model.sealed import Sealed
from fedsdr.model.tokenizer import try_tokenizer
from fedsdr.model.weights import Stored

# Of a model, for one tensor or number of its weights: shared ones are made twice before they are
# shared, fused ones apart.
TENSORS, NUMBERS = (16, 1 << 8), (3, 1 << 24)
UNWEIGHED = Stored((), 1 << 14, 1 << 42, 1 << 42)  # where there are no weights
A_TENSOR = 300  # bytes of a small file that take as long to read as a tensor to be laid out
_tried = set[str]()


def rehearse_model(model: Sealed, kind: Any, tokenizer: Callable[[Path], Any]) -> None:
    """The model's files, and the libraries that read them, in a fork; once per process."""
    known = f"{kind.__name__} {model.digest} {model.weights is None}"
    if known in _tried:
        return
    _import_code(model, kind)

    def action() -> None:
        build(model, kind, trust_remote_code=False)
        try_tokenizer(model.called, tokenizer(model.folder))

    tensors = model.weights.tensors if model.weights else 0
    rehearse(action, model.size + A_TENSOR * tensors)
    _tried.add(known)


def build(model: Sealed, kind: Any, dtype: torch.dtype | None = None, **common: Any) -> Any:
    """Of the kind that an Auto class makes, on no device."""
    config = AutoConfig.from_pretrained(model.folder, local_files_only=True, **common)
    with _within(model), torch.device("meta"):
        return kind.from_config(config, dtype=dtype or torch.float32, **common)


@contextmanager
def _within(model: Sealed) -> Generator[None]:
    """Whatever is built here may not be larger than the weights allow; it stops where it is."""
    stored = model.weights or UNWEIGHED
    packed = model.config.get("quantization_config") is not None
    numbers = 2 * stored.size if packed else stored.numbers
    most = (TENSORS[0] * stored.tensors + TENSORS[1], NUMBERS[0] * numbers + NUMBERS[1])
    count, total = 0, 0

    def weigh(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal count, total
        if tensor is None:
            return
        count, total = count + 1, total + tensor.numel()
        if count > most[0] or total > most[1]:
            raise ModelError(
                f"{model.called}/config.json asks for a model that is much larger than the weights "
                f"({stored.tensors:,} tensors of {stored.numbers:,} numbers); take both from one "
                "model"
                if model.weights
                else f"{model.called}/config.json asks for a model that is larger than any"
            )

    hooks = (
        register_module_parameter_registration_hook(weigh),
        register_module_buffer_registration_hook(weigh),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _import_code(model: Sealed, kind: Any) -> None:
    """transformers' own code for this kind of model, which the fork would import for itself
    alone."""
    name: Any = model.config.get("model_type")
    if isinstance(name, str) and name in CONFIG_MAPPING:
        kind._model_mapping.get(CONFIG_MAPPING[name], None)
