"""Figures between clients: square matrices, rounded for a file; what is undefined is None."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Matrix = list[list[float | None]]
DIGITS = 6


def rounded(value: float) -> float | None:
    """For a JSON file, which knows no NaN; −0 becomes 0."""
    return round(value, DIGITS) + 0.0 if math.isfinite(value) else None


def as_matrix(values: Tensor) -> Matrix:
    return [[rounded(v) for v in row] for row in values.tolist()]


def cosines(vectors: Tensor) -> Tensor:
    """[K, K] of the rows of [K, n]; NaN where a row is zero."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    unit = vectors / norms
    return (unit @ unit.T).double().clamp(-1.0, 1.0)


def off_diagonal(matrix: Sequence[Sequence[float | None]]) -> list[float]:
    """The defined figures of every ordered pair of two."""
    return [
        v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j and v is not None
    ]


def mean(values: Iterable[float | None]) -> float | None:
    """Of the defined ones; None where there is none."""
    found = [v for v in values if v is not None]
    return rounded(math.fsum(found) / len(found)) if found else None
