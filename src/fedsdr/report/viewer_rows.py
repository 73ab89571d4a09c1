"""A client's rewrites as its folder of the run directory holds them: measured in one pass, the
texts fetched later for those that are shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsdr.report.damage import Damage, damage_of
from fedsdr.report.record import Row, natural

FILE = "rewrites.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one rewrite stands, and what was measured of it."""

    file: Path
    start: int
    size: int
    damage: Damage


@dataclass(frozen=True, slots=True)
class Rewrites:
    entries: Sequence[Entry]
    unreadable: int  # lines


def clients_with_rewrites(run: Path) -> list[str]:
    return sorted((path.parent.name for path in run.glob(f"clients/*/{FILE}")), key=natural)


def read_rewrites(run: Path, clients: Iterable[str], audit: Iterable[Row] = ()) -> Rewrites:
    """The audit knows more of the same examples (dates, negations, leaks)."""
    audited = {(row.get("client_id"), row.get("example_id")): row for row in audit}
    entries: list[Entry] = []
    unreadable = 0
    for client in clients:
        path = run / "clients" / client / FILE
        for start, size, row in rows_of(path):
            if row is None:
                unreadable += 1
                continue
            known = audited.get((client, row.get("id")), {})
            entries.append(Entry(path, start, size, damage_of(client, {**known, **row})))
    return Rewrites(entries, unreadable)


def fetch(entries: Iterable[Entry]) -> Iterator[Row]:
    """The rows themselves, with the texts, in the order given (best: as they stand on disk)."""
    path, file = None, None
    try:
        for entry in entries:
            if entry.file != path or file is None:
                if file is not None:
                    file.close()
                path, file = entry.file, entry.file.open("rb")
            file.seek(entry.start)
            yield _parsed(file.read(entry.size)) or {}
    finally:
        if file is not None:
            file.close()


def rows_of(path: Path) -> Iterator[tuple[int, int, Row | None]]:
    """(start, bytes, row) of every line; None where it is not a row: cut off, or not JSON."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = 0
        for line in file:
            if line.strip():
                yield start, len(line), _parsed(line)
            start += len(line)


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
