"""Rows of a file -> examples, in the shapes that people use.

The data may be private: no message quotes a record, each names file, line, field and type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from fedsdr.data.files import read_rows
from fedsdr.data.row import Row, kind, mixed_columns, quoted
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
TURNS = [name for key in TURN_KEYS for name in SHAPES[key]["turns"]]
TEXTS = ("prompt", "response", "turns", "input", "system")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One file as read: `fields` says what each column was taken for, `rows` serve to partition."""

    path: Path
    shape: Shape
    columns: tuple[str, ...]
    fields: Mapping[str, str]
    examples: tuple[Example, ...] = field(repr=False)
    rows: tuple[Mapping[str, str], ...] = field(repr=False)
    mixed: Mapping[str, str] = field(repr=False, default_factory=dict[str, str])  # not to divide by


def read_table(
    path: Path, shape: Shape | None = None, columns: Mapping[str, str] | None = None
) -> Table:
    """Reads a file, detecting its shape unless given; `columns` maps our fields to its columns.

    Args:
        path: JSONL, JSON, CSV or Parquet.
        shape: `alpaca`, `sharegpt`, `messages` or `columns`; found out where not given.
        columns: Our fields to its columns.
    """
    rows = read_rows(path, {*TURNS, *(columns or {}).values()})
    seen = tuple(dict.fromkeys(column for row in rows for column in row.values))
    shape, fields = _detect(path, seen, shape, columns or {})
    lines: dict[str, int] = {}
    examples: list[Example] = []
    stem = path.stem.encode(errors="replace").decode()  # a disk may hold names that are no text
    for count, row in enumerate(rows, 1):
        example = _example(row, shape, fields, default_id=f"{stem}-{count}")
        if example.id in lines:
            first = f"{row.unit} {lines[example.id]}"
            raise row.error(
                f"has the same id as {first}; ids must be unique", fields.get("id", "id")
            )
        lines[example.id] = row.number
        examples.append(example)
    scalars, mixed = tuple(row.scalars() for row in rows), mixed_columns(rows)
    return Table(
        path=path,
        shape=shape,
        columns=seen,
        fields=fields,
        examples=tuple(examples),
        rows=scalars,
        mixed=mixed,
    )


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
                f"{path}: there is no column {column!r} to be the {name}; seen: {quoted(seen)}"
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
            f"{path}: shape not known; columns seen: {quoted(seen)}; accepted: {accepted}.{hint}"
        )
    shape, fields = next(iter(fits.values()))
    _refuse_shared(path, fields, named)
    return shape, fields


def _refuse_shared(path: Path, fields: Mapping[str, str], named: Mapping[str, str]) -> None:
    """A column that is two things: labels may be (a domain that is the id), texts may not."""
    for name, column in fields.items():
        for other in (other for other in fields if fields[other] == column and other != name):
            if name in TEXTS or (name in named and other in named):
                raise DataError(
                    f"{path}: column {column!r} would be both the {name} and the {other}; map "
                    f"another one, as in `{other}: NAME`"
                )


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
        columns = [named[name]] if name in named else [column for column in known if column in seen]
        if not columns:
            return None
        if len(columns) > 1:
            raise DataError(
                f"{path}: columns {quoted(columns)} could each be the {name}; "
                f"map one of them, as in `{name}: {columns[0]}`"
            )
        fields[name] = columns[0]
    fields |= {name: column for name, column in optional.items() if column in seen}
    return fields | dict(named)


def _example(row: Row, shape: Shape, fields: Mapping[str, str], default_id: str) -> Example:
    label = {name: row.label(fields[name]) for name in ("id", "domain", "origin") if name in fields}
    system = row.optional(fields["system"]) if "system" in fields else ""
    history: tuple[Message, ...] = ()
    if shape in TURN_KEYS:
        system_turn, history, prompt, response = _conversation(
            row, fields["turns"], *TURN_KEYS[shape]
        )
        if system_turn and system and system_turn != system:
            raise row.error("differs from the conversation's own system turn", fields["system"])
        system = system or system_turn
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


def _prompt(row: Row, fields: Mapping[str, str]) -> str:
    """The instruction and, where there is one, its input below a blank line."""
    context = row.optional(fields["input"]) if "input" in fields else ""
    if not context.strip():
        return row.text(fields["prompt"])
    instruction = row.optional(fields["prompt"])
    return f"{instruction}\n\n{context}" if instruction.strip() else context


def _conversation(
    row: Row, column: str, role_key: str, text_key: str
) -> tuple[str, tuple[Message, ...], str, str]:
    """(system, history, prompt, response) of a list of turns that ends with the assistant's."""
    turns = row.values.get(column)
    if turns is None:
        raise row.error("is missing", column)
    if not isinstance(turns, list):
        raise row.error(f"must be a list of turns, not {kind(turns)}", column)
    system, messages = "", list[Message]()
    for index, turn in enumerate(cast("list[object]", turns)):
        place = f"{column}[{index}]"
        if not isinstance(turn, dict):
            raise row.error(f"must be an object, not {kind(turn)}", place)
        fields = cast("dict[str, object]", turn)
        role = fields.get(role_key)
        if role == "system" and index == 0:
            system = row.checked(fields.get(text_key), f"{place}.{text_key}", blank=True)
            continue
        due: Literal["user", "assistant"] = "assistant" if len(messages) % 2 else "user"
        if not isinstance(role, str) or ROLES.get(role) != due:
            names = " or ".join(repr(name) for name, meaning in ROLES.items() if meaning == due)
            raise row.error(
                f"must be {names}: turns alternate between user and assistant, "
                "after at most one system turn",
                f"{place}.{role_key}",
            )
        messages.append(Message(due, row.checked(fields.get(text_key), f"{place}.{text_key}")))
    if not messages or messages[-1].role != "assistant":
        raise row.error("must end with a turn of the assistant, the response", column)
    *history, prompt, response = messages
    return system, tuple(history), prompt.content, response.content
