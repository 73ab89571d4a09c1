"""Files of records -> rows: JSONL, JSON, CSV and Parquet, each row knowing where it stands."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

from fedsdr.data.parquet import parquet_rows
from fedsdr.data.row import Row, kind, quoted
from fedsdr.data.text import (
    HALF_PAIR,
    LONGEST_RECORD,
    MOST_ROWS,
    MOST_VALUES,
    count_values,
    opened,
    parse_json,
    read_lines,
    read_text,
    too_long,
    too_many,
)
from fedsdr.errors import DataError


def _jsonl(path: Path) -> Iterator[Row]:
    # Not splitlines(): a record may hold U+2028 and its like, which JSON does not escape.
    values = 0
    for number, line in read_lines(path):
        if line.strip():
            values += count_values(line)
            if values > MOST_VALUES:
                raise too_many(path, "values", MOST_VALUES)
            value = parse_json(line.removesuffix("\n"), path, number)
            yield _row(path, "line", number, value, HALF_PAIR.search(line) is not None)


def _json(path: Path) -> Iterator[Row]:
    text = read_text(path)
    if count_values(text) > MOST_VALUES:
        raise too_many(path, "values", MOST_VALUES)
    content, halves = parse_json(text, path), HALF_PAIR.search(text) is not None
    del text
    if isinstance(content, dict):
        held = cast("dict[str, object]", content)
        lists: dict[str, object] = {k: v for k, v in held.items() if isinstance(v, list)}
        if len(lists) != 1:
            listed = f"{len(lists)} ({quoted(lists)})" if lists else "none"
            raise DataError(f"{path}: must be a list, or an object with one list; it has {listed}")
        content = next(iter(lists.values()))
    if not isinstance(content, list):
        raise DataError(f"{path}: must be a list of records, not {kind(content)}")
    for number, value in enumerate(cast("list[object]", content), 1):
        yield _row(path, "row", number, value, halves)


def _row(path: Path, unit: Literal["line", "row"], number: int, value: object, halves: bool) -> Row:
    """`halves`: whether the text may hold half a surrogate pair, which no file could be written
    with."""
    if not isinstance(value, dict):
        raise DataError(f"{path}, {unit} {number}: must be an object, not {kind(value)}")
    row = Row(path, unit, number, cast("dict[str, object]", value))
    for column, held in row.values.items() if halves else ():
        try:
            json.dumps([column, held], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise row.error("holds half of a surrogate pair, which is no text", column) from None
    return row


def _csv(path: Path) -> Iterator[Row]:
    header: list[str] | None = None
    line, length, values = 1, 0, 0

    def pieces() -> Iterator[str]:
        """Lines as spreadsheets end them; a record may have many."""
        nonlocal length
        for number, text in read_lines(path):
            for piece in re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text):
                length += len(piece)
                if length > LONGEST_RECORD:
                    raise too_long(path, number)
                yield piece

    reader = csv.reader(pieces(), strict=True)
    with _long_fields():
        try:
            for cells in reader:
                length, values = 0, values + len(cells)
                if values > MOST_VALUES // 2:  # each with its place in a mapping
                    raise too_many(path, "cells", MOST_VALUES // 2)
                if cells and header is None:
                    header = cells
                    if len(set(header)) < len(header):
                        raise DataError(f"{path}, line {line}: a column name occurs twice")
                elif cells and header is not None:
                    if len(cells) != len(header):
                        raise DataError(
                            f"{path}, line {line}: {len(cells)} cells, but the header has "
                            f"{len(header)}"
                        )
                    yield Row(path, "line", line, dict(zip(header, cells, strict=True)))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: not valid CSV: {error}") from None


@contextmanager
def _long_fields() -> Generator[None]:
    """Python's reader has a limit of its own, far below a record's."""
    before = csv.field_size_limit(LONGEST_RECORD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_rows(path: Path, lists: Collection[str] = ()) -> tuple[Row, ...]:
    """All records of a file, whose format its extension says. Of Parquet, columns of lists are read
    where `lists` names them."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        with opened(path):  # what is not there, or no file, is said first
            known = ", ".join(READERS)
        raise DataError(f"{path}: extension {path.suffix!r} is not known; known are {known}")
    rows = list[Row]()
    try:
        for row in read(path, lists):
            rows.append(row)
            if len(rows) > MOST_ROWS:
                raise too_many(path, "rows", MOST_ROWS)
    except MemoryError:
        rows.clear()
        raise DataError(f"{path}: does not fit into memory; divide it into several files") from None
    if not rows:
        raise DataError(f"{path}: has no rows")
    return tuple(rows)


Reader = Callable[[Path, Collection[str]], Iterator[Row]]
READERS: Mapping[str, Reader] = {
    ".jsonl": lambda path, lists: _jsonl(path),
    ".json": lambda path, lists: _json(path),
    ".csv": lambda path, lists: _csv(path),
    ".parquet": parquet_rows,
}
