"""One process at a time in a run directory.

The kernel holds the lock, not the file: it is gone with the process that took it, even after a
kill -9, so there is no stale lock to clear.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsdr.errors import RunError, RunLocked
from fedsdr.runs.files import unwritable

LOCK = "lock"


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


def _sign(path: Path, handle: int) -> None:
    who = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    try:
        os.fchmod(handle, 0o600)
        os.ftruncate(handle, 0)
        os.pwrite(handle, who.encode(), 0)
    except OSError as error:
        raise unwritable(path, error) from error


def _holder(handle: int) -> str:
    try:
        who: Any = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(who['pid'])} on {who['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process that has just started"
