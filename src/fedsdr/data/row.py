"""One record of a file, and where it stands there.

The data may be private: no message quotes a record, each names file, line, field and type.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsdr.errors import DataError

LONGEST_LABEL = 1000  # of ids and domains, which messages and tables show
NOTHING_VISIBLE = "holds no visible character; drop the row"
TYPES: Mapping[type, str] = {
    str: "text",
    bool: "a boolean",
    int: "a whole number",
    float: "a number with a fraction",
}


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands for the values of a column that no text can come from; only its use is an error."""

    kind: str  # "a timestamp[us]"
    problem: str = ""  # where it is not just the wrong type


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
        if isinstance(value, Unread) and value.problem:
            raise self.error(value.problem, column)
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
        """The columns by which a table can be partitioned; `true` and `1` read as in JSON. What is
        no number (NaN) is no value."""
        return {
            column: value if isinstance(value, str) else json.dumps(value)
            for column, value in self.values.items()
            if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
        }


def mixed_columns(rows: Iterable[Row]) -> dict[str, str]:
    """Columns whose scalars are of several types, and where: 1 and "1" would read the same."""
    seen, mixed = dict[str, tuple[type, int]](), dict[str, str]()
    for row in rows:
        for column, value in row.values.items():
            if type(value) in TYPES:
                first, where = seen.setdefault(column, (type(value), row.number))
                if first is not type(value) and column not in mixed:
                    mixed[column] = (
                        f"holds {TYPES[first]} in {row.unit} {where} and {TYPES[type(value)]} in "
                        f"{row.unit} {row.number}"
                    )
    return mixed


def _says_something(text: str) -> bool:
    """Whether any character of it shows: a byte order mark, say, or a zero-width space does not."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def kind(value: object) -> str:
    if isinstance(value, Unread):
        return value.kind
    names: Mapping[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def quoted(columns: Iterable[str]) -> str:
    """Column names for a message. What looks like no name may be a record: a CSV without header."""
    shown = [
        repr(name) if re.fullmatch(r"[\w.-]{1,32}", name) else f"<{len(name)} characters>"
        for name in columns
    ]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
