"""Plain files that survive a kill: whole texts replaced at once, and rows appended one by one.

Everything is made private (files 0600, directories 0700) whatever the umask, and is on the disk,
not only in memory, when the function returns.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs.plain import kind_of, read_plain

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

LARGEST = 1 << 40  # bytes of rows; only what is no file at all is to be refused
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
FIXES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit on file sizes",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "make it writable, or choose another place",
    errno.EPERM: "make it writable, or choose another place",
}


def write_text_atomic(path: Path, text: str) -> None:
    """Whoever reads, now or after a kill, sees the old text or the new one."""
    with replacing(path) as file:
        file.write(text.encode())


def write_rows_atomic(path: Path, rows: Iterable[Mapping[str, JSON]]) -> None:
    """The same of JSON lines, which need not all be in memory at once."""
    with replacing(path) as file:
        file.writelines(line.encode() for line in _row_lines(rows))


def rows_text(rows: Iterable[Mapping[str, JSON]]) -> str:
    """As `write_rows_atomic` writes them."""
    return "".join(_row_lines(rows))


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file to fill, which takes the place of `path` once it is whole and on the disk."""
    with _beside(path) as (file, beside):
        yield file
        _settle(file)
        os.replace(beside, path)


@contextmanager
def private_umask() -> Generator[None]:
    """For files that other packages write, by whatever mode they please."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def write_text_once(path: Path, text: str) -> bool:
    """Like `write_text_atomic`, but only for the first who tries; False for all others."""
    with _beside(path) as (file, beside):
        file.write(text.encode())
        _settle(file)
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
    return True


def write_json_atomic(path: Path, value: JSON) -> None:
    write_text_atomic(path, pretty(value))


def append_row(path: Path, row: Mapping[str, JSON]) -> None:
    """Add one JSON line; after a failure the file is as it was before."""
    try:
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
    except ValueError as error:
        raise RunError(f"{path}: a row holds a number that is not finite: {row}") from error
    try:
        is_new = not os.path.exists(path)
        handle = open_to_append(path)
        try:
            _append(handle, line)
        finally:
            os.close(handle)
        if is_new:
            fsync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def open_to_append(path: Path) -> int:
    """A handle on the file, which is made if need be; the file is nobody else's by another name."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags | os.O_NONBLOCK, 0o600)
    try:
        refuse_unless_own(path, handle, "put a copy in its place")
        os.fchmod(handle, 0o600)
    except BaseException:
        os.close(handle)
        raise
    return handle


def refuse_unless_own(path: Path, handle: int, fix: str) -> None:
    """Of a file that is written in place: under another name it may be anybody's."""
    there = os.fstat(handle)
    if not stat.S_ISREG(there.st_mode):
        raise RunError(f"{path} is {kind_of(path) or 'no plain file'}; {fix}")
    if there.st_nlink > 1:
        raise RunError(
            f"{path} has a second name elsewhere (a hard link), where it would be written too; "
            f"{fix}"
        )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows but a torn last one: what a kill leaves behind, and never was a row."""
    return [row for _, row in read_lines(path)]


def read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The same, each with its bytes."""
    try:
        *lines, _torn = read_plain(path, LARGEST, CorruptArtifact, follow=False).split(b"\n")
    except FileNotFoundError:
        return []
    rows: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            if not line.startswith(b"{"):
                raise ValueError("it is not a JSON object")
            row: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not _torn:
                break
            raise CorruptArtifact(f"{path}, line {number} is damaged: {error}") from error
        rows.append((line + b"\n", row))
    return rows


def pretty(value: JSON) -> str:
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def checked_name(name: str) -> str:
    """The name itself, if it is safe as one part of a path."""
    if not SAFE_NAME.fullmatch(name):
        raise RunError(
            f"{name!r} cannot name a client or file: use 1 to 64 of the characters "
            "A-Z a-z 0-9 . _ - and no dot at the start"
        )
    return name


def make_private(path: Path) -> None:
    """Make a directory, and those above it, for the user alone."""
    if os.path.isdir(path):
        return
    if path.parent != path:
        make_private(path.parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    else:
        os.chmod(path, 0o700)
        fsync_directory(path.parent)


def write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        _settle(file)


def fsync_directory(path: Path) -> None:
    """Only this makes the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a tree or a link (never what a link points to); nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def measure(path: Path) -> tuple[int, int]:
    """Number and bytes of the files in a tree, without following links."""
    if path.is_dir() and not path.is_symlink():
        inside = [measure(child) for child in path.iterdir()]
        return sum(count for count, _ in inside), sum(size for _, size in inside)
    return (1, path.lstat().st_size) if os.path.lexists(path) else (0, 0)


def unwritable(path: Path, error: OSError) -> RunError:
    fix = FIXES.get(error.errno or 0, "remove the cause")
    return RunError(
        f"{path} cannot be written: {error.strerror or error}; {fix} and try again "
        "(what was stored before is intact)"
    )


@contextmanager
def _beside(path: Path) -> Generator[tuple[BinaryIO, str]]:
    try:
        make_private(path.parent)
        handle, beside = tempfile.mkstemp(prefix=f".tmp-{path.name[:200]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o600)
                yield file, beside
            fsync_directory(path.parent)
        finally:
            with suppress(OSError):  # renamed by now, or swept later
                os.unlink(beside)
    except OSError as error:
        raise unwritable(path, error) from error


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _row_lines(rows: Iterable[Mapping[str, JSON]]) -> Iterable[str]:
    return (json.dumps(row, allow_nan=False) + "\n" for row in rows)


def _append(handle: int, line: bytes) -> None:
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        # A row after a torn line would become part of it.
        size = os.pread(handle, size, 0).rfind(b"\n") + 1
        os.ftruncate(handle, size)
    try:
        rest = line
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, size)
        raise
