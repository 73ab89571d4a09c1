"""What makes drafts: the model that is loaded here, or (`remote.py`) an endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedsdr.data.render import render_prompt
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.generate import Progress, Sampling, generate, no_progress
from fedsdr.distill.selection import Draft
from fedsdr.errors import DataError, ModelError
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.tensors import within_memory
from fedsdr.types import Example

WINDOW = 8  # batches that are drawn together, and stored together
Less = Callable[[int], None]  # hears how many rows are written at a time from now on


def as_many(batch: int) -> None:
    """Nobody keeps it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One draft to be made: the response that `prompt` asks for, to rewrite `example`'s own."""

    key: str
    seed: int
    example: Example
    prompt: Example


class Engine(Protocol):
    @property
    def address(self) -> Sequence[str]:
        """What of the engine decides a draft's text: part of the draft's key."""
        ...

    @property
    def seeding(self) -> Sequence[str]:
        """What of it decides a draft's randomness."""
        ...

    def write(self, asked: Sequence[Asked], drafts: Drafts, progress: Progress) -> None:
        """Make the drafts that are not there yet; `progress` hears of each."""
        ...


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who rewrites: the base, or the base wearing the global branches (`flats[branch]` is [1,
    P])."""

    digest: str = "base"
    flats: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """The base, on this machine. `wear`: with the teacher's branches on."""

    base: BaseModel
    sampling: Sampling
    batch: int
    teacher: str = Teacher().digest
    wear: Callable[[], AbstractContextManager[None]] = nullcontext
    less: Less = as_many  # where memory ran out

    @property
    def address(self) -> Sequence[str]:
        return self._told(self.teacher)

    @property
    def seeding(self) -> Sequence[str]:
        """Whoever the teacher is: two that differ by rounding (K = 1 and K = 8, say) rewrite
        alike."""
        return self._told(Teacher().digest)

    def _told(self, teacher: str) -> list[str]:
        return [self.base.digest, teacher, f"torch.{self.base.precision}"]

    def write(self, asked: Sequence[Asked], drafts: Drafts, progress: Progress) -> None:
        """Window by window. What is drawn together depends on what is asked, never on what is known
        already: a run that was killed here draws from the same logits, to the last bit."""
        prompts = [render_prompt(self.base, request.prompt) for request in asked]
        for request, prompt in zip(asked, prompts, strict=True):
            if wrong := no_room(self.base, len(prompt), self.sampling.max_new_tokens):
                raise DataError(f"example {request.example.id!r}: {wrong}")
        by_length = sorted(range(len(asked)), key=lambda i: (len(prompts[i]), i))
        at_once = self.batch

        def drawn() -> None:
            self._draw(asked, prompts, by_length, at_once, drafts, progress)

        def fewer() -> None:
            nonlocal at_once
            if at_once == 1:
                raise ModelError(
                    "memory ran out with one row to rewrite; lower rewriting.max_new_tokens, or "
                    "drop the longest rows"
                )
            at_once //= 2
            self.less(at_once)

        within_memory(drawn, fewer)

    def _draw(
        self,
        asked: Sequence[Asked],
        prompts: Sequence[Sequence[int]],
        by_length: Sequence[int],
        batch: int,
        drafts: Drafts,
        progress: Progress,
    ) -> None:
        for start in range(0, len(asked), WINDOW * batch):
            window = by_length[start : start + WINDOW * batch]
            missing = [i for i in window if asked[i].key not in drafts]
            if not missing:
                continue
            all_missing = len(missing) == len(window)
            with self.wear(), torch.no_grad():
                made = generate(
                    self.base,
                    [prompts[i] for i in window],
                    self.sampling,
                    [asked[i].seed for i in window],
                    batch,
                    progress if all_missing else no_progress,
                )
            new_drafts = {
                asked[i].key: Draft(g.text, g.hit_limit)
                for i, g in zip(window, made, strict=True)
                if asked[i].key not in drafts
            }
            drafts.add(new_drafts)
            if not all_missing:
                progress(len(missing))


def no_room(base: BaseModel, prompt: int, new: int) -> str:
    """Why a rewriting prompt of so many tokens leaves no room for the rewrite; nothing if it
    does."""
    if prompt + new <= base.max_length:
        return ""
    if prompt >= base.max_length:
        return f"the rewriting prompt fills the model's {base.max_length} positions; drop the row"
    return (
        f"the rewriting prompt ({prompt} tokens) and rewriting.max_new_tokens ({new}) exceed the "
        f"model's {base.max_length} positions; set it to {base.max_length - prompt} or less, or "
        "drop the row"
    )


def worn_teacher(lora: StackedLora, teacher: Teacher) -> Callable[[], AbstractContextManager[None]]:
    if not teacher.flats:
        return nullcontext
    return lambda: lora.wear(teacher.flats, tuple(teacher.flats))
