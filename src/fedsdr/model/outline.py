"""A base on paper: its tokenizer, and its layers without a single weight, for what can be counted
before anything is downloaded or bought."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fedsdr.model.base import BaseModel, in_out, linear_layers
from fedsdr.model.head import Head
from fedsdr.model.loading import DTYPES, Quantized, call_it, reading
from fedsdr.model.paper import build, rehearse_model
from fedsdr.model.sealed import find_model, sealed
from fedsdr.model.speech import own_template
from fedsdr.model.tokenizer import check_vocabulary, read_tokenizer

# What bitsandbytes keeps beside NF4 numbers: an 8-bit constant for every block of 64, and for every
# 256 of these an fp32 one; for every layer, what the 16 and 256 codes mean, and an offset. Beside
# LLM.int8's numbers, an fp32 one for every output.
BLOCK, BLOCKS = 64, 256
TABLES = 4 * (16 + 256 + 1)


def outline_base(
    path: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    quantize: Quantized | None = None,
    trusted: bool = False,
) -> BaseModel:
    """As `load_base`, on no device: of a folder, config.json and the tokenizer's files are enough.
    That the model's head works as a plain one, and that a LoRA layer can stand in for each linear
    layer, cannot be tried here, and is taken for granted."""
    folder = find_model(str(path), revision, trusted, weights=False)
    common: dict[str, Any] = {"trust_remote_code": trusted}
    with sealed(folder, False, trusted) as model, reading(model, path, trusted):
        read = partial(read_tokenizer, folder, local_files_only=True, **common)
        if not trusted:
            rehearse_model(model, AutoModelForCausalLM, read)
        net = build(model, AutoModelForCausalLM, DTYPES[dtype], **common)
        tokenizer = read(model.folder)
    call_it(net, folder)
    check_vocabulary(folder, tokenizer, net)
    net.requires_grad_(False).eval()
    if quantize is not None:
        _pack(net, quantize)
    template, notes = own_template(tokenizer)
    precision = "+".join(filter(None, (dtype, quantize)))
    layer = net.get_output_embeddings()
    head = Head(layer) if isinstance(layer, nn.Module) else None
    return BaseModel(
        net=net,
        tokenizer=tokenizer,
        digest=model.digest,
        path=folder,
        template=template,
        notes=notes,
        head=head,
        precision=precision,
    )


def _pack(net: PreTrainedModel, quantize: Quantized) -> None:
    """Every linear layer but the head with as many bytes as its quantised weight takes."""
    for name, layer in linear_layers(net).items():
        if layer is net.get_output_embeddings():
            continue
        width_in, width_out = in_out(layer)
        packed = nn.Linear(width_in, width_out, bias=False, device="meta")
        size = _packed(width_in, width_out, quantize)
        content = torch.empty(size, dtype=torch.uint8, device="meta")
        packed.weight = nn.Parameter(content, requires_grad=False)
        if isinstance(layer.bias, nn.Parameter):
            packed.bias = layer.bias
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, packed)


def _packed(width_in: int, width_out: int, quantize: Quantized) -> int:
    numbers = width_in * width_out
    if quantize == "8bit":
        return numbers + 4 * width_out
    blocks = -(-numbers // BLOCK)
    return -(-numbers // 2) + blocks + 4 * -(-blocks // BLOCKS) + TABLES
