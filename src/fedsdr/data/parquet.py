"""Parquet files -> rows. Only columns that text, labels or turns can come from are read."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fedsdr.data.row import Row, Unread, quoted
from fedsdr.data.text import LARGEST_FILE, MOST_ROWS, MOST_VALUES, opened, too_many
from fedsdr.errors import DataError

AT_ONCE = 64  # rows: what a few bytes on the disk can expand to is bounded by them


def parquet_rows(path: Path, lists: Collection[str] = ()) -> Iterator[Row]:
    """Columns of other types stand as `Unread`; those of lists too, unless `lists` names them."""
    with open_parquet(path) as file:
        columns = file.schema_arrow
        wanted = [field.name for field in columns if _readable(field.type, field.name in lists)]
        rest = {f.name: Unread(_a(f.type)) for f in columns if f.name not in wanted}
        if (file.metadata.num_rows or 0) * max(1, len(wanted)) > MOST_VALUES // 2:
            raise too_many(path, "cells", MOST_VALUES // 2)
        number = size = 0
        for batch in file.iter_batches(AT_ONCE, columns=wanted, use_threads=False):
            arrays = {name: _decoded(batch.column(name)) for name in wanted}
            size += sum(array.nbytes for array in arrays.values())
            if size > LARGEST_FILE:
                raise too_large(path)
            cells = {name: _cells(array) for name, array in arrays.items()}
            for i in range(batch.num_rows):
                number += 1
                own = {
                    f.name: cells[f.name][i] if f.name in cells else rest[f.name] for f in columns
                }
                yield Row(path, "row", number, own)
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


def _decoded(column: Any) -> Any:
    """Each value by itself, whose size then is what it will take."""
    is_dictionary = import_module("pyarrow.types").is_dictionary(column.type)
    return column.dictionary_decode() if is_dictionary else column


def _cells(column: Any) -> list[object]:
    arrow: Any = import_module("pyarrow")
    try:
        return column.to_pylist()
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
