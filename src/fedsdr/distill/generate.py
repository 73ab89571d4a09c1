"""Batched generation; each row draws from a generator of its own.

A row's randomness is one uniform number per position, from the row's own seed, so that what is
drawn depends neither on its neighbours in the batch nor on how many there are (logits do differ by
rounding with the batch's shape; a draw flips only where it falls within that).

The places of a generating batch: rows that ended give theirs to prompts that wait.

Prompts are padded to the left and taken in order of length. Reading prompts stops all rows for a
moment, so it is done for some places at a time; once no prompt waits, the batch gets smaller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsdr.errors import ModelError
from fedsdr.model.base import BaseModel
from fedsdr.model.checkpointing import aligned, can_regroup, regroup

REFILL = 4  # prompts are read when one place of so many is free
SHRINK = 4  # and fillers dropped when one place of so many holds one, and no prompt waits


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    max_new_tokens: int = 512


@dataclass(slots=True, eq=False)
class Row:
    """One prompt, and what was drawn after it; without a seed, the likeliest tokens."""

    prompt: Sequence[int]
    seed: int | None
    drawn: list[int] = field(default_factory=lambda: list[int]())
    ended: bool = False
    uniforms: list[float] = field(default_factory=lambda: list[float]())

    @property
    def columns(self) -> int:
        """Of the cache; the token drawn last is not in it yet."""
        return len(self.prompt) + len(self.drawn) - 1


FILLER = Row((), None, ended=True)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows client by client, equally many of each."""

    rows: Sequence[Row]
    mask: Tensor  # [rows, columns] of the cache
    cache: object
    tokens: Tensor  # [rows]: drawn last
    positions: Tensor  # [rows]: where these stand


@dataclass(frozen=True, slots=True)
class Places:
    """Every client has `share` of them; `progress` hears how many rows ended."""

    base: BaseModel
    stops: frozenset[int]
    sampling: Sampling
    share: int
    progress: Callable[[int], None]

    @torch.inference_mode()
    def answer(self, waiting: Sequence[deque[Row]]) -> None:
        """Draw after all prompts, `waiting[k]` being those of client k."""
        clients = len(waiting)
        batch: _Batch | None = None
        while True:
            going = _going([batch] if batch else [], clients)
            most = max(map(len, going), default=0)
            width = len(batch.rows) // clients if batch else 0
            free = [
                self.share - len(client_rows) if w else 0
                for client_rows, w in zip(going, waiting, strict=True)
            ]
            if batch is None or not most:
                if not any(waiting):
                    return
                batch = self._read_prompts(_next(waiting, free))
            elif not can_regroup(batch.cache):
                batch = self._read_tokens(batch)
            elif max(free) * REFILL >= self.share:
                batch = _regrouped([batch, self._read_prompts(_next(waiting, free))], clients)
            elif not any(waiting) and (width - most) * SHRINK >= width:
                batch = _regrouped([batch], clients)
            else:
                batch = self._read_tokens(batch)

    def _read_prompts(self, taken: Sequence[Sequence[Row]]) -> _Batch:
        """Start rows: read their prompts, and draw what follows."""
        most = max(map(len, taken))
        rows = [
            row
            for client_rows in taken
            for row in (*client_rows, *[FILLER] * (most - len(client_rows)))
        ]
        shortest = min((row.prompt for row in rows if row.prompt), key=len)
        prompts = [row.prompt or shortest for row in rows]
        width, device = max(map(len, prompts)), self.base.net.device
        ids = torch.full((len(rows), width), self.base.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        mask = mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        logits, cache = self.base.generation(ids.to(device), mask, positions, None)
        for row in rows:
            if row.seed is not None and self.sampling.temperature > 0:
                random = torch.Generator().manual_seed(row.seed)
                row.uniforms = torch.rand(self.sampling.max_new_tokens, generator=random).tolist()
        return _Batch(rows, mask, cache, self._draw(rows, logits), positions[:, -1] + 1)

    def _read_tokens(self, batch: _Batch) -> _Batch:
        """One step of all rows."""
        ids = batch.tokens[:, None]
        mask = torch.cat([batch.mask, torch.ones_like(ids)], dim=1)
        going = torch.tensor([not row.ended for row in batch.rows], device=mask.device)
        logits, cache = self.base.generation(ids, mask, batch.positions[:, None], batch.cache)
        tokens = self._draw(batch.rows, logits)
        # A filler stays where it is: it could go on beyond the last position there is.
        return _Batch(batch.rows, mask, cache, tokens, batch.positions + going)

    def _draw(self, rows: Sequence[Row], logits: Tensor) -> Tensor:
        uniform = None
        if any(row.uniforms for row in rows):
            numbers = [0.0 if row.ended else row.uniforms[len(row.drawn)] for row in rows]
            uniform = torch.tensor(numbers, dtype=torch.float32, device=logits.device)
        self._refuse_nonsense(rows, logits)
        tokens = draw(logits.float(), self.sampling, uniform)
        ended = 0
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if not row.ended:
                stop = token in self.stops
                row.drawn += [] if stop else [token]
                row.ended = stop or len(row.drawn) == self.sampling.max_new_tokens
                ended += row.ended
        if ended:
            self.progress(ended)
        return tokens

    def _refuse_nonsense(self, rows: Sequence[Row], logits: Tensor) -> None:
        """NaN draws no token, and a greedy answer from it would look like one."""
        finite = logits.amax(-1).isfinite().tolist()
        if not all(fine or row.ended for row, fine in zip(rows, finite, strict=True)):
            raise ModelError(
                f"{self.base.path}: its answers are no finite numbers in {self.base.precision}; "
                "set model.dtype to bfloat16 or float32, or the weights are damaged"
            )


def _going(batches: Sequence[_Batch], clients: int) -> list[list[int]]:
    """By client, the rows that have not ended; they are counted through all batches."""
    going: list[list[int]] = [[] for _ in range(clients)]
    first = 0
    for batch in batches:
        width = len(batch.rows) // clients
        for place, row in enumerate(batch.rows):
            if not row.ended:
                going[place // width].append(first + place)
        first += len(batch.rows)
    return going


def _next(waiting: Sequence[deque[Row]], free: Sequence[int]) -> list[list[Row]]:
    return [
        [queue.popleft() for _ in range(min(room, len(queue)))]
        for queue, room in zip(waiting, free, strict=True)
    ]


def _regrouped(batches: Sequence[_Batch], clients: int) -> _Batch:
    """The rows that go on, and as few fillers as clients side by side need."""
    rows = [row for batch in batches for row in batch.rows]
    going = _going(batches, clients)
    most, width = max(map(len, going)), len(batches[0].rows) // clients
    chosen, picks = list[Row](), list[int]()
    for client, client_rows in enumerate(going):
        spare = most - len(client_rows)
        chosen += [*(rows[i] for i in client_rows), *[FILLER] * spare]
        picks += [*client_rows, *[client * width] * spare]
    columns = max(row.columns for row in chosen if row is not FILLER)
    index = torch.tensor(picks, device=batches[0].mask.device)
    return _Batch(
        chosen,
        aligned([batch.mask for batch in batches], index, columns),
        regroup([batch.cache for batch in batches], index, columns),
        torch.cat([batch.tokens for batch in batches])[index],
        torch.cat([batch.positions for batch in batches])[index],
    )


def draw(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
    """Temperature, then the `top_k` likeliest, then the fewest of these that hold `top_p` of the
    mass."""
    if sampling.temperature == 0 or uniform is None:
        return logits.argmax(-1)
    count = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    top, index = (logits / sampling.temperature).topk(count, dim=-1)
    mass = top.softmax(-1)
    before = mass.cumsum(-1) - mass
    mass = torch.where(before < sampling.top_p, mass, 0.0)
    edges = (mass / mass.sum(-1, keepdim=True)).cumsum(-1)
    pick = (edges <= uniform[:, None]).sum(-1).clamp_max((mass > 0).sum(-1) - 1)
    return index.gather(-1, pick[:, None])[:, 0]


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
