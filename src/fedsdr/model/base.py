"""The frozen base: any Hugging Face causal LM, loaded once per process (model/loading.py).

`digest` identifies base, tokenizer and chat template together; it travels with every update, so
that adapters of different bases never mix.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from fedsdr.errors import ModelError
from fedsdr.model.examine import examine
from fedsdr.model.flat import flat_pass, runs_flat
from fedsdr.model.head import Head, Outputs
from fedsdr.model.speech import DATED, NO_TEMPLATE, find_speech, named_template

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()

TrainOn = Literal["last", "all"]  # answers of the assistant in a conversation


@dataclass(frozen=True, slots=True, kw_only=True)
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
    rigid: frozenset[str] = frozenset()  # linear layers that a LoRA layer cannot stand in for
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

    def encode_whole(self, text: str) -> list[int]:
        """Raw text as tokens, with what the tokenizer puts around a text of its own accord."""
        return find_speech(self.tokenizer, self.template).encode_whole(text)

    @property
    def stops(self) -> frozenset[int]:
        """The tokens that end an answer: eos, what the template ends a turn with, and what the
        model's own configuration names (if it is such a token: some name another tokenizer's)."""
        named = set[int]()
        for settings in (self.net.config, getattr(self.net, "generation_config", None)):
            ids: Any = getattr(settings, "eos_token_id", None)
            named |= set(cast("list[int]", ids)) if isinstance(ids, list) else {cast(int, ids)}
        added = named & set(self.tokenizer.added_tokens_decoder)
        return find_speech(self.tokenizer, self.template).ends | added | {self.eos}

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
            outputs = Outputs(None, None, out.logits[chosen[:, columns]])
        else:
            out = self.net.base_model(**asked)
            outputs = Outputs(out.last_hidden_state[:, :-1][chosen], self.head)
        states = tuple(h[:, :-1][chosen] for h in out.hidden_states[1:]) if hidden else ()
        return outputs, states

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


def with_template(base: BaseModel, choice: str, train_on: TrainOn = "last") -> BaseModel:
    """`auto` keeps the tokenizer's own chat template; any other choice names one."""
    base = replace(base, train_on=train_on)
    if choice == "auto":
        try:
            notes = examine(base.tokenizer, base.template)
        except ModelError as error:
            raise ModelError(f"{base.path}: {error}") from None
        return replace(base, notes=(*base.notes, *notes))
    template = named_template(base.tokenizer, choice)
    notes = tuple(note for note in base.notes if note not in (NO_TEMPLATE, DATED))
    digest = base.digest
    if template != base.template:  # the tokenizer's own is in the folder's digest
        digest = hashlib.sha256(f"{digest}\n{template}".encode()).hexdigest()
    return replace(base, template=template, notes=notes, digest=digest)


def linear_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by name: nn.Linear, and GPT-2's transposed Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return {n: m for n, m in net.named_modules() if isinstance(m, (nn.Linear, Conv1D))}


def count_parameters(net: nn.Module) -> int:
    """Those of a quantised layer lie packed, several in one number: there its widths count."""
    layers = linear_layers(net).values()
    widths = {id(m.get_parameter("weight")): math.prod(in_out(m)) for m in layers}
    return sum(widths.get(id(p), p.numel()) for p in net.parameters())


def held_bytes(net: nn.Module) -> int:
    """Weights, buffers, and the constants that bitsandbytes keeps beside a quantised weight, which
    are neither."""
    constants = dict[int, int]()  # by address: some layers share theirs
    for module in net.modules():
        state: Any = getattr(getattr(module, "weight", None), "quant_state", None)  # 4-bit
        kept = [getattr(getattr(module, "state", None), "SCB", None)]  # 8-bit
        while state is not None:
            kept += [state.absmax, state.code, state.offset]
            state = state.state2
        constants |= {t.data_ptr(): t.nbytes for t in kept if isinstance(t, Tensor)}
    return sum(t.nbytes for t in (*net.parameters(), *net.buffers())) + sum(constants.values())


def in_out(layer: nn.Module) -> tuple[int, int]:
    """A linear layer's widths."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    width_in, width_out = layer.get_parameter("weight").shape  # Conv1D keeps its weight transposed
    return width_in, width_out
