"""Figures between clients: square matrices, rounded for a file; what is undefined is None."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Matrix = list[list[float | None]]
DIGITS = 6
COLUMNS = 1 << 20  # of vectors, that are in fp64 at once


def rounded(value: float) -> float | None:
    """For a JSON file, which knows no NaN; −0 becomes 0."""
    return round(value, DIGITS) + 0.0 if math.isfinite(value) else None


def as_matrix(values: Tensor) -> Matrix:
    return [[rounded(v) for v in row] for row in values.tolist()]


def cosines(vectors: Tensor) -> Tensor:
    """[K, K] of the rows of [K, n]; NaN where a row is zero."""
    inner = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for part in vectors.split(COLUMNS, dim=1):
        inner += part.double() @ part.double().T
    return normalised(inner)


def normalised(inner: Tensor) -> Tensor:
    """Inner products as cosines: ⟨i, j⟩ / (‖i‖ ‖j‖)."""
    norms = inner.diagonal().sqrt()
    return (inner / norms / norms[:, None]).clamp(-1.0, 1.0)


def off_diagonal(matrix: Sequence[Sequence[float | None]]) -> list[float]:
    """The defined figures of every ordered pair of two."""
    return [
        v for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j and v is not None
    ]


def mean(values: Iterable[float | None]) -> float | None:
    """Of the defined ones; None where there is none."""
    defined = [v for v in values if v is not None]
    return rounded(math.fsum(defined) / len(defined)) if defined else None
