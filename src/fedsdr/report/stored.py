"""Files of a run, read as far as they are what fedsdr writes; the rest is told in notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from fedsdr.errors import CorruptArtifact
from fedsdr.report.record import Row
from fedsdr.report.shapes import OBJECTS, ROWS, Shape, Wrong
from fedsdr.runs.plain import read_plain

LARGEST = 256 << 20  # bytes of one file; fedsdr writes none that large


def shaped_object(file: Path, notes: list[str]) -> Row | None:
    """What one of the known files holds; None where there is no such file."""
    content = json_object(file, notes)
    return None if content is None else shaped(file, content, OBJECTS[file.name], notes)


def shaped_rows(file: Path, notes: list[str]) -> list[Row]:
    """The rows that can be read. The last line may be torn: that is a kill, or a row being
    written."""
    try:
        *lines, _torn = _bytes(file).split(b"\n")
    except FileNotFoundError:
        return []
    except CorruptArtifact as error:
        notes.append(f"{error}; the page is without it.")
        return []
    rows, damaged, lost, shape = list[Row](), list[int](), set[str](), ROWS[file.name]
    for number, line in enumerate(lines, start=1):
        try:
            row: Any = json.loads(line)
            if not isinstance(row, dict):
                raise Wrong
            odd = set[str]()
            rows.append(cast(Row, shape(row, odd)))
            lost |= odd
        except (ValueError, RecursionError):
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (" …" if len(damaged) > 5 else "")
        notes.append(f"{file.name} is damaged in line {shown}; the page is without these rows.")
    _tell(file, lost, notes)
    return rows


def json_object(file: Path, notes: list[str]) -> dict[str, Any] | None:
    try:
        content: Any = json.loads(_bytes(file))
    except FileNotFoundError:
        return None
    except CorruptArtifact as error:
        notes.append(f"{error}; the page is without it.")
        return None
    except (ValueError, RecursionError) as error:
        notes.append(f"{file.name} cannot be read ({error}); the page is without it.")
        return None
    if not isinstance(content, dict):
        notes.append(f"{file.name} is damaged: it holds no JSON object; the page is without it.")
        return None
    return cast("dict[str, Any]", content)


def shaped(file: Path, content: Any, shape: Shape, notes: list[str]) -> Row | None:
    lost = set[str]()
    try:
        value = shape(content, lost)
    except Wrong:
        notes.append(f"{file.name} does not hold what fedsdr writes; the page is without it.")
        return None
    _tell(file, lost, notes)
    return cast(Row, value)


def _tell(file: Path, lost: set[str], notes: list[str]) -> None:
    if lost:
        names = ", ".join(sorted(lost)[:5]) + (" …" if len(lost) > 5 else "")
        notes.append(
            f"{file.name} holds values that fedsdr does not write ({names}); the page is without "
            "them."
        )


def _bytes(file: Path) -> bytes:
    try:
        return read_plain(file, LARGEST, CorruptArtifact, follow=False)
    except CorruptArtifact as error:  # a page tells no path of this machine
        raise CorruptArtifact(str(error).replace(str(file), file.name)) from None
