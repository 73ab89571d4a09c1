"""Batched generation; each row draws from a generator of its own.

A row's randomness is one uniform number per position, from the row's own seed, so that what is
drawn depends neither on its neighbours in the batch nor on how many there are (logits do differ by
rounding with the batch's shape; a draw flips only where it falls within that).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsdr.distill.places import Places, Row, Sampling
from fedsdr.model.base import BaseModel

__all__ = ["Generated", "Progress", "Sampling", "generate", "generate_stacked", "no_progress"]

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Generated:
    raw: str  # what was drawn, white space and all
    tokens: int
    hit_limit: bool

    @property
    def text(self) -> str:
        return self.raw.strip()


def no_progress(done: int) -> None:
    """Nobody watches."""


def generate(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
    batch: int = 128,
    progress: Progress = no_progress,
) -> list[Generated]:
    """One continuation per prompt, in the order given, by the base with whatever single set of
    branches it wears."""
    (answers,) = generate_stacked(
        base, [prompts], sampling, [seeds] if seeds else None, batch, progress
    )
    return answers


def generate_stacked(
    base: BaseModel,
    prompts: Sequence[Sequence[Sequence[int]]],
    sampling: Sampling,
    seeds: Sequence[Sequence[int]] | None = None,
    batch: int = 128,
    progress: Progress = no_progress,
) -> list[list[Generated]]:
    """The same for K clients at once, whose K branches the base wears: `prompts[k]` are client k's.

    Every client has its share of a batch's places. One that it cannot fill holds a filler, whose
    answer is dropped.
    """
    rows = [
        [Row(prompt, seeds[k][i] if seeds else None) for i, prompt in enumerate(client_prompts)]
        for k, client_prompts in enumerate(prompts)
    ]
    waiting = [deque(sorted(client_rows, key=lambda row: len(row.prompt))) for client_rows in rows]
    share = max(1, batch // len(rows))
    Places(base, base.stops, sampling, share, progress).answer(waiting)
    return [[_generated(base, row, sampling) for row in client_rows] for client_rows in rows]


def _generated(base: BaseModel, row: Row, sampling: Sampling) -> Generated:
    raw = str(base.tokenizer.decode(row.drawn, skip_special_tokens=True))
    return Generated(raw, len(row.drawn), len(row.drawn) >= sampling.max_new_tokens)
