"""Which examples a client sees in which step, and K clients' rows as one right-padded block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.data.render import Rendered
from fedsdr.errors import DataError
from fedsdr.tensors import generator


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of K clients, client by client, equally many each; an empty row has no weight."""

    ids: Tensor  # [K * rows, T]
    weights: Tensor  # [K * rows, T], for the prediction of ids at the same place
    lengths: Tensor  # [K * rows]
    clients: int


def draw_steps(examples: int, batch: int, steps: int, *seed: str | int) -> list[list[int]]:
    """The example numbers of every step: epoch after epoch, each a new permutation."""
    if examples < 1 or batch < 1:  # a permutation of nothing adds no step, ever
        raise DataError(f"there are no steps of {batch} out of {examples} rows")
    random, drawn = generator(*seed), list[list[int]]()
    while len(drawn) < steps:
        order = torch.randperm(examples, generator=random).tolist()
        drawn += [order[i : i + batch] for i in range(0, examples, batch)]
    return drawn[:steps]


def make_block(rows: Sequence[Sequence[Rendered]], pad: int, device: torch.device) -> Block:
    """`rows[k]` are client k's; shorter lists are filled with empty rows."""
    per_client = max(map(len, rows))
    width = max((len(r.ids) for client_rows in rows for r in client_rows), default=2)
    ids = torch.full((len(rows) * per_client, width), pad, dtype=torch.long)
    weights = torch.zeros(ids.shape, dtype=torch.float64)
    lengths = torch.zeros(len(ids), dtype=torch.long)
    for k, client_rows in enumerate(rows):
        for j, row in enumerate(client_rows, start=k * per_client):
            ids[j, : len(row.ids)] = torch.tensor(row.ids)
            weights[j, : len(row.ids)] = torch.tensor(row.weights, dtype=torch.float64)
            lengths[j] = len(row.ids)
    return Block(ids.to(device), weights.to(device), lengths.to(device), len(rows))
