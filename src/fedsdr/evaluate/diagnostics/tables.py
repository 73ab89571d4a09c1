"""A diagnosis as long tables: a row per figure, for whoever counts on with them.

Figures between clients: square matrices, rounded for a file; what is undefined is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsdr.runs.files import make_private, replacing

Columns = dict[str, list[Any]]
MATRICES = (
    "js_divergence",
    "js_divergence_prompts",
    "tfidf_cosine",
    "gradient_cosine",
    "loss_transfer",
    "cka",
)


def tables(diagnosis: Mapping[str, Any]) -> dict[str, Columns]:
    """`pairs`: view, measure, of, on, value. `points`: view, client, x, y. `clients`: view, client,
    measure, value. `audit`: client, rows, measure, value. Those without rows are left out."""
    by_name = {
        "pairs": _pairs(diagnosis),
        "points": _points(diagnosis),
        "clients": _clients(diagnosis),
        "audit": _audit(diagnosis),
    }
    return {name: columns for name, columns in by_name.items() if next(iter(columns.values()))}


def write_tables(folder: Path, diagnosis: Mapping[str, Any]) -> bool:
    """As `folder/<table>.parquet`; False where pyarrow is missing."""
    try:
        # By name: pyarrow is optional, and has no types to check against.
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        return False
    make_private(folder)
    made = tables(diagnosis)
    for old in folder.glob("*.parquet"):  # of a diagnosis before this one
        if old.stem not in made:
            old.unlink()
    for name, columns in made.items():
        with replacing(folder / f"{name}.parquet") as file:
            parquet.write_table(arrow.table(columns), file)
    return True


def _pairs(diagnosis: Mapping[str, Any]) -> Columns:
    ids: list[str] = diagnosis["clients"]
    rows = [
        (view, measure, of, on, value)
        for view, figures in diagnosis["views"].items()
        for measure in MATRICES
        if measure in figures
        for of, row in zip(ids, figures[measure]["matrix"], strict=True)
        for on, value in zip(ids, row, strict=True)
    ]
    return _columns(("view", "measure", "of", "on", "value"), rows)


def _points(diagnosis: Mapping[str, Any]) -> Columns:
    rows = [
        (view, point["client"], point["x"], point["y"])
        for view, figures in diagnosis["views"].items()
        for point in figures.get("pca", {}).get("points", ())
    ]
    return _columns(("view", "client", "x", "y"), rows)


def _clients(diagnosis: Mapping[str, Any]) -> Columns:
    rows = list[tuple[Any, ...]]()
    for view, figures in diagnosis["views"].items():
        for client, spread in figures.get("response_tokens", {}).items():
            rows += [(view, client, f"response_tokens_{p}", v) for p, v in spread.items()]
        for client, value in zip(
            diagnosis["clients"], figures.get("cka", {}).get("to_base", ()), strict=False
        ):
            rows.append((view, client, "cka_to_base", value))
    return _columns(("view", "client", "measure", "value"), rows)


def _audit(diagnosis: Mapping[str, Any]) -> Columns:
    rows = [
        (client, part, measure, value)
        for client, figures in diagnosis.get("audit", {}).items()
        for part in ("all", "changed_rows", "entailment")
        for measure, value in (figures.get(part) or {}).items()
    ]
    return _columns(("client", "rows", "measure", "value"), rows)


def _columns(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Columns:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


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
