"""Files of records -> examples: JSONL, JSON, CSV and Parquet, in the shapes that people use.

The data may be private: no message quotes a record, each names file, line, field and type.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

from fedsdr.errors import DataError, nearest
from fedsdr.types import Example, Message

Shape = Literal["messages", "sharegpt", "columns", "alpaca"]

# Per shape, the fields that every row must have and the column names under which they are known.
SHAPES: Mapping[Shape, Mapping[str, tuple[str, ...]]] = {
    "messages": {"turns": ("messages",)},
    "sharegpt": {"turns": ("conversations",)},
    "columns": {"prompt": ("prompt", "question"), "response": ("response", "answer", "completion")},
    "alpaca": {"prompt": ("instruction",), "response": ("output",)},
}
OPTIONAL = {"id": "id", "system": "system", "domain": "domain", "origin": "source"}
FIELDS = ("prompt", "response", "turns", "input", *OPTIONAL)
TURN_KEYS: Mapping[Shape, tuple[str, str]] = {
    "messages": ("role", "content"),
    "sharegpt": ("from", "value"),
}
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Table:
    """One file as read: `fields` says what each column was taken for, `rows` serve to partition."""

    path: Path
    shape: Shape
    columns: tuple[str, ...]
    fields: Mapping[str, str]
    examples: tuple[Example, ...] = field(repr=False)
    rows: tuple[Mapping[str, str], ...] = field(repr=False)


def read_table(
    path: Path, shape: Shape | None = None, columns: Mapping[str, str] | None = None
) -> Table:
    """Reads a file, detecting its shape unless given; `columns` maps our fields to its columns."""
    read = READERS.get(path.suffix.lower())
    check_file(path)
    if read is None:
        known = ", ".join(READERS)
        raise DataError(f"{path}: extension {path.suffix!r} is not known; known are {known}")
    rows = tuple(read(path))
    if not rows:
        raise DataError(f"{path}: has no rows")
    seen = tuple(dict.fromkeys(column for row in rows for column in row.values))
    shape, fields = _detect(path, seen, shape, columns or {})
    lines: dict[str, int] = {}
    examples: list[Example] = []
    for count, row in enumerate(rows, 1):
        example = _example(row, shape, fields, default_id=f"{path.stem}-{count}")
        if example.id in lines:
            first = f"{row.unit} {lines[example.id]}"
            raise row.error(
                f"has the same id as {first}; ids must be unique", fields.get("id", "id")
            )
        lines[example.id] = row.number
        examples.append(example)
    return Table(path, shape, seen, fields, tuple(examples), tuple(row.scalars() for row in rows))


@dataclass(frozen=True, slots=True)
class _Row:
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
        return str(value) if is_integer else self.optional(column)

    def checked(self, value: object, column: str, blank: bool = False) -> str:
        if value is None:
            raise self.error("is missing", column)
        if not isinstance(value, str):
            raise self.error(f"must be text, not {_kind(value)}", column)
        if not blank and not value.strip():
            raise self.error("is empty", column)
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


def _detect(
    path: Path, seen: tuple[str, ...], forced: Shape | None, named: Mapping[str, str]
) -> tuple[Shape, Mapping[str, str]]:
    """The one shape whose fields the columns have, and the column of each field."""
    for name, column in named.items():
        if name not in FIELDS:
            raise DataError(
                f"{path}: {name!r} is no field.{nearest(name, FIELDS)} "
                f"Fields are: {', '.join(FIELDS)}"
            )
        if column not in seen:
            raise DataError(
                f"{path}: there is no column {column!r} to be the {name}; seen: {_names(seen)}"
            )
    if forced is not None and forced not in SHAPES:
        raise DataError(f"{path}: no shape is called {forced!r}; shapes are {', '.join(SHAPES)}")
    # Keyed by what would be read: two names for one reading are no ambiguity.
    fits: dict[object, tuple[Shape, Mapping[str, str]]] = {}
    for shape in SHAPES if forced is None else (forced,):
        fields = _fields(path, shape, seen, named)
        if fields is not None:
            reading = tuple(fields[name] for name in SHAPES[shape]), TURN_KEYS.get(shape)
            fits.setdefault(reading, (shape, fields))
    if len(fits) > 1:
        names = " and ".join(shape for shape, _ in fits.values())
        raise DataError(f"{path}: fits the shapes {names}; say which one by `shape`")
    if not fits:
        accepted = "; ".join(
            f"{shape} ({', '.join('|'.join(columns) for columns in SHAPES[shape].values())})"
            for shape in (SHAPES if forced is None else (forced,))
        )
        hint = " Cells are separated by commas." if path.suffix.lower() == ".csv" else ""
        raise DataError(
            f"{path}: shape not known; columns seen: {_names(seen)}; accepted: {accepted}.{hint}"
        )
    return next(iter(fits.values()))


def _fields(
    path: Path, shape: Shape, seen: tuple[str, ...], named: Mapping[str, str]
) -> Mapping[str, str] | None:
    """The column of each field, or None where the shape does not fit the columns or the mapping."""
    optional = OPTIONAL | ({"input": "input"} if shape == "alpaca" else {})
    meaningful = {*SHAPES[shape], *optional} | ({"input"} if shape == "columns" else set[str]())
    if not named.keys() <= meaningful:
        return None
    fields: dict[str, str] = {}
    for name, known in SHAPES[shape].items():
        found = [named[name]] if name in named else [column for column in known if column in seen]
        if not found:
            return None
        if len(found) > 1:
            raise DataError(
                f"{path}: columns {_names(found)} could each be the {name}; "
                f"map one of them, as in `{name}: {found[0]}`"
            )
        fields[name] = found[0]
    fields |= {name: column for name, column in optional.items() if column in seen}
    return fields | dict(named)


def _example(row: _Row, shape: Shape, fields: Mapping[str, str], default_id: str) -> Example:
    label = {name: row.label(fields[name]) for name in ("id", "domain", "origin") if name in fields}
    system = row.optional(fields["system"]) if "system" in fields else ""
    history: tuple[Message, ...] = ()
    if shape in TURN_KEYS:
        said, history, prompt, response = _conversation(row, fields["turns"], *TURN_KEYS[shape])
        if said and system and said != system:
            raise row.error("differs from the conversation's own system turn", fields["system"])
        system = system or said
    else:
        response = row.text(fields["response"])
        prompt = _prompt(row, fields)
    return Example(
        id=label.get("id") or default_id,
        prompt=prompt,
        response=response,
        system=system,
        domain=label.get("domain", ""),
        origin=label.get("origin", ""),
        history=history,
    )


def _prompt(row: _Row, fields: Mapping[str, str]) -> str:
    """The instruction and, where there is one, its input below a blank line."""
    context = row.optional(fields["input"]) if "input" in fields else ""
    if not context.strip():
        return row.text(fields["prompt"])
    instruction = row.optional(fields["prompt"])
    return f"{instruction}\n\n{context}" if instruction.strip() else context


def _conversation(
    row: _Row, column: str, role_key: str, text_key: str
) -> tuple[str, tuple[Message, ...], str, str]:
    """(system, history, prompt, response) of a list of turns that ends with the assistant's."""
    turns = row.values.get(column)
    if turns is None:
        raise row.error("is missing", column)
    if not isinstance(turns, list):
        raise row.error(f"must be a list of turns, not {_kind(turns)}", column)
    system, messages = "", list[Message]()
    for index, turn in enumerate(cast("list[object]", turns)):
        place = f"{column}[{index}]"
        if not isinstance(turn, dict):
            raise row.error(f"must be an object, not {_kind(turn)}", place)
        said = cast("dict[str, object]", turn)
        role = said.get(role_key)
        if role == "system" and index == 0:
            system = row.checked(said.get(text_key), f"{place}.{text_key}", blank=True)
            continue
        due: Literal["user", "assistant"] = "assistant" if len(messages) % 2 else "user"
        if not isinstance(role, str) or ROLES.get(role) != due:
            names = " or ".join(repr(name) for name, meaning in ROLES.items() if meaning == due)
            raise row.error(
                f"must be {names}: turns alternate between user and assistant, "
                "after at most one system turn",
                f"{place}.{role_key}",
            )
        messages.append(Message(due, row.checked(said.get(text_key), f"{place}.{text_key}")))
    if not messages or messages[-1].role != "assistant":
        raise row.error("must end with a turn of the assistant, the response", column)
    *history, prompt, response = messages
    return system, tuple(history), prompt.content, response.content


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
    hint = " (one record per line? then name the file .jsonl)" if why == "Extra data" else ""
    raise DataError(f"{path}, {where}: not valid JSON: {why}{hint}")


def _jsonl(path: Path) -> Iterator[_Row]:
    # Not splitlines(): a record may hold U+2028 and its like, which JSON does not escape.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield _object(path, "line", number, parse_json(line, path, number))


def _json(path: Path) -> Iterator[_Row]:
    content = parse_json(read_text(path), path)
    if isinstance(content, dict):
        held = cast("dict[str, object]", content)
        lists: dict[str, object] = {k: v for k, v in held.items() if isinstance(v, list)}
        if len(lists) != 1:
            found = f"{len(lists)} ({_names(lists)})" if lists else "none"
            raise DataError(f"{path}: must be a list, or an object with one list; it has {found}")
        content = next(iter(lists.values()))
    if not isinstance(content, list):
        raise DataError(f"{path}: must be a list of records, not {_kind(content)}")
    for number, value in enumerate(cast("list[object]", content), 1):
        yield _object(path, "row", number, value)


def _csv(path: Path) -> Iterator[_Row]:
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
                yield _Row(path, "line", line, dict(zip(header, cells, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV: {error}") from None


def _parquet(path: Path) -> Iterator[_Row]:
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
        yield _Row(path, "row", number, dict(zip(columns, cells, strict=True)))


READERS: Mapping[str, Callable[[Path], Iterator[_Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _object(path: Path, unit: Literal["line", "row"], number: int, value: object) -> _Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}, {unit} {number}: must be an object, not {_kind(value)}")
    return _Row(path, unit, number, cast("dict[str, object]", value))


def _kind(value: object) -> str:
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


def _names(columns: Iterable[str]) -> str:
    """Column names for a message. What looks like no name may be a record: a CSV without header."""
    shown = [
        repr(name) if re.fullmatch(r"[\w.-]{1,32}", name) else f"<{len(name)} characters>"
        for name in columns
    ]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")
