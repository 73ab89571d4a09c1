"""A base from its folder or the hub: what is checked before it is believed, and how it is frozen.

Only safetensors weights are read (sealed.py says what else), and what a stranger's files make the
libraries do is done in a fork first (rehearsal.py); code from the folder runs only for a model that
the user trusts by name.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from fedsdr.errors import ModelError
from fedsdr.model.base import BaseModel
from fedsdr.model.head import find_head
from fedsdr.model.paper import rehearse_model
from fedsdr.model.rehearsal import in_words, is_damage
from fedsdr.model.sealed import Sealed, find_model, sealed
from fedsdr.model.speech import own_template
from fedsdr.model.tokenizer import check_vocabulary, read_tokenizer
from fedsdr.model.trial import rigid_layers

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Quantized = Literal["8bit", "4bit"]
QUANTIZED = "quantization_config"
QUANTIZING = ("bitsandbytes", "accelerate")


def load_base(
    path: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    quantize: Quantized | None = None,
    trusted: bool = False,
) -> BaseModel:
    """Load a model (a folder, or a hub's owner/name), frozen and in evaluation mode. `trusted` runs
    the Python code that comes with it, which can do anything."""
    _check_device(dtype, device, quantize)
    folder = find_model(str(path), revision, trusted)
    common: dict[str, Any] = {"trust_remote_code": trusted, "local_files_only": True}
    read = partial(read_tokenizer, folder, **common)
    placed: dict[str, Any] = {}
    if quantize is not None:
        placed = {"quantization_config": _quantized(quantize, dtype), "device_map": {"": device}}
    if dtype == "float64":
        placed["experts_implementation"] = "eager"  # the kernel for experts is for narrower ones
    try:
        with sealed(folder, code=trusted) as model, reading(model, path, trusted):
            if not trusted:
                rehearse_model(model, AutoModelForCausalLM, read)
            config = AutoConfig.from_pretrained(model.folder, **common)
            tokenizer = read(model.folder)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                model.folder,
                output_loading_info=True,
                config=config,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told below, with their names
                **placed,
                **common,
            )
            net, report = loaded
            if quantize is None:
                net = net.to(device)
            call_it(net, folder)
            _refuse_others(folder, report)
            if quantize is None and QUANTIZED in model.config and not hasattr(net, "hf_quantizer"):
                raise ModelError(
                    f"{folder}/config.json: {QUANTIZED} is of no kind that is known here, so the "
                    "weights would be read as what they are not; take the model unquantised"
                )
            check_vocabulary(folder, tokenizer, net)
            net.requires_grad_(False).eval()
            if quantize is not None:
                _keep_gradients(net)
            if dtype == "float64":
                keep_norms_wide(net)
            template, notes = own_template(tokenizer)
            rigid, head = rigid_layers(net), find_head(net)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{folder}: does not fit on {device} in {dtype}; try model.dtype: bfloat16, or "
            "model.quantize: 4bit"
        ) from error
    return BaseModel(
        net=net,
        tokenizer=tokenizer,
        digest=model.digest,
        path=folder,
        template=template,
        notes=notes,
        head=head,
        precision="+".join(filter(None, (dtype, quantize))),
        rigid=rigid,
    )


def _refuse_others(folder: Path, report: Mapping[str, Any]) -> None:
    """Weights of other shapes than config.json asks for, or none: transformers would fill them with
    random numbers and only log it."""
    if wrong := sorted(report["mismatched_keys"]):
        name, there, asked = wrong[0]
        raise ModelError(
            f"{folder}: {len(wrong)} of its weights have other shapes than its config.json asks "
            f"for: {name!r} is {list(there)} instead of {list(asked)}; take both from one model"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{folder}: {len(missing)} tensors of its config.json are not in its weights, "
            f"such as {missing[0]!r}"
        )


@contextmanager
def reading(model: Sealed, path: str | Path, trusted: bool) -> Generator[None]:
    """What is wrong with a model folder, in a sentence that names it."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except BaseException as error:
        if not is_damage(error):
            raise
        folder = model.called
        message = in_words(error).replace(str(model.folder), str(folder))
        if model.config.get("auto_map") and not trusted:
            message = (
                "it comes with Python code of its own, which can do anything on this machine; if "
                f"you trust it, say so by name: fedsdr --trust-remote-code {path} ..."
            )
        raise ModelError(f"{folder}: cannot be loaded: {message}") from error


def call_it(net: Any, folder: Path) -> None:
    """By its own name, not by that of the place that it was read from."""
    net.config._name_or_path = net.name_or_path = str(folder)


def _check_device(dtype: str, device: str, quantize: Quantized | None) -> None:
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ModelError(
                f"device {device!r} asked for, but no GPU is visible; set model.device: cpu"
            )
        if (number := torch.device(device).index or 0) >= torch.cuda.device_count():
            raise ModelError(
                f"model.device: there is no GPU {number}, only {torch.cuda.device_count()}"
            )
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise ModelError(
                "model.dtype: this GPU does not compute in bfloat16; take float16 or float32"
            )
    for package in QUANTIZING if quantize is not None else ():
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"model.quantize: {quantize} needs {package}: pip install 'fedsdr[quantized]'"
            )
        # It warns on every start of kernels that it could load and does without.
        logging.getLogger(package).setLevel(logging.ERROR)


def _keep_gradients(net: nn.Module) -> None:
    """On a CPU, bitsandbytes repacks a 4-bit layer that is not in training for a kernel that
    gradients cannot pass; these layers have nothing else that depends on it."""
    for module in net.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt"):
            module.training = True


def _quantized(quantize: Quantized, dtype: str) -> BitsAndBytesConfig:
    """QLoRA's settings (Dettmers et al. 2023): NF4, with its constants quantised too."""
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )


def keep_norms_wide(net: nn.Module) -> None:
    """transformers' RMSNorms compute in fp32 whatever the model's dtype: in an fp64 model, a
    difference of 1e-16 before one can come out as 1e-8. Here fp64 is fp64 throughout."""
    for module in net.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_wide_norm, module)


def _wide_norm(self: Any, x: Tensor) -> Tensor:
    return self.weight * (
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
    )
