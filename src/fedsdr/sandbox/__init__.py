"""Running code that a model wrote: in a process of its own, walled in by the kernel, or not at all.

Landlock leaves it Python's own files to read and one empty folder to write to; seccomp takes away
sockets, new processes, signals to others and other programs; rlimits bound memory, processor time
and file size, a file system of its own what is written in all. The walls need no privileges. Where
one is missing, nothing is run. Its tests run in a second such process, which alone says how they
went.
"""

from __future__ import annotations

import math
import os
import secrets
import selectors
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from fedsdr.errors import SandboxError
from fedsdr.sandbox.jailed import Jailed

Status = Literal["passed", "failed", "exited", "timeout", "killed"]

_KEPT = 64 * 1024  # bytes of output; the rest is read and dropped …
_OUTPUT_BYTES = 256 * 2**20  # … up to here
_FILE_BYTES = 16 * 2**20
_DISK_BYTES, _FILES = 64 * 2**20, 256
_LOOK_EVERY = 0.02  # seconds
_START = 30.0  # seconds for the interpreters to come up: not the program's fault on a busy machine


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program. `passed`: it ran to its last line, and its tests to theirs.
    `exited`: it left before that, whatever its exit code. `detail`: the exception's class, the
    signal, or `quota` where it wrote too much."""

    status: Status
    detail: str = ""
    output: str = field(default="", repr=False)

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit this system cannot give, and how to get it."""

    missing: str
    fix: str

    def __str__(self) -> str:
        return f"model-written code is not run here: {self.missing}; {self.fix}"


def run_python(code: str, timeout: float = 3.0, memory_mb: int = 512, tests: str = "") -> Outcome:
    """Run a program on the standard library alone, as an imported module (`__name__` is
    `"program"`), and then its tests, for at most `timeout` seconds after the interpreters have
    started.

    The tests run in a process of their own, in which a name that they do not define is the
    program's: a call of it crosses over, and what comes back is plain data (`calls.py`). So
    whatever the program does to its own process, `passed` means that it gave the values that the
    tests want. Without tests, only the program itself can say that it came to its last line: one
    made to deceive can."""
    if (refusal := available()) is not None:
        raise SandboxError(str(refusal))
    return _run(code, tests, timeout, memory_mb)


@cache
def available() -> Refusal | None:
    """None where all limits hold; each was just tried on this machine, with harmless code."""
    if not sys.platform.startswith("linux"):
        return Refusal(
            f"{sys.platform} has neither Landlock nor seccomp",
            "run this command on Linux (a virtual machine or WSL 2 with kernel 5.13 or later)",
        )
    try:
        tried = _run(_PROBE, "", timeout=10.0, memory_mb=512)
    except SandboxError as error:
        return Refusal(
            str(error), "use a kernel from 5.13 on with Landlock and seccomp enabled (lsm=landlock)"
        )
    if not tried.passed:
        what = f"{tried.status} {tried.detail}".strip()
        return Refusal(f"the limits do not hold here ({what})", "use another Linux machine")
    return None


# Each of these must be refused. Nothing here would do harm if it were not.
_PROBE = """
import os, socket, sys
class NotWalledIn(Exception): pass
def refused(attempt):
    try:
        attempt()
    except OSError:
        return
    raise NotWalledIn
refused(lambda: socket.socket())
refused(lambda: open("/etc/passwd"))
refused(lambda: open(sys.executable, "ab"))
refused(lambda: os.fork() or os._exit(0))
refused(lambda: os.kill(os.getppid(), 0))
open("own", "w").close()
"""


def _run(code: str, tests: str, timeout: float, memory_mb: int) -> Outcome:
    token = secrets.token_hex(16)
    limits = {
        "memory": memory_mb * 2**20,
        "cpu": math.ceil(timeout) + 1,
        "file": _FILE_BYTES,
        "disk": _DISK_BYTES,
        "files": _FILES,
        "code": code,
    }
    # The token is told to the process of the tests alone, in which no line of the program runs.
    task = {**limits, "role": "tests", "tests": tests, "token": token}
    with ExitStack() as ends:
        asked, ask = _pipe(ends)
        answered, answer = _pipe(ends)
        output, output_end = _pipe(ends)
        program = Jailed({**limits, "role": "program"}, asked, answer, output_end)
        tester = Jailed(task, answered, ask, output_end)
        with program, tester:
            for end in (asked, ask, answered, answer, output_end):
                os.close(end)
            shown, late = _listen(program, tester, output, timeout)
    return _judge(program, tester, token, shown, late)


def _pipe(ends: ExitStack) -> tuple[int, int]:
    def close(end: int) -> None:
        with suppress(OSError):  # closed before
            os.close(end)

    pair = os.pipe()
    for end in pair:
        ends.callback(close, end)
    return pair


def _listen(
    program: Jailed, tester: Jailed, output: int, timeout: float
) -> tuple[bytes, Literal["", "timeout", "quota"]]:
    """The output, until the tests are over, or too much time or space is used up."""
    shown, much, ended = b"", 0, False
    end, began = time.monotonic() + _START, False
    with selectors.DefaultSelector() as ready:
        for pipe in (program.report, tester.report, output):
            ready.register(pipe, selectors.EVENT_READ)
        while not ended:
            if (left := end - time.monotonic()) <= 0:
                return shown, "timeout"
            for key, _ in ready.select(min(left, _LOOK_EVERY)):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    ready.unregister(key.fd)
                if key.fd == output:
                    shown, much = (shown + piece)[:_KEPT], much + len(piece)
                else:
                    program.hear(key.fd, piece)
                    tester.hear(key.fd, piece)
            if much > _OUTPUT_BYTES or program.overdrawn() or tester.overdrawn():
                return shown, "quota"
            if not began and b"\n" in program.heard and b"\n" in tester.heard:
                began, end = True, time.monotonic() + timeout
            # Tests to which nobody answers any more say nothing of how the program ended.
            ended = tester.over() and (tester.word != "gone" or program.over())
    program.end()
    tester.end()
    while piece := os.read(output, 1 << 16):
        shown = (shown + piece)[:_KEPT]
    return shown, ""


def _judge(program: Jailed, tester: Jailed, token: str, shown: bytes, late: str) -> Outcome:
    output = shown.decode("utf-8", "replace")
    for jailed in (program, tester):
        first = jailed.heard.decode("utf-8", "replace").split("\n")[0]
        if first != "ready":
            raise SandboxError(first or "the walled-in Python did not start")
        if late == "quota":  # which it may be before the tests' own process is up
            return Outcome("killed", "quota", output)
    if tester.word == token:
        return Outcome("passed", output=output)
    if late == "timeout":
        return Outcome("timeout", output=output)
    if tester.word == "gone" and program.signal:
        return Outcome("killed", signal.Signals(program.signal).name, output)
    word = program.word if tester.word == "gone" else tester.word
    end, _, detail = word.partition(" ")
    if end == "failed" and detail.isidentifier():
        return Outcome("failed", detail[:60], output)
    return Outcome("exited", output=output)
