"""Rows of unlike lengths in blocks of about one length, so that attention pads little.

Padded to the longest row of all clients, one long row makes all the others pay: attention costs the
square of the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows this much shorter than the longest begin a new block, where it saves so many scores.
SHORTER, WORTH = 0.8, 1 << 17
Attention = Callable[["Block", Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that attend side by side."""

    rows: int
    width: int
    slots: Tensor  # where each of its tokens stands in [rows, width]
    tokens: Tensor | None = None  # which of all tokens these are; None: all, in order

    def seen(self, window: int | None) -> Tensor:
        """[width, width]: which positions each position of a row attends to."""
        at = torch.arange(self.width, device=self.slots.device)
        behind = at[:, None] - at
        return (behind >= 0) & (behind < (window or self.width))

    def pad(self, x: Tensor) -> Tensor:
        """[all tokens, heads, d] -> [rows, heads, width, d]"""
        chosen = x if self.tokens is None else x.index_select(0, self.tokens)
        wide = x.new_zeros(self.rows * self.width, *x.shape[1:]).index_copy(0, self.slots, chosen)
        return wide.view(self.rows, self.width, *x.shape[1:]).transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """[rows, heads, width, d] -> [own tokens, heads, d]"""
        return x.transpose(1, 2).flatten(0, 1)[self.slots]


@dataclass(frozen=True, slots=True)
class Blocks:
    parts: tuple[Block, ...]
    order: Tensor | None  # where, of the blocks' tokens one behind the other, each token stands

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attention` block by block, over all tokens [N, heads, d]."""
        outputs = [b.unpad(attention(b, b.pad(q), b.pad(k), b.pad(v))) for b in self.parts]
        return outputs[0] if self.order is None else torch.cat(outputs).index_select(0, self.order)


def make_blocks(lengths: Sequence[int], width: int, slots: Tensor) -> Blocks:
    """For rows that stand one behind the other; `slots`: where their tokens stand in [rows,
    width]."""
    groups = list(_groups(lengths))
    if len(groups) <= 1:
        return Blocks((Block(len(lengths), width, slots),), None)
    device, sizes = slots.device, torch.tensor(lengths, device=slots.device)
    starts = sizes.cumsum(0) - sizes
    parts = list[Block]()
    for rows in groups:
        longest, index = max(lengths[row] for row in rows), torch.tensor(rows, device=device)
        columns = torch.arange(longest, device=device)
        real = columns < sizes[index, None]
        tokens = (starts[index, None] + columns)[real]
        parts.append(Block(len(rows), longest, torch.nonzero(real.view(-1))[:, 0], tokens))
    return Blocks(
        tuple(parts), torch.cat([b.tokens for b in parts if b.tokens is not None]).argsort()
    )


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Which rows stand together, the longest first; each group in the order that rows have."""
    ranked = sorted((row for row, n in enumerate(lengths) if n), key=lambda row: -lengths[row])
    group = list[int]()
    for place, row in enumerate(ranked):
        width = lengths[group[0]] if group else lengths[row]
        saved = (len(ranked) - place) * (width**2 - lengths[row] ** 2)
        if lengths[row] <= SHORTER * width and saved >= WORTH:
            yield sorted(group)
            group = []
        group.append(row)
    yield sorted(group)
