"""One process at a time in a run directory.

The kernel holds the lock, not the file: it is gone with the process that took it, even after a
kill -9, so there is no stale lock to clear.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsdr.errors import RunError, RunLocked
from fedsdr.runs.files import refuse_unless_own, unwritable
from fedsdr.runs.plain import read_plain

LOCK = "lock"
LONGEST = 4096  # bytes
HOST = re.compile(r"[\w.:-]{1,253}", re.ASCII)


@contextmanager
def run_lock(directory: Path) -> Generator[None, None, None]:
    """Hold the run directory for the length of the `with` block, or raise `RunLocked` at once."""
    path = directory / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise RunError(f"{directory}: there is no such directory") from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        refuse_unless_own(path, handle, "remove it, and try again")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLocked(
                f"{directory} is in use by {_holder(handle)}; wait for it, stop it, or use another "
                "directory with --out"
            ) from error
        except OSError as error:
            raise RunError(
                f"{path} cannot be locked: {error.strerror}; use a directory on a local disk"
            ) from error
        _sign(path, handle)
        yield
    finally:
        # The file stays: were it removed, two processes could each lock a file of that name.
        os.close(handle)


def signed_by(path: Path) -> tuple[int, str] | None:
    """The process that signed a lock last, and its machine; None where nobody sensible did."""
    try:
        return _signature(read_plain(path, LONGEST, RunError, follow=False))
    except (FileNotFoundError, RunError):
        return None


def _sign(path: Path, handle: int) -> None:
    who = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    try:
        os.fchmod(handle, 0o600)
        os.ftruncate(handle, 0)
        os.pwrite(handle, who.encode(), 0)
    except OSError as error:
        # The kernel holds the lock, signed or not; and a purge may have to make room first.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise unwritable(path, error) from error


def _holder(handle: int) -> str:
    who = _signature(os.pread(handle, LONGEST, 0))
    return (
        "another process that has just started" if who is None else f"process {who[0]} on {who[1]}"
    )


def _signature(raw: bytes) -> tuple[int, str] | None:
    """Anybody may have written it, and it reaches terminals."""
    try:
        who: Any = json.loads(raw)
        pid, host = who["pid"], who["host"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    sane = isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 2**31
    return (pid, host) if sane and isinstance(host, str) and HOST.fullmatch(host) else None
