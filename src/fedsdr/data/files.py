"""Files of records -> rows: JSONL, JSON, CSV and Parquet, each row knowing where it stands.

The data may be private: no message quotes a record, each names file, line, field and type.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

from fedsdr.errors import DataError, nearest

LONGEST_LABEL = 1000  # of ids and domains, which messages and tables show
NOTHING_VISIBLE = "holds no visible character; drop the row"


@dataclass(frozen=True, slots=True)
class Row:
    """The raw values of one record, and where it stands in its file."""

    path: Path
    unit: Literal["line", "row"]
    number: int
    values: Mapping[str, object]

    def error(self, problem: str, column: str = "") -> DataError:
        where = f", field {column!r}" if column else ""
        return DataError(f"{self.path}, {self.unit} {self.number}{where}: {problem}")

    def text(self, column: str) -> str:
        """The text of a field that must be there and say something."""
        return self.checked(self.values.get(column), column)

    def optional(self, column: str) -> str:
        value = self.values.get(column)
        return "" if value is None or value == "" else self.checked(value, column, blank=True)

    def label(self, column: str) -> str:
        value = self.values.get(column)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        text = str(value) if is_integer else self.optional(column)
        if len(text) > LONGEST_LABEL:
            raise self.error(f"is longer than the {LONGEST_LABEL} characters of a label", column)
        return text

    def checked(self, value: object, column: str, blank: bool = False) -> str:
        if value is None:
            raise self.error("is missing", column)
        if not isinstance(value, str):
            raise self.error(f"must be text, not {kind(value)}", column)
        if not blank and not _says_something(value):
            raise self.error("is empty" if not value.strip() else NOTHING_VISIBLE, column)
        if "\0" in value:
            raise self.error("holds a NUL character", column)
        if re.search("[\ud800-\udfff]", value):
            raise self.error("holds half of a surrogate pair, which is no text", column)
        return value

    def scalars(self) -> Mapping[str, str]:
        """The columns by which a table can be partitioned; `true` and `1` read as in JSON."""
        return {
            column: self.optional(column) if isinstance(value, str) else json.dumps(value)
            for column, value in self.values.items()
            if isinstance(value, str | int | float)
        }


def check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a directory, not a file")
    if not path.exists():
        there = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: there is no such file.{nearest(path.name, there)}")


def read_text(path: Path) -> str:
    """A whole UTF-8 file, with or without a byte order mark."""
    check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte {error.start} is not valid UTF-8; save the file as UTF-8"
        ) from None
    if (nul := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise DataError(f"{path}, line {line}: byte {nul} is NUL; is this a text file, in UTF-8?")
    if not text.strip():
        raise DataError(f"{path}: is empty")
    return text


def parse_json(text: str, path: Path, line: int | None = None) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where, why = f"line {line or error.lineno}, column {error.colno}", error.msg
    except ValueError:
        where, why = f"line {line or 1}", "a number has too many digits"
    except RecursionError:
        where, why = f"line {line or 1}", "nested too deeply"
    hint = ""
    if why == "Extra data" and line is None:
        hint = " (one record per line? then name the file .jsonl)"
    elif why == "Extra data":
        hint = " (each record needs a line of its own, ended by a line feed)"
    raise DataError(f"{path}, {where}: not valid JSON: {why}{hint}")


def _jsonl(path: Path) -> Iterator[Row]:
    # Not splitlines(): a record may hold U+2028 and its like, which JSON does not escape.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield _object(path, "line", number, parse_json(line, path, number))


def _json(path: Path) -> Iterator[Row]:
    content = parse_json(read_text(path), path)
    if isinstance(content, dict):
        held = cast("dict[str, object]", content)
        lists: dict[str, object] = {k: v for k, v in held.items() if isinstance(v, list)}
        if len(lists) != 1:
            found = f"{len(lists)} ({quoted(lists)})" if lists else "none"
            raise DataError(f"{path}: must be a list, or an object with one list; it has {found}")
        content = next(iter(lists.values()))
    if not isinstance(content, list):
        raise DataError(f"{path}: must be a list of records, not {kind(content)}")
    for number, value in enumerate(cast("list[object]", content), 1):
        yield _object(path, "row", number, value)


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise DataError(f"{path}, line {line}: a column name occurs twice")
            elif cells and header is not None:
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {line}: {len(cells)} cells, but the header has {len(header)}"
                    )
                yield Row(path, "line", line, dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    try:
        # By name: pyarrow is optional, and has no types to check against.
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            f"{path}: Parquet files need pyarrow: pip install 'fedsdr[parquet]'"
        ) from None
    try:
        table = parquet.ParquetFile(path).read()
    except (arrow.ArrowException, OSError):
        raise DataError(f"{path}: is not a readable Parquet file") from None
    columns: dict[str, list[object]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            columns[name] = column.to_pylist()
        except UnicodeDecodeError:
            raise DataError(f"{path}, field {name!r}: holds text that is not valid UTF-8") from None
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        yield Row(path, "row", number, dict(zip(columns, cells, strict=True)))


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _object(path: Path, unit: Literal["line", "row"], number: int, value: object) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {unit} {number}: must be an object, not {kind(value)}")
    return Row(path, unit, number, cast("dict[str, object]", value))


def read_rows(path: Path) -> tuple[Row, ...]:
    """All records of a file, whose format its extension says."""
    read = READERS.get(path.suffix.lower())
    check_file(path)
    if read is None:
        known = ", ".join(READERS)
        raise DataError(f"{path}: extension {path.suffix!r} is not known; known are {known}")
    rows = tuple(read(path))
    if not rows:
        raise DataError(f"{path}: has no rows")
    return rows


def _says_something(text: str) -> bool:
    """Whether any character of it shows: a byte order mark, say, or a zero-width space does not."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def kind(value: object) -> str:
    names: Mapping[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def quoted(columns: Iterable[str]) -> str:
    """Column names for a message. What looks like no name may be a record: a CSV without header."""
    shown = [
        repr(name) if re.fullmatch(r"[\w.-]{1,32}", name) else f"<{len(name)} characters>"
        for name in columns
    ]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
