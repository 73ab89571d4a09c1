"""What a stranger's file makes a library do, done first in a process that may hang or die of it.

A tokenizer's parts are programs in Rust that can panic, loop or ask for any memory, and so can a
model's configuration; neither can be stopped in a process that goes on afterwards. The fork does
just what this process is about to do, and no more: no kernels run in it, which is where forks of a
process with threads go wrong.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedsdr.errors import FedsdrError, ModelError

CPU = 2  # seconds of computing, for small files
PER_MEGABYTE = 0.3  # more, for larger ones
WAIT = 120.0  # seconds by the clock: another process may have the processor
MEMORY = 2 << 30  # bytes more than are mapped already
NO_DAMAGE, DAMAGE, REFUSED = b"0", b"1", b"2"


class Damage(Exception):
    """What the library said, or what became of it."""


def rehearse(
    action: Callable[[], object], size: int = 0, cpu: float = CPU, memory: int = MEMORY
) -> None:
    """Returns if `action` would; else `ModelError` with its own refusal, or `Damage`. `size`: bytes
    of the files that it reads, for which it gets more than the `cpu` seconds."""
    seconds = round(cpu + PER_MEGABYTE * size / 1e6)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _in_the_fork(action, write, seconds, memory)
    os.close(write)
    try:
        report, late = _everything(read, time.monotonic() + WAIT)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(read)
    if late:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if late or status == -signal.SIGXCPU:
        raise Damage(f"it takes more than {seconds} seconds of computing, so that it may never end")
    kind, text = report[:1], report[1:].decode(errors="replace")
    if kind == REFUSED:
        raise ModelError(text)
    if kind != NO_DAMAGE:
        raise Damage(text or f"the process that tried it ended with {_in_words(status)}")


def is_damage(error: BaseException) -> bool:
    """An error of a file's, not of ours: whatever a library raises over it, Rust's panics, which
    are no Exceptions, too."""
    if isinstance(error, FedsdrError):
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def in_words(error: BaseException, longest: int = 300) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:longest]


def _in_the_fork(action: Callable[[], object], write: int, cpu: int, memory: int) -> None:
    """Never returns: what this process would do at its end, or say, is its parent's."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        sys.stdout = sys.stderr = open(null, "w", closefd=False)  # noqa: SIM115
        faulthandler.disable()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)
        _limit(resource.RLIMIT_CPU, cpu)
        _limit(resource.RLIMIT_CORE, 0)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        try:
            action()
            report = NO_DAMAGE
        except FedsdrError as error:
            report = REFUSED + str(error).encode(errors="replace")
        except BaseException as error:
            message = f"{type(error).__name__}: {in_words(error)}"
            report = DAMAGE + message.encode(errors="replace")
        os.write(write, report)
        code = 0
    finally:
        os._exit(code)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, hard))


def _everything(handle: int, deadline: float) -> tuple[bytes, bool]:
    """What the fork says until it ends, and whether that was too late."""
    report = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            return report, True
        if not (more := os.read(handle, 1 << 16)):
            return report, False
        report += more


def _in_words(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"code {status}"
