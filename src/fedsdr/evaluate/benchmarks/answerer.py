"""Who answers a benchmark's prompts: a model with what it wears, or a script with known answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedsdr.distill.generate import Generated, Sampling, generate
from fedsdr.errors import TaskError
from fedsdr.model.lora import StackedLora
from fedsdr.tensors import within_memory

TOKENS_AT_ONCE = 1 << 15  # of prompts and answers that are generated side by side


class Answerer(Protocol):
    @property
    def positions(self) -> int:
        """How many tokens prompt and answer may have together."""
        ...

    def count(self, text: str) -> int:
        """The tokens of a prompt, with whatever the tokenizer puts in front of it."""
        ...

    def answer(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[str]:
        """Raw continuations, white space and all. Each draws from its own seed."""
        ...


@dataclass(frozen=True, slots=True)
class ModelAnswerer:
    """The base with the branches of one mix ([1, P] each); without any, the base alone."""

    lora: StackedLora
    flats: Mapping[str, Tensor]
    mix: Mapping[str, float]

    @property
    def positions(self) -> int:
        return self.lora.base.max_length

    def count(self, text: str) -> int:
        return len(self._ids(text))

    def answer(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[str]:
        room = self.positions - sampling.max_new_tokens
        # Of a prompt without room, the end counts: there stands what is asked.
        rows = [self._ids(prompt)[-room:] for prompt in prompts]
        at_once = max(1, len(prompts))

        def drawn() -> list[Generated]:
            with torch.no_grad(), self.lora.wear(self.flats, self.mix):
                return generate(self.lora.base, rows, sampling, seeds, batch=at_once)

        def less() -> None:
            nonlocal at_once
            if at_once == 1:
                raise TaskError("memory ran out with one prompt; take a smaller model.dtype")
            at_once //= 2

        return [answer.raw for answer in within_memory(drawn, less)]

    def _ids(self, text: str) -> list[int]:
        # With what the tokenizer adds (Llama's <s>), as InstructEval calls it.
        return self.lora.base.encode_whole(text)
