"""Talking to a run's models side by side: each keeps its own thread, with its own answers in it."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fedsdr.data.render import render_prompt
from fedsdr.distill.generate import Sampling, generate
from fedsdr.errors import DataError, RecipeError, RunError
from fedsdr.jobs.export.chosen import Chosen, Finished
from fedsdr.model.adapters import adapter_spec, load_adapter
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.tensors import derive_seed
from fedsdr.types import Example, Message

BASE = "base"  # the model without any adapter
LONGEST = 512  # tokens of an answer


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    left_out: int  # how many of the oldest turns no longer fitted
    cut: bool  # whether it stopped at the limit on its length


@dataclass(slots=True, kw_only=True)
class Chat:
    lora: StackedLora
    flats: Mapping[str, Tensor]  # model -> its adapter, [1, P]
    seed: int
    temperature: float = 0.0
    system: str = ""
    turns: dict[str, list[Message]] = field(default_factory=lambda: dict[str, list[Message]]())
    asked: int = 0

    @property
    def base(self) -> BaseModel:
        return self.lora.base

    @property
    def models(self) -> list[str]:
        return [BASE, *self.flats]

    def reset(self, system: str | None = None) -> None:
        """Begin anew, under another system line where one is given."""
        self.turns = {}
        self.system = self.system if system is None else system

    def ask(self, text: str) -> Generator[tuple[str, Answer]]:
        """One model's answer after the other."""
        self.asked += 1
        for model in self.models:
            answer = self._answer(model, text)
            yield model, answer

    def _answer(self, model: str, text: str) -> Answer:
        history = self.turns.setdefault(model, [])
        ids, left_out = self._prompt(history, text)
        room = min(LONGEST, self.base.max_length - len(ids))
        sampling = Sampling(temperature=self.temperature, max_new_tokens=room)
        seeds = [derive_seed(self.seed, "chat", self.asked)]  # the same draws for all models
        worn = {model: self.flats[model]} if model in self.flats else {}
        with torch.no_grad(), self.lora.wear(worn, list(worn)):
            (answer,) = generate(self.base, [ids], sampling, seeds)
        history += [Message("user", text), Message("assistant", answer.text)]
        return Answer(answer.text, left_out, answer.hit_limit)

    def _prompt(self, history: list[Message], text: str) -> tuple[list[int], int]:
        """As much of the conversation as leaves room for an answer; how many turns did not."""
        most = self.base.max_length - min(LONGEST, self.base.max_length // 4)
        size = 0
        for left_out in range(0, len(history) + 1, 2):
            example = Example(
                "chat", text, "", system=self.system, history=tuple(history[left_out:])
            )
            ids = render_prompt(self.base, example)
            if (size := len(ids)) <= most:
                return ids, left_out // 2
        raise DataError(
            f"too long: this line alone, with the system line, is {size} tokens; of the model's "
            f"{self.base.max_length} positions {most} are for that, the rest for its answer"
        )


@contextmanager
def open_chat(
    directory: str | Path, client: str | None = None, temperature: float = 0.0
) -> Generator[Chat]:
    """The base, every model that serves all clients, and, where a client is named, its own.

    Args:
        directory: The run's folder.
        client: Whose personal model is meant, where each client has one.
        temperature: 0 takes the likeliest words.
    """
    if not 0 <= temperature < math.inf:  # NaN is neither
        raise RecipeError("--temperature must be 0 or a number above it")
    finished = Finished.open(directory)
    chosen = _models(finished, client)
    base = finished.base()
    specs = {name: adapter_spec(model.folder) for name, model in chosen.items()}
    lora = StackedLora(base, finished.recipe.lora.targets, specs)
    wide = torch.promote_types(base.dtype, torch.float32)
    try:
        flats = {
            name: load_adapter(model.folder, lora, name)[None].to(base.net.device, wide)
            for name, model in chosen.items()
        }
        yield Chat(lora=lora, flats=flats, seed=finished.recipe.seed, temperature=temperature)
    finally:
        lora.remove()


def _models(finished: Finished, client: str | None) -> dict[str, Chosen]:
    mixes = finished.mixes()
    shared = [m for m in mixes if finished.saved(m) and not finished.clients(m)]
    personal = [m for m in mixes if m not in shared] if client is not None else []
    if client is not None and not personal:
        raise RunError(f"{finished.run.root} has no personal models: leave out --client {client}")
    return {m: finished.chosen(m) for m in shared} | {
        m: finished.chosen(m, client) for m in personal
    }
