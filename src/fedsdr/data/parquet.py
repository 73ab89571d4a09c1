"""Parquet files -> rows. Only columns that text, labels or turns can come from are read."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsdr.data.row import Row, Unread, quoted
from fedsdr.data.text import (
    LARGEST_FILE,
    LONGEST_RECORD,
    MOST_ROWS,
    MOST_VALUES,
    opened,
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
