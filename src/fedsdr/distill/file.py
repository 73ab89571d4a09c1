"""A file with its responses replaced: the same format, shape and columns."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from fedsdr.data.files import parse_json, read_rows, read_text
from fedsdr.data.formats import TURN_KEYS, Table
from fedsdr.errors import DataError
from fedsdr.runs.files import replacing, write_text_atomic


def write_rewritten(table: Table, responses: Sequence[str], to: Path) -> None:
    """`table`'s file once more, with these responses in place of its own."""
    rows = read_rows(table.path)
    if len(rows) != len(responses):
        raise DataError(f"{table.path}: changed while it was rewritten; start again")
    column = table.fields["turns" if table.shape in TURN_KEYS else "response"]
    values = [
        _replaced(row.values, table, column, text)
        for row, text in zip(rows, responses, strict=True)
    ]
    suffix = table.path.suffix.lower()
    if suffix == ".parquet":
        _write_parquet(table.path, column, [row[column] for row in values], to)
    elif suffix == ".csv":
        write_text_atomic(to, _csv(values))
    elif suffix == ".json":
        write_text_atomic(to, _json(table.path, values))
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in values)
        write_text_atomic(to, "".join(lines))


def _replaced(
    row: Mapping[str, object], table: Table, column: str, text: str
) -> Mapping[str, object]:
    if table.shape not in TURN_KEYS:
        return {**row, column: text}
    *earlier, last = cast("list[dict[str, object]]", row[column])
    return {**row, column: [*earlier, {**last, TURN_KEYS[table.shape][1]: text}]}


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return out.getvalue()


def _json(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """A list, or in whatever object it stood."""
    content = parse_json(read_text(path), path)
    if isinstance(content, dict):
        held = cast("dict[str, object]", content)
        whole: object = {k: rows if isinstance(v, list) else v for k, v in held.items()}
    else:
        whole = rows
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def _write_parquet(path: Path, column: str, values: Sequence[object], to: Path) -> None:
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    table = parquet.ParquetFile(path).read()
    place = table.column_names.index(column)
    kind = table.schema.field(place)
    made = table.set_column(place, kind, arrow.array(values, type=kind.type))
    with replacing(to) as file:
        parquet.write_table(made, file)
