"""Batched generation with a key-value cache; each row draws from a generator of its own.

Rows are sorted by length and padded to the left. A row's randomness is one uniform number per
position, from the row's own seed, so that what is drawn depends neither on its neighbours in the
batch nor on how many there are (logits do differ by rounding with the batch's shape; a draw flips
only where it falls within that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.model.base import BaseModel

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    max_new_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Generated:
    text: str
    tokens: int
    hit_limit: bool


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

    Every client fills its share of a batch; one with fewer prompts repeats its last, one with none
    the shortest of all, and the repeats are dropped.
    """
    orders = [sorted(range(len(p)), key=lambda i, p=p: (len(p[i]), i)) for p in prompts]
    found: list[dict[int, Generated]] = [{} for _ in prompts]
    share, longest = max(1, batch // len(prompts)), max(len(p) for p in prompts)
    filler = min((p for own in prompts for p in own), key=len, default=())
    for start in range(0, longest, share):
        window = range(start, min(start + share, longest))
        picks = [
            (k, o[min(j, len(o) - 1)] if o else None) for k, o in enumerate(orders) for j in window
        ]
        outs = _generate_batch(
            base,
            [filler if i is None else prompts[k][i] for k, i in picks],
            sampling,
            [0 if i is None else seeds[k][i] for k, i in picks] if seeds else None,
        )
        before = sum(map(len, found))
        for (k, i), out in zip(picks, outs, strict=True):
            if i is None:
                continue
            text = str(base.tokenizer.decode(out, skip_special_tokens=True)).strip()
            found[k][i] = Generated(text, len(out), len(out) >= sampling.max_new_tokens)
        progress(sum(map(len, found)) - before)
    return [[answers[i] for i in range(len(answers))] for answers in found]


@torch.inference_mode()
def _generate_batch(
    base: BaseModel, prompts: list[Sequence[int]], sampling: Sampling, seeds: list[int] | None
) -> list[list[int]]:
    device = base.net.device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), base.pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    uniforms = _uniforms(seeds, sampling.max_new_tokens).to(device) if seeds is not None else None
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
    drawn: list[Tensor] = []
    cache: object | None = None
    for step in range(sampling.max_new_tokens):
        logits, cache = base.generation(ids, mask, positions, cache)
        token = _draw(logits.float(), sampling, uniforms[:, step] if uniforms is not None else None)
        token = torch.where(open_rows, token, base.eos)
        drawn.append(token)
        open_rows = open_rows & (token != base.eos)
        if not open_rows.any():
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    rows = torch.stack(drawn, dim=1).tolist() if drawn else [[] for _ in prompts]
    return [row[: row.index(base.eos)] if base.eos in row else row for row in rows]


def _uniforms(seeds: Sequence[int], count: int) -> Tensor:
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


def _draw(logits: Tensor, sampling: Sampling, uniform: Tensor | None) -> Tensor:
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
