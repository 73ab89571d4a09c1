"""An adapter folded into the base's weights, and the result as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedsdr.errors import ModelError
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import DTYPES
from fedsdr.model.lora import StackedLora
from fedsdr.model.sealed import is_inside

# What makes the folder usable besides weights and config.json, as the base's makers wrote it.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)


def merge_into_base(lora: StackedLora, branch: str, flat: Tensor) -> None:
    """W ← W + (α/r) B A in every adapted layer, in fp64; the stacked layers come off the base."""
    layout = lora.layouts[branch]
    pairs = layout.named(flat.double())
    uses = Counter(id(p) for _, p in lora.base.net.named_parameters(remove_duplicate=False))
    for name, layer in lora.layers.items():
        weight = layer.base.get_parameter("weight")
        if not weight.is_floating_point():
            raise ModelError(f"layer {name!r} is quantised; merge into the unquantised base")
        if uses[id(weight)] > 1:
            raise ModelError(
                f"layer {name!r} shares its weight with another one, which a merge would change too"
            )
        change = (pairs[f"{name}.B"] @ pairs[f"{name}.A"]) * layout.spec.scale
        if not isinstance(layer.base, nn.Linear):  # GPT-2's Conv1D keeps its weight as [in, out]
            change = change.T
        with torch.no_grad():
            weight.copy_(weight.double() + change.to(weight.device))
    lora.remove()


def save_merged(base: BaseModel, folder: Path, dtype: str) -> None:
    """The whole model in this dtype, with tokenizer, the chat template that it was trained with,
    and generation settings."""
    net = base.net
    nn.Module.to(net, DTYPES[dtype])
    for name, parameter in net.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"{name!r} does not fit into {dtype}; choose --dtype bfloat16 or float32"
            )
    try:
        net.save_pretrained(folder)
        for path in {path for pattern in COMPANIONS for path in base.path.glob(pattern)}:
            if path.is_file() and is_inside(base.path, path):
                shutil.copyfile(path, folder / path.name)
        if base.template != base.tokenizer.chat_template:
            (folder / "chat_template.jinja").write_text(base.template, encoding="utf-8")
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{folder.parent}: the merged model cannot be written: {error}") from error
