"""Which file of a folder is which benchmark's, and its rows: `mmlu_57x20.jsonl` holds MMLU's items,
`mmlu_shots_57x5.jsonl` its shots."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from fedsdr.data.files import read_rows
from fedsdr.data.row import Row, kind, quoted
from fedsdr.errors import DataError, nearest


def item_rows(folder: Path, task: str, columns: Sequence[str]) -> tuple[Row, ...]:
    return _rows(_the_file(folder, task, shots=False), columns)


def shot_rows(folder: Path, task: str, columns: Sequence[str]) -> tuple[Row, ...]:
    return _rows(_the_file(folder, task, shots=True), columns)


def texts(row: Row, column: str, least: int, most: int) -> list[str]:
    """A list of so many texts, which may be empty ones."""
    value = row.values.get(column)
    if not isinstance(value, list):
        raise row.error(f"must be a list of texts, not {kind(value)}", column)
    items = [row.checked(v, column, blank=True) for v in cast("list[object]", value)]
    if not least <= len(items) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise row.error(f"must hold {wanted} texts, not {len(items)}", column)
    return items


def letter(row: Row, column: str, options: int) -> str:
    value = row.text(column)
    if value not in list("ABCD"[:options]):
        raise row.error(f"must be one letter from A to {'ABCD'[options - 1]}", column)
    return value


def _the_file(folder: Path, task: str, shots: bool) -> Path:
    if not os.path.isdir(folder):
        raise DataError(
            f"{folder}: there is no such folder; --data names the one with the tasks' files"
        )
    stem = f"{task}_shots" if shots else task
    there = sorted(path.name for path in folder.glob("*.jsonl"))
    mine = [n for n in there if n == f"{stem}.jsonl" or n.startswith(f"{stem}_")]
    if not shots:
        mine = [n for n in mine if not n.startswith(f"{task}_shots")]
    if len(mine) == 1:
        return folder / mine[0]
    what = f"{task}'s {'shots' if shots else 'items'}"
    wanted = f"{stem}.jsonl or {stem}_….jsonl"
    if mine:
        raise DataError(f"{folder}: several files could be {what}: {', '.join(mine)}; leave one")
    raise DataError(f"{folder}: there is no file of {what} ({wanted}).{nearest(stem, there)}")


def _rows(path: Path, columns: Sequence[str]) -> tuple[Row, ...]:
    rows = read_rows(path)
    seen: dict[str, int] = {}
    for row in rows:
        for column in columns:
            if column not in row.values:
                there = quoted(row.values)
                raise row.error(f"is missing; the columns there are {there}", column)
        first = seen.setdefault(row.text(columns[0]), row.number)
        if first != row.number:
            raise row.error(f"occurs in line {first} already", columns[0])
    return rows
