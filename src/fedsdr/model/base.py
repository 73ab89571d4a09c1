"""The frozen base: any Hugging Face causal LM from a folder, loaded once per process.

Only safetensors weights are read; code from the folder runs only for a model that the user trusts
by name. `digest` identifies base
and tokenizer together; it travels with every update, so that adapters of different bases never mix.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any, Literal, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from fedsdr.errors import ModelError
from fedsdr.model.flat import flat_pass, runs_flat
from fedsdr.model.head import Head, Outputs, find_head
from fedsdr.model.source import find_model, needs_code
from fedsdr.model.speech import DATED, NO_TEMPLATE, find_speech, named_template, own_template

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()

DAMAGE = (SafetensorError, StrictDataclassError)  # of weights, of config.json
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Quantized = Literal["8bit", "4bit"]
DECISIVE = (
    "*.safetensors",
    "config.json",
    "token*.json",
    "chat_template*",
    "*.model",
    "vocab.json",
    "merges.txt",
    "*.py",
)

TrainOn = Literal["last", "all"]  # answers of the assistant in a conversation


@dataclass(frozen=True, slots=True)
class BaseModel:
    net: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    digest: str
    path: Path
    template: str
    notes: tuple[str, ...] = ()
    head: Head | None = None  # None: of a kind that only the model itself knows
    packing: bool = True
    train_on: TrainOn = "last"
    precision: str = "float32"  # dtype, and how the base is quantised
    checkpointing: bool = False
    saving: Callable[[], AbstractContextManager[None]] = nullcontext  # activations, in training

    @property
    def packs(self) -> bool:
        """Whether rows stand one behind the other, without padding."""
        return self.packing and runs_flat(self.net)

    @property
    def pad(self) -> int:
        """Padding stands to the right of causal text and is never a label: any id does."""
        pad = self.tokenizer.pad_token_id
        return cast(int, pad if pad is not None else self.tokenizer.eos_token_id)

    @property
    def eos(self) -> int:
        return cast(int, self.tokenizer.eos_token_id)

    def chat(self, messages: Sequence[dict[str, str]], opened: bool) -> str:
        """The conversation as text for `encode`, by the chat template."""
        return find_speech(self.tokenizer, self.template).chat(messages, opened)

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """Text as tokens; `continued`: other text stands before it."""
        return find_speech(self.tokenizer, self.template).encode(text, continued)

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer: eos, what the template ends a turn with, and what the
        model's own configuration names (if it is such a token: some name another tokenizer's)."""
        named = set[int]()
        for settings in (self.net.config, getattr(self.net, "generation_config", None)):
            ids: Any = getattr(settings, "eos_token_id", None)
            named |= set(cast("list[int]", ids)) if isinstance(ids, list) else {cast(int, ids)}
        own = named & set(self.tokenizer.added_tokens_decoder)
        return find_speech(self.tokenizer, self.template).ends | own | {self.eos}

    @property
    def dtype(self) -> torch.dtype:
        return self.net.dtype

    @property
    def max_length(self) -> int:
        return int(getattr(self.net.config, "max_position_embeddings", 0) or 1 << 30)

    def logits(self, ids: Tensor, keep: Tensor | int = 0) -> Tensor:
        """Next-token logits of right-padded rows, at the columns `keep` (0: all)."""
        return self.net(input_ids=ids, use_cache=False, logits_to_keep=keep).logits

    def predictions(
        self, ids: Tensor, lengths: Tensor, chosen: Tensor, hidden: bool = False
    ) -> tuple[Outputs, tuple[Tensor, ...]]:
        """What predicts the tokens `ids[:, 1:][chosen]` of right-padded rows, n of them; and where
        asked for, every layer's states at the same places, [n, d] each."""
        with self.saving():
            if self.packs:
                return flat_pass(self.net, self.head, ids, lengths, chosen, hidden)
            return self._padded(ids, chosen, hidden)

    def _padded(
        self, ids: Tensor, chosen: Tensor, hidden: bool
    ) -> tuple[Outputs, tuple[Tensor, ...]]:
        asked = {"input_ids": ids, "use_cache": False, "output_hidden_states": hidden}
        if self.head is None:
            columns = torch.nonzero(chosen.any(dim=0))[:, 0]
            out: Any = self.net(**asked, logits_to_keep=columns)
            found = Outputs(None, None, out.logits[chosen[:, columns]])
        else:
            out = self.net.base_model(**asked)
            found = Outputs(out.last_hidden_state[:, :-1][chosen], self.head)
        states = tuple(h[:, :-1][chosen] for h in out.hidden_states[1:]) if hidden else ()
        return found, states

    @torch.no_grad()
    def last_states(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """[rows, d]: the last layer's state at each row's last token."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max()) + 1), self.pad, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        chosen = torch.arange(ids.shape[1] - 1) == (lengths - 1)[:, None]
        lengths, device = lengths + 1, self.net.device
        return self.predictions(ids.to(device), lengths.to(device), chosen.to(device), True)[1][-1]

    def generation(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: object | None
    ) -> tuple[Tensor, object]:
        """One step of generation over left-padded rows: the last column's logits, and the cache."""
        out = self.net(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cast(Any, cache),
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1], out.past_key_values


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
    placed: dict[str, Any] = {}
    if quantize is not None:
        placed = {"quantization_config": _quantized(quantize, dtype), "device_map": {"": device}}
    try:
        with reading(folder, path, trusted):
            _check_weights(folder)
            config = AutoConfig.from_pretrained(folder, **common)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                output_loading_info=True,
                config=config,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                **placed,
                **common,
            )
            net, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **common)
            if quantize is None:
                net = net.to(device)
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{folder}: does not fit on {device} in {dtype}; try model.dtype: bfloat16, or "
            "model.quantize: 4bit"
        ) from error
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers and only log it.
        raise ModelError(
            f"{folder}: {len(missing)} tensors of its config.json are not in its weights, "
            f"such as {missing[0]!r}"
        )
    check_tokenizer(folder, tokenizer, net)
    net.requires_grad_(False).eval()
    if quantize is not None:
        _keep_gradients(net)
    if dtype == "float64":
        keep_norms_wide(net)
    template, notes = own_template(tokenizer)
    digest, precision = folder_digest(folder), "+".join(filter(None, (dtype, quantize)))
    head = find_head(net)
    return BaseModel(net, tokenizer, digest, folder, template, notes, head, precision=precision)


@contextmanager
def reading(folder: Path, path: str | Path, trusted: bool) -> Generator[None]:
    """What is wrong with a model folder, in a sentence that names it."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json, so this is not a Hugging Face model folder")
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, *DAMAGE) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        if needs_code(folder) and not trusted:
            told = (
                "it comes with Python code of its own, which can do anything on this machine; if "
                f"you trust it, say so by name: fedsdr --trust-remote-code {path} ..."
            )
        raise ModelError(f"{folder}: cannot be loaded: {told[:300]}") from error


def _check_weights(folder: Path) -> None:
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: no *.safetensors weights; pickled weights (.bin, .pt) are never loaded, "
            "convert them with `save_pretrained(..., safe_serialization=True)`"
        )


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast, net: PreTrainedModel) -> None:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: the tokenizer has no end-of-text token (eos_token)")
    rows = net.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's embedding only "
            f"{rows}"
        )


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
    if quantize is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantize: {quantize} needs bitsandbytes: pip install 'fedsdr[quantized]'"
        )


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


def with_template(base: BaseModel, choice: str, train_on: TrainOn = "last") -> BaseModel:
    """`auto` keeps the tokenizer's own chat template; any other choice names one."""
    base = replace(base, train_on=train_on)
    if choice == "auto":
        return base
    notes = tuple(note for note in base.notes if note not in (NO_TEMPLATE, DATED))
    return replace(base, template=named_template(base.tokenizer, choice), notes=notes)


def folder_digest(folder: Path) -> str:
    """sha256 over the files that decide what the model computes."""
    sha = hashlib.sha256()
    names = sorted(path for pattern in DECISIVE for path in folder.glob(pattern))
    for name in names:
        sha.update(name.name.encode() + b"\0")
        with name.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def linear_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by name: nn.Linear, and GPT-2's transposed Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return {n: m for n, m in net.named_modules() if isinstance(m, (nn.Linear, Conv1D))}


def count_parameters(net: nn.Module) -> int:
    """Those of a quantised layer lie packed, several in one number: there its widths count."""
    layers = linear_layers(net).values()
    widths = {id(m.get_parameter("weight")): math.prod(in_out(m)) for m in layers}
    return sum(widths.get(id(p), p.numel()) for p in net.parameters())


def in_out(layer: nn.Module) -> tuple[int, int]:
    """A linear layer's widths."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    width_in, width_out = layer.get_parameter("weight").shape  # Conv1D keeps its weight transposed
    return width_in, width_out
