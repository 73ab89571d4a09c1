"""Rewrites that are there already, from files: each row an id and the answer as rewritten."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedsdr.data.files import read_rows
from fedsdr.data.row import Row
from fedsdr.errors import DataError
from fedsdr.evaluate.diagnostics.rewrites import Rewrite
from fedsdr.types import Example

# As the SDFT release names them, and as `fedsdr distill RECIPE` does.
REWRITTEN = ("output_distilled", "response")
ORIGINAL = "output_original"
NO_PAIRS = ("audit.jsonl",)  # what `fedsdr distill` writes beside them


def read_pairs(path: Path) -> Mapping[str, Row]:
    """Row id -> the row, of a file or of every .jsonl file in a folder."""
    files = [path]
    if os.path.isdir(path):
        files = [f for f in sorted(path.glob("*.jsonl")) if f.name not in NO_PAIRS]
        if not files:
            raise DataError(f"{path}: there is no .jsonl file in this folder")
    rows = dict[str, Row]()
    for row in (row for file in files for row in read_rows(file)):
        name = row.label("id")
        if not name:
            raise row.error("is missing; a pair is found by the id of its row", "id")
        if name in rows:
            raise row.error(
                f"has the same id as {rows[name].path}, {rows[name].unit} {rows[name].number}",
                "id",
            )
        _column(row)
        rows[name] = row
    return rows


def paired(
    clients: Mapping[str, Sequence[Example]], pairs: Mapping[str, Row]
) -> dict[str, list[Rewrite]]:
    """Each client's rows that have a pair."""
    owners = dict[str, str]()
    for client, example in (
        (c, e) for c, examples in clients.items() for e in examples if e.id in pairs
    ):
        if owners.setdefault(example.id, client) != client:
            raise pairs[example.id].error(
                f"is the id of a row of client {owners[example.id]!r} and of one of {client!r}; "
                "give the data ids that tell them apart",
                "id",
            )
    rewrites = {
        client: [
            _rewrite(example, pairs[example.id]) for example in examples if example.id in pairs
        ]
        for client, examples in clients.items()
    }
    if not any(rewrites.values()):
        (row, *_) = pairs.values()
        raise DataError(
            f"{row.path}: none of the {len(pairs)} rows has the id of a training row of these "
            "clients, such as "
            f"{next(e.id for examples in clients.values() for e in examples)!r}; "
            "give the data their ids"
        )
    return rewrites


def _rewrite(example: Example, row: Row) -> Rewrite:
    if ORIGINAL in row.values and row.text(ORIGINAL) != example.response:
        raise row.error("is not the answer of the row with this id", ORIGINAL)
    return Rewrite(example, row.text(_column(row)))


def _column(row: Row) -> str:
    for column in REWRITTEN:
        if column in row.values:
            return column
    raise row.error(f"has neither {' nor '.join(map(repr, REWRITTEN))}, so no rewritten answer")
