"""What a checkpoint knows of the rows written before it, so that a resume can tell whether they are
still the same.

Per file and round: how many rows and bytes there were, and a chain over all rows, each link the
sha256 of the link before and the row. A round adds its own rows to the chain and reads no others;
a resume reads every row once. A few earlier marks are kept to say which row was changed.

The spool: a round's admitted updates, on disk until the round is committed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from fedsdr.errors import CorruptArtifact
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import unwritable
from fedsdr.runs.plain import open_plain
from fedsdr.types import Update

MOST_MARKS = 32
LARGEST = 2**40  # of a file of rows
FIX = "put the file back as it was (from a copy or a backup), or start a new run"


@dataclass(frozen=True, slots=True)
class Mark:
    """A file of rows as it was after a round."""

    round: int
    rows: int = 0
    bytes: int = 0
    chain: str = ""

    def after(self, round: int, lines: Iterable[bytes]) -> Mark:
        rows, size, chain = self.rows, self.bytes, self.chain
        for line in lines:
            rows, size, chain = rows + 1, size + len(line), _link(chain, line)
        return Mark(round, rows, size, chain)


@dataclass(frozen=True, slots=True)
class Written:
    """The marks of every file, oldest first; of no file where nothing was written yet."""

    files: tuple[str, ...]
    marks: Mapping[str, tuple[Mark, ...]] = field(
        default_factory=lambda: dict[str, tuple[Mark, ...]]()
    )

    def after(self, root: Path, round: int) -> Written:
        """With the rows that were written since, which are those of this round."""
        marks = dict[str, tuple[Mark, ...]]()
        for file in self.files:
            known = self.marks.get(file, ())
            last = known[-1] if known else Mark(0)
            added = list(_lines(root / file, last.bytes))
            marks[file] = _thinned((*known, last.after(round, added)))
        return Written(self.files, marks)

    def verify(self, root: Path) -> None:
        """Refuse rows that are not those written up to the checkpoint, and drop what came after."""
        for file in self.files:
            _verify(root / file, self.marks.get(file, ()))
        for file in self.files:
            marks = self.marks.get(file, ())
            _cut(root / file, marks[-1].bytes if marks else 0)

    def facts(self) -> dict[str, list[list[Any]]]:
        return {
            file: [[m.round, m.rows, m.bytes, m.chain] for m in marks]
            for file, marks in self.marks.items()
        }


def read_written(files: tuple[str, ...], facts: Mapping[str, Any]) -> Written:
    """As `facts` wrote it."""
    marks = {file: tuple(Mark(*mark) for mark in facts.get(file, ())) for file in files}
    return Written(files, marks)


def trusted(root: Path, files: tuple[str, ...], round: int) -> Written:
    """Of a run whose checkpoints do not know its rows yet: those of rounds up to this one as they
    are, if they can be such rows."""
    marks = dict[str, tuple[Mark, ...]]()
    for file in files:
        path, last, newest, before = root / file, Mark(round), 0, b""
        for number, line in enumerate(_lines(path, 0), start=1):
            of = _round(line)
            if of is None or of < newest or line == before:
                raise _damaged(path, f"line {number} is no row that this run wrote")
            newest, before = of, line
            if of <= round:
                last = last.after(round, [line])
        marks[file] = (last,)
    written = Written(files, marks)
    written.verify(root)
    return written


def _verify(path: Path, marks: tuple[Mark, ...]) -> None:
    """Mark by mark; the first that does not fit tells where the change is."""
    last = marks[-1] if marks else Mark(0)
    seen, lines = Mark(0), _lines(path, 0, last.bytes)
    for mark in marks:
        rows = list(islice(lines, mark.rows - seen.rows))
        before, seen = seen, seen.after(mark.round, rows)
        if seen == mark:
            continue
        if not os.path.lexists(path):
            raise _damaged(path, "it is missing")
        place = _culprit(before, mark, rows)
        if place is None and seen.rows < mark.rows:
            raise _damaged(path, f"it ends after line {seen.rows}, {last.rows} were written")
        raise _damaged(path, f"{place or _place(before, mark)} is not what this run wrote")


def _culprit(before: Mark, mark: Mark, lines: list[bytes]) -> str | None:
    """The first of the lines between two marks that can be no row of these rounds."""
    known = before.round
    for number, line in enumerate(lines, start=before.rows + 1):
        of = _round(line)
        if of is None or not max(known, before.round + 1) <= of <= mark.round:
            return f"line {number}"
        known = of
    return None


def _place(before: Mark, mark: Mark) -> str:
    first, last = before.rows + 1, mark.rows
    rounds = f"round {mark.round}"
    if mark.round > before.round + 1:
        rounds = f"rounds {before.round + 1} to {mark.round}"
    return f"line {last} ({rounds})" if first >= last else f"a line of {first} to {last} ({rounds})"


def _cut(path: Path, size: int) -> None:
    """Drop what stands beyond."""
    try:
        if os.path.lexists(path) and path.lstat().st_size > size:
            handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.ftruncate(handle, size)
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        raise unwritable(path, error) from error


def _lines(path: Path, start: int, end: int = LARGEST) -> Iterator[bytes]:
    """Whole lines from a byte on; a torn last one, which a kill leaves behind, is none."""
    try:
        with open_plain(path, LARGEST, CorruptArtifact, follow=False) as file:
            file.seek(start)
            while (line := file.readline(end - start)).endswith(b"\n"):
                start += len(line)
                yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error.strerror}") from error


def _round(line: bytes) -> int | None:
    """The round of a row; None if it is none."""
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    number = cast("dict[str, Any]", row).get("round") if isinstance(row, dict) else None
    return number if type(number) is int and number >= 0 else None


def _link(chain: str, line: bytes) -> str:
    return hashlib.sha256(chain.encode() + line).hexdigest()[:32]


def _thinned(marks: tuple[Mark, ...]) -> tuple[Mark, ...]:
    """The last one, and of the others those at multiples of a power of two, `MOST_MARKS` at
    most: which ones depends on the round alone."""
    step = 1
    while marks[-1].round // step > MOST_MARKS:
        step *= 2
    return (*(m for m in marks[:-1] if m.round % step == 0), marks[-1])


def _damaged(path: Path, what: str) -> CorruptArtifact:
    return CorruptArtifact(f"{path}: {what}; {FIX}")


FACTS = ("run", "round", "base", "weight", "metrics")


def spool(run: RunDirectory, update: Update) -> None:
    meta = {
        "run": update.run,
        "round": update.round,
        "base": update.base_digest,
        "weight": update.weight,
        "metrics": dict(update.metrics),
    }
    run.save_update(update.client_id, update.round, {"shared": update.shared}, meta)


@dataclass(frozen=True, slots=True)
class SpooledUpdates:
    """In client-id order, read one at a time, as often as a rule likes."""

    run: RunDirectory
    round: int
    clients: Sequence[str]

    def __iter__(self) -> Iterator[Update]:
        for client_id in self.clients:
            yield read_spooled(self.run, self.round, client_id)


def read_spooled(run: RunDirectory, round: int, client_id: str) -> Update:
    stored = run.load_update(client_id, round)
    try:
        run_id, number, base, weight, metrics = (stored.meta[name] for name in FACTS)
    except (KeyError, TypeError) as error:
        raise CorruptArtifact(f"the update of client {client_id!r} lacks {error}") from error
    shared = stored.tensors.get("shared", {})
    return Update(
        run=run_id,
        round=number,
        client_id=client_id,
        base_digest=base,
        weight=weight,
        shared=shared,
        metrics=metrics,
    )
