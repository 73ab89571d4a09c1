"""The runs in a folder, and whether one of them changed: by looking, since a run tells nobody.

Nothing here follows a link, so what is shown lies in the folder; nothing here writes or locks.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedsdr.errors import FedsdrError, RunError
from fedsdr.report.read import alive, read_cell, read_record
from fedsdr.report.record import RunRecord, natural
from fedsdr.runs.identity import RUN
from fedsdr.runs.lock import LOCK

DEEPEST = 7  # folders below the served one: SWEEP/work/cells/SETTING/METHOD/SEED/run
MOST = 2000  # runs; there is no page for more
CELLS = "cells"
RESULTS = "results.json"
CLIENTS = "clients"
OF_A_CLIENT = ("rewrites.jsonl", "answers.jsonl")  # of the private files, those that are shown


class UnknownRun(FedsdrError):
    """No run in the served folder has this id (any more)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is: its directory, or the file of a sweep's cell. Addresses hold only the id."""

    id: str
    path: Path
    name: str  # relative to the served folder


@dataclass(frozen=True, slots=True)
class Library:
    """All runs in a folder. Each call looks again: runs come, grow and go."""

    root: Path

    @classmethod
    def open(cls, folder: Path) -> Library:
        if not folder.is_dir():
            raise RunError(f"{folder} is no folder; name one that holds runs: `fedsdr serve DIR`")
        return cls(folder.resolve())

    def places(self) -> dict[str, Place]:
        """By id, in the order of their names."""
        paths = list[Path]()
        for path in _runs_below(str(self.root), 0):
            paths.append(Path(path))
            if len(paths) == MOST:
                break
        places = [self._place(path) for path in paths]
        return {place.id: place for place in sorted(places, key=lambda p: natural(p.name))}

    def find(self, ids: Sequence[str]) -> list[Place]:
        """The ids are looked up among what is there: nothing that was asked for becomes a path."""
        places = self.places()
        if any(id not in places for id in ids):
            raise UnknownRun("there is no such run in this folder, or it was removed")
        return [places[id] for id in ids]

    def stamp(self, ids: Sequence[str] = ()) -> str:
        """A word that changes when one of these runs does; with none named, when any run does."""
        chosen = self.find(ids) if ids else self.places().values()
        seen = [(place.name, list(_traces(place.path, bool(ids)))) for place in chosen]
        return hashlib.sha256(repr(seen).encode(errors="surrogateescape")).hexdigest()[:24]

    def record(self, place: Place, brief: bool = False) -> RunRecord:
        if place.path.is_dir():
            _refuse_links(place)
            return replace(read_record(place.path, brief), name=place.name)
        sweep = place.path.parents[3]  # cells/SETTING/METHOD/SEED.json
        return replace(read_cell(place.path, sweep), name=place.name)

    def _place(self, path: Path) -> Place:
        relative = path.relative_to(self.root)
        digest = hashlib.sha256(os.fsencode(relative)).hexdigest()
        shown = relative if path.suffix != ".json" else relative.with_suffix("")
        return Place(digest[:16], path, self.root.name if path == self.root else shown.as_posix())


def _runs_below(folder: str, depth: int) -> Iterator[str]:
    """Directories of runs, none inside another, and the files of a sweep's cells."""
    entries = _entries(folder)
    if any(entry.name == RUN and _is_file(entry) for entry in entries):
        yield folder
        return
    folders = [entry for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
    if any(entry.name == CELLS for entry in folders):
        yield from _cells(os.path.join(folder, CELLS))
    if depth < DEEPEST:
        for entry in folders:
            yield from _runs_below(entry.path, depth + 1)


def _cells(folder: str) -> Iterator[str]:
    for setting in filter(_is_folder, _entries(folder)):
        for method in filter(_is_folder, _entries(setting.path)):
            for cell in filter(_is_file, _entries(method.path)):
                if cell.name.endswith(".json") and not cell.name.startswith("."):
                    yield cell.path


def _traces(run: Path, whole: bool) -> Iterator[tuple[object, ...]]:
    """What tells one state of a run from the next, without opening its files. Of a file that is
    replaced as a whole the inode changes, of one that grows the size."""
    if not run.is_dir():
        yield _trace(run)
        return
    entries = _entries(str(run))
    names = {entry.name for entry in entries}
    for entry in entries:
        if _is_file(entry) and not entry.name.startswith("."):
            yield _trace(Path(entry.path))
    if RESULTS not in names:  # a process that was killed leaves no trace but its absence
        yield ("alive", alive(run / LOCK))
    if whole and CLIENTS in names:
        for client in filter(_is_folder, _entries(str(run / CLIENTS))):
            for name in OF_A_CLIENT:
                yield _trace(Path(client.path, name))


def _trace(file: Path) -> tuple[object, ...]:
    try:
        stat = file.lstat()
    except OSError:
        return ()
    return file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _refuse_links(place: Place) -> None:
    """fedsdr writes no links; one in a run could show any file of this machine on the page."""
    folders = [str(place.path), str(place.path / CLIENTS)]
    folders += [entry.path for entry in _entries(folders[1]) if _is_folder(entry)]
    for folder in folders:
        for entry in _entries(folder):
            if entry.is_symlink():
                raise RunError(
                    f"{place.name} holds a link ({entry.name}), so it is not shown: what a run "
                    "wrote are files; remove the link, or copy the file it points to"
                )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:  # removed a moment ago, or not for this user
        return []


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)
