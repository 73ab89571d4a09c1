"""The rows of a key-value cache: which of them go on, and which new ones join them.

All rows of a batch end in the same column. So rows of another batch join them by being padded on
the left, where their attention mask is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, cat
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def can_regroup(cache: object) -> bool:
    """Whether all of it is keys and values by column. A recurrent state, say, is not."""
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in known for layer in cast(Any, cache).layers)


def regroup(caches: Sequence[object], index: Tensor, length: int) -> object:
    """The first cache, now with the rows `index` of all caches' rows one after another, each cut or
    padded on the left to `length` columns."""
    first, *_others = layered = [cast(Any, cache).layers for cache in caches]
    for number, layer in enumerate(first):
        kept = length
        if isinstance(layer, DynamicSlidingWindowLayer):
            kept = min(length, layer.sliding_window - 1)
            layer.cumulative_length = length
        same = [layers[number] for layers in layered]
        layer.keys = aligned([part.keys for part in same], index, kept, dim=-2)
        layer.values = aligned([part.values for part in same], index, kept, dim=-2)
    return caches[0]


def aligned(parts: Sequence[Tensor], index: Tensor, length: int, dim: int = -1) -> Tensor:
    """The rows `index` of all parts one after another, cut or padded to `length` before `dim`'s
    first column."""
    # A negative padding cuts.
    padding = [(0,) * 2 * (-1 - dim) + (length - part.shape[dim], 0) for part in parts]
    return cat([pad(p, by) for p, by in zip(parts, padding, strict=True)]).index_select(0, index)
