"""Who answers a benchmark's prompts: a model with what it wears, or a script with known answers.

Answers kept on disk, one JSON line each: scoring again, another way, needs no model.

Every line names the model (digest of base, adapter and how tokens were drawn) and the prompt that
it answers; answers of other models or to other prompts stay in the file and are not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fedsdr.distill.generate import Generated, Sampling, generate
from fedsdr.errors import CorruptArtifact, TaskError
from fedsdr.model.lora import StackedLora
from fedsdr.runs.files import append_row, make_private, read_rows, write_text_atomic
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


FIELDS = {"id": str, "model": str, "prompt": str, "shots": int, "answer": str}


@dataclass(frozen=True, slots=True)
class Answer:
    """`score` is None until it is scored (code that nobody allowed to run)."""

    id: str
    model: str
    prompt: str
    shots: int
    answer: str
    score: float | None = None


@dataclass(frozen=True, slots=True)
class AnswersFile:
    path: Path

    def read(self, model: str) -> dict[tuple[str, str], Answer]:
        """That model's answers, by item and prompt digest; of two to the same, the newer."""
        return {(a.id, a.prompt): a for a in self._all() if a.model == model}

    def models(self) -> set[str]:
        return {answer.model for answer in self._all()}

    def add(self, answer: Answer) -> None:
        make_private(self.path.parent)
        append_row(self.path, asdict(answer))

    def rescored(self, answers: Sequence[Answer]) -> None:
        """Put the new scores in place of the old."""
        kept = {(a.model, a.id, a.prompt): a for a in self._all()}
        new = kept | {(a.model, a.id, a.prompt): a for a in answers}
        if new != kept:
            lines = (json.dumps(asdict(answer)) + "\n" for answer in new.values())
            write_text_atomic(self.path, "".join(lines))

    def _all(self) -> list[Answer]:
        return [self._answer(number, row) for number, row in enumerate(read_rows(self.path), 1)]

    def _answer(self, number: int, row: dict[str, Any]) -> Answer:
        for name, kind in FIELDS.items():
            if not isinstance(row.get(name), kind):
                raise CorruptArtifact(
                    f"{self.path}, line {number}: {name!r} is missing or of the wrong type; remove "
                    "the file and answer again"
                )
        score = row.get("score")
        if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
            raise CorruptArtifact(f"{self.path}, line {number}: 'score' is not a number")
        return Answer(**{name: row[name] for name in FIELDS}, score=score)
