"""Removing what is private in a run: all but what is known to hold neither texts nor states.

Nothing has to be written before something is gone, as the disk may be full: a run is marked by the
renaming of a folder, which at the same stroke takes the largest part of what goes out of its place.
A purge that is killed leaves a run that cannot be resumed, and that another purge finishes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs import files
from fedsdr.runs.artifact import recover
from fedsdr.runs.contents import private_parts, refuse_links
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.identity import PURGED, PURGING
from fedsdr.runs.lock import LOCK, run_lock

REWRITES = "rewrites.jsonl"  # a client's, beside its states
AUDIT = "rewriting_audit.jsonl"
NAMES = ("client_id", "template", "form", "reasons")  # what of its rows stays besides numbers
STATES = ("clients", "updates", "rewrites")  # without which a resume would train something else


@dataclass(frozen=True, slots=True)
class Purged:
    """How much a purge removed. `linked`: files that have another name elsewhere, where what they
    hold is still to be read."""

    files: int
    bytes: int
    linked: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A file or folder that a purge removes."""

    path: Path
    size: Purged


def private(run: RunDirectory) -> list[Part]:
    """What a purge would remove now."""
    device = run.root.stat().st_dev
    return [Part(path, _measured(path, device)) for path in private_parts(run.root)]


def purge(run: RunDirectory) -> Purged:
    """Remove what is private; results stay, and a resume is refused from then on.

    Takes the run's lock itself.
    """
    root = run.root
    with ExitStack() as held:
        held.enter_context(run_lock(root))
        refuse_links(root)
        if (root / "evaluation" / LOCK).is_file():  # whoever scores benchmarks writes answers
            held.enter_context(run_lock(root / "evaluation"))
        parts = private(run)
        _begin(root)
        for folder in ("", "checkpoints", "adapters"):
            recover(root / folder)
        for path in private_parts(root):
            if path.name != PURGING:
                _remove(root, path)
        _empty(root / PURGING)
        _strip(root / AUDIT)
        _end(run)
    return _sum(part.size for part in parts)


def _begin(root: Path) -> None:
    """By a rename, of what a resume cannot do without; where none of that is there, no mark needs
    to come before the rest goes."""
    if os.path.lexists(root / PURGING):
        return
    for name in STATES:
        if (root / name).is_dir():
            try:
                os.rename(root / name, root / PURGING)
            except OSError as error:
                raise _unremovable(root / name, error) from error
            return


def _end(run: RunDirectory) -> None:
    """Say so for good. On a disk that is still full, or of a run whose facts are damaged, the mark
    stays, and says it."""
    mark = run.root / PURGING
    try:
        run.amend({"purged": sorted(PURGED)})
    except (RunError, CorruptArtifact):
        if not os.path.lexists(mark):
            try:
                files.write_new(mark, b"")
            except OSError as error:
                raise files.unwritable(mark, error) from error
    else:
        _remove(run.root, mark)


def _strip(audit: Path) -> None:
    """Of the audit the numbers stay; where they cannot be written, or it is damaged, nothing."""
    if not audit.exists():
        return
    try:
        rows = [(line, row, _without_texts(row)) for line, row in files.read_lines(audit)]
        torn = sum(len(line) for line, _, _ in rows) != audit.lstat().st_size
        if torn or any(row != kept for _, row, kept in rows):
            files.write_rows_atomic(audit, (kept for _, _, kept in rows))
    except (RunError, CorruptArtifact, ValueError):
        _remove(audit.parent, audit)


def _without_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in NAMES or _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_number, cast("dict[str, Any]", value).values()))
    return value is None or isinstance(value, bool | int | float)


def _empty(folder: Path) -> None:
    """The folder itself is the mark, and stays for now."""
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            _remove(folder.parent, folder / name)


def _remove(root: Path, path: Path) -> None:
    """Below the root, by handles on the folders: no link that is put in the way leads elsewhere."""
    try:
        with suppress(FileNotFoundError), _opened(root, path.relative_to(root).parent) as folder:
            there = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                shutil.rmtree(path.name, dir_fd=folder)
            else:
                os.unlink(path.name, dir_fd=folder)
    except OSError as error:
        raise _unremovable(path, error) from error


@contextmanager
def _opened(root: Path, inside: Path) -> Generator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    handle = os.open(root, flags)
    try:
        for part in inside.parts:
            inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _measured(path: Path, device: int) -> Purged:
    there = path.lstat()
    if there.st_dev != device:
        raise RunError(f"{path} is another file system that is mounted in the run; unmount it")
    if not stat.S_ISDIR(there.st_mode):
        return Purged(1, there.st_size, int(there.st_nlink > 1))
    return _sum(_measured(child, device) for child in sorted(path.iterdir()))


def _sum(sizes: Iterable[Purged]) -> Purged:
    parts = list(sizes)
    return Purged(*(sum(getattr(s, of) for s in parts) for of in ("files", "bytes", "linked")))


def _unremovable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be removed: {error.strerror}; purge again")
