"""Files of records -> rows: JSONL, JSON, CSV and Parquet, each row knowing where it stands.

Parquet files -> rows. Only columns that text, labels or turns can come from are read.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from fedsdr.data.row import Row, Unread, kind, quoted
from fedsdr.data.text import (
    HALF_PAIR,
    LARGEST_FILE,
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

AT_ONCE = 64  # rows


def parquet_rows(path: Path, lists: Collection[str] = ()) -> Iterator[Row]:
    """Columns of other types stand as `Unread`; those of lists too, unless `lists` names them."""
    with open_parquet(path) as file:
        columns = file.schema_arrow
        wanted = [field.name for field in columns if _readable(field.type, field.name in lists)]
        rest = {f.name: Unread(_a(f.type)) for f in columns if f.name not in wanted}
        if file.metadata.num_rows * max(1, len(wanted)) > MOST_VALUES // 2:
            raise too_many(path, "cells", MOST_VALUES // 2)
        number, size, at_once = 0, 0, _at_once(file.metadata)
        for batch in file.iter_batches(at_once, columns=wanted, use_threads=False):
            arrays = [(name, batch.column(name)) for name in wanted]
            plain = sum(array.nbytes for _, array in arrays if not hasattr(array, "dictionary"))
            if plain > at_once * LONGEST_RECORD:  # then a row is longer than one may be
                raise _too_long(path, number + 1, number + batch.num_rows)
            cells = {name: _cells(array) for name, array in arrays}
            for i in range(batch.num_rows):
                number += 1
                row = {n: cells[n][i] if n in cells else rest[n] for n in columns.names}
                length = sum(len(value) for value in row.values() if isinstance(value, str))
                size += length
                if length > LONGEST_RECORD:
                    raise _too_long(path, number, number)
                if size > LARGEST_FILE:
                    raise too_large(path)
                yield Row(path, "row", number, row)
        if number != file.metadata.num_rows:
            raise DataError(
                f"{path}: says that it has {file.metadata.num_rows:,} rows, and has {number:,}"
            )


@contextmanager
def open_parquet(path: Path) -> Generator[Any]:
    """The open file, of bounded rows and size; whatever is wrong with it within is said here."""
    try:
        # By name: pyarrow is optional, and has no types to check against.
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            f"{path}: Parquet files need pyarrow: pip install 'fedsdr[parquet]'"
        ) from None
    damage = (arrow.ArrowException, OSError, ValueError, OverflowError, LookupError)
    with opened(path) as handle:
        try:
            file = parquet.ParquetFile(handle, pre_buffer=False)
            names = file.schema_arrow.names
            about = file.metadata
            if len(set(names)) < len(names):
                twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
                raise DataError(f"{path}: column name {quoted(twice)} occurs twice")
            if not 0 <= about.num_rows <= MOST_ROWS:
                raise too_many(path, "rows", MOST_ROWS)
            yield file
        except MemoryError:
            raise DataError(f"{path}: does not fit into memory") from None
        except damage:
            raise DataError(f"{path}: is not a readable Parquet file") from None


def _at_once(about: Any) -> int:
    """So few rows that they fit into memory, were each as long as the longest text there may be: a
    text that stands a thousand times in a file is in it once."""
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    sizes = (g.column(i).total_uncompressed_size for g in groups for i in range(g.num_columns))
    return max(1, min(AT_ONCE, AT_ONCE * LONGEST_RECORD // max((1, *sizes))))


def _readable(kind: Any, listed: bool) -> bool:
    types: Any = import_module("pyarrow.types")
    if types.is_dictionary(kind):
        kind = kind.value_type
    plain = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_null,
    )
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(kind) for test in plain) or (listed and any(test(kind) for test in lists))


def too_large(path: Path) -> DataError:
    size = f"{LARGEST_FILE // 10**9} GB"
    return DataError(f"{path}: expands to more than {size}; divide it into several files")


def _too_long(path: Path, first: int, last: int) -> DataError:
    where = f"row {first}" if first == last else f"one of the rows {first} to {last}"
    most = f"{LONGEST_RECORD // 10**6} MB"
    return DataError(f"{path}, {where}: is longer than the {most} that a record may have")


def _cells(column: Any) -> list[object]:
    arrow: Any = import_module("pyarrow")
    try:
        if not hasattr(column, "dictionary"):
            return column.to_pylist()
        places = column.indices.to_pylist()  # each text is made once, however often it stands here
        texts = {i: column.dictionary[i].as_py() for i in set(places) if i is not None}
        return [None if i is None else texts[i] for i in places]
    except UnicodeDecodeError:
        return [Unread("text", "holds text that is not valid UTF-8")] * len(column)
    except (arrow.ArrowException, ValueError, OverflowError, LookupError):
        return [Unread(_a(column.type))] * len(
            column
        )  # a list of times that Python has none for, say


def _a(kind: Any) -> str:
    """`timestamp[us]` -> "a timestamp[us]", without the whole of a nested type."""
    name = str(kind)
    return f"a {name}" if len(name) <= 40 else f"a {name.partition('<')[0]}"


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
