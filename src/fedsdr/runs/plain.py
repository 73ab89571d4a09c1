"""Files that somebody else wrote: looked at before they are opened, and never waited for.

A named pipe blocks whoever opens it, a device has no end, a file of a terabyte fills the memory.
Whatever a user or another program may name is read through here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fedsdr.errors import FedsdrError
from fedsdr.text.numbers import size

KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
MEGABYTE = 10**6
CHUNK = 1 << 24  # bytes: `read` takes the memory for all that it is asked for


def user_path(text: str | Path, refuse: type[FedsdrError]) -> Path:
    """A path as a user writes it, `~` and all; what can be no path is refused in words."""
    written = str(text)
    if "\0" in written:
        raise refuse(f"{written!r} is no path: it holds a NUL character")
    try:
        path = Path(written).expanduser()
        os.fsencode(path)
    except RuntimeError:  # ~nobody-of-that-name
        raise refuse(f"{written}: there is no user of that name here; write the path out") from None
    except UnicodeEncodeError:
        raise refuse(f"{written!r} is no path: it holds half of a surrogate pair") from None
    if any(len(os.fsencode(part)) > 255 for part in path.parts) or len(written) > 4096:
        raise refuse(f"{written[:80]}… is no path: a name in it is longer than a disk can hold")
    return path


class NamedTwice(ValueError):
    """A JSON object that says one key twice: each reader takes another of the two."""

    def __init__(self, name: str) -> None:
        super().__init__("a key is given twice")
        self.name = name


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json`'s `object_pairs_hook`."""
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        raise NamedTwice(next(name for name in held if names.count(name) > 1))
    return held


@contextmanager
def open_plain(
    path: Path, most: int, refuse: type[FedsdrError], follow: bool = True
) -> Generator[BinaryIO]:
    """The open file, if it is a regular one of at most `most` bytes. `follow=False`: nor a link.

    `FileNotFoundError` is the caller's, who knows what to advise; all else is refused by name.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        handle = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise refuse(f"{path} cannot be read: {_reason(path, error)}") from None
    try:
        _refuse_unless_plain(handle, path, most, refuse)
    except FedsdrError:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as file:
        yield file


def read_plain(path: Path, most: int, refuse: type[FedsdrError], follow: bool = True) -> bytes:
    """The bytes of a regular file, never more than `most`, also if it grows meanwhile."""
    with open_plain(path, most, refuse, follow) as file:
        parts, left = list[bytes](), most + 1
        try:
            while part := file.read(min(left, CHUNK)):
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise refuse(f"{path} cannot be read: {_reason(path, error)}") from None
    if not left:
        raise refuse(f"{path} is larger than the {size(most)} that are read here")
    return b"".join(parts)


def kind_of(path: Path) -> str | None:
    """What stands there that is no regular file ('a named pipe', 'a link'); None for a file or
    nothing. Links are not followed."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return None
    return "a symbolic link" if stat.S_ISLNK(mode) else _kind(mode)


def _refuse_unless_plain(handle: int, path: Path, most: int, refuse: type[FedsdrError]) -> None:
    status = os.fstat(handle)
    if kind := _kind(status.st_mode):
        raise refuse(f"{path}: is {kind}, not a file")
    if status.st_size > most:
        there, limit = size(status.st_size), size(most)
        raise refuse(f"{path} has {there}, more than the {limit} that are read here")


def _kind(mode: int) -> str | None:
    return next((name for test, name in KINDS if test(mode)), None)


def _reason(path: Path, error: OSError | ValueError) -> str:
    if kind := kind_of(path):
        if kind == "a directory":
            return "it is a directory, not a file"
        if kind == "a socket":
            return "it is a socket, not a file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
