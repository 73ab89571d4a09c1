"""Packing: rows of different lengths one behind the other, without padding.

Clients' rows differ most in length where federation is hardest: padded to the longest, half of a
block can be padding. Here all rows stand in one sequence [1, N]; positions restart with every row,
the linear layers see no padding, and attention is block-diagonal: each row attends to itself only
(computed on rows padded to about their length, with the model's own window and cap). The
architectures are listed by name, because others bend attention in ways that this would silently
drop; a test compares each listed one with its own logits row by row.

Rows of unlike lengths in blocks of about one length, so that attention pads little.

Padded to the longest row of all clients, one long row makes all the others pay: attention costs the
square of the width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedsdr.model.head import Head, Outputs

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


ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "phi", "phi3",
    "gpt_neox", "gpt2", "opt", "olmo2", "granite", "smollm3",
)  # fmt: skip
NAME = "fedsdr_flat"
MANY = 512


@dataclass(frozen=True, slots=True)
class Rows:
    """Where each of N tokens stands in the padded block [rows, width]."""

    lengths: tuple[int, ...]
    width: int
    slots: Tensor
    positions: Tensor

    blocks: Blocks
    masks: dict[tuple[int, int], Tensor]

    def tokens(self, clients: int) -> list[int]:
        """How many of them each client has."""
        each = len(self.lengths) // clients
        return [sum(self.lengths[i * each : (i + 1) * each]) for i in range(clients)]

    def many(self, clients: int) -> bool:
        """Whether a client's tokens are enough work for a CPU by themselves."""
        return self.slots.device.type == "cpu" and len(self.slots) >= MANY * clients

    def own_columns(self, clients: int, rank: int, dtype: torch.dtype) -> Tensor:
        """[N, clients * rank]: 1 where a column belongs to the token's client. Every client has
        equally many rows, client by client."""
        if (clients, rank) not in self.masks:
            owner = self.slots // self.width // (len(self.lengths) // clients)
            column = torch.arange(clients, device=owner.device).repeat_interleave(rank)
            self.masks[clients, rank] = (owner[:, None] == column).to(dtype)
        return self.masks[clients, rank]


_CURRENT: ContextVar[Rows | None] = ContextVar("rows", default=None)


def current_rows() -> Rows | None:
    """The rows of the forward pass that is running, if it runs flat."""
    return _CURRENT.get()


def runs_flat(net: PreTrainedModel) -> bool:
    """Whether this architecture packs."""
    return net.config.model_type in ARCHITECTURES


def flat_pass(
    net: PreTrainedModel,
    head: Head | None,
    ids: Tensor,
    lengths: Tensor,
    chosen: Tensor,
    hidden: bool = False,
) -> tuple[Outputs, tuple[Tensor, ...]]:
    """What predicts `ids[:, 1:][chosen]`, for right-padded rows of these lengths; and where asked
    for, every layer's states at the same places, [n, d] each."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    real = columns < lengths[:, None]
    slots = torch.nonzero(real.view(-1))[:, 0]
    positions = columns.expand(ids.shape)[real]
    sizes, width = tuple(lengths.tolist()), ids.shape[1]
    rows = Rows(sizes, width, slots, positions, make_blocks(sizes, width, slots), {})
    starts = lengths.cumsum(0) - lengths
    keep = (starts[:, None] + columns[:-1])[chosen]
    with _running(net, rows):
        asked = {
            "input_ids": ids[real][None],
            "position_ids": rows.positions[None],
            "use_cache": False,
            "output_hidden_states": hidden,
        }
        if head is None:
            out: Any = net(**asked, logits_to_keep=keep)
            outputs = Outputs(None, None, out.logits[0])
        else:
            out = net.base_model(**asked)
            outputs = Outputs(out.last_hidden_state[0, keep], head)
    states = tuple(h[0, keep] for h in out.hidden_states[1:]) if hidden else ()
    return outputs, states


def as_packed(net: nn.Module) -> Callable[[], AbstractContextManager[None]]:
    """Later on, the same rows as those packed now, or none."""
    rows = current_rows()
    return nullcontext if rows is None else partial(_running, cast(PreTrainedModel, net), rows)


@contextmanager
def _running(net: PreTrainedModel, rows: Rows) -> Generator[None]:
    config: Any = net.config
    before, token = config._attn_implementation, _CURRENT.set(rows)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _CURRENT.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row: pad, attend, take the padding out again."""
    rows = _CURRENT.get()
    assert rows is not None, "this attention runs inside flat_pass only"

    def attention(block: Block, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if softcap is not None:
            return _capped(q, k, v, block.seen(sliding_window), scaling, softcap)
        near = sliding_window is None or sliding_window >= block.width
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if near else block.seen(sliding_window),
            is_causal=near,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, heads, d]
    return rows.blocks.attend(attention, q, k, v)[None], None


def _capped(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float | None, cap: float
) -> Tensor:
    """Attention with Gemma 2's soft cap on its scores, which no fused kernel of torch's has."""
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / cap) * cap
    scores = scores.masked_fill(~seen, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=wide).to(v.dtype) @ v


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
