"""Running code that a model wrote: in a process of its own, walled in by the kernel, or not at all.

Landlock leaves it Python's own files to read and one empty folder to write to; seccomp takes away
sockets, new processes, signals to others and other programs; rlimits bound memory, processor time
and file size. Both walls need no privileges. Where one is missing, nothing is run.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from fedsdr.errors import SandboxError

Status = Literal["passed", "failed", "exited", "timeout", "killed"]

_JAIL = Path(__file__).with_name("jail.py")
_KEPT = 64 * 1024  # bytes of output; the rest is read and dropped
_FILE_BYTES = 16 * 2**20
_START = 30.0  # seconds for the interpreter to come up: not the program's fault on a busy machine


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program. `passed`: it ran to its last line. `exited`: it left before that,
    whatever its exit code. `detail`: the exception's class or the signal."""

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


def run_python(code: str, timeout: float = 3.0, memory_mb: int = 512) -> Outcome:
    """Run a program on the standard library alone, as an imported module (`__name__` is
    `"program"`), for at most `timeout` seconds after the interpreter has started."""
    if (refusal := available()) is not None:
        raise SandboxError(str(refusal))
    return _run(code, timeout, memory_mb)


@cache
def available() -> Refusal | None:
    """None where all limits hold; each was just tried on this machine, with harmless code."""
    if not sys.platform.startswith("linux"):
        return Refusal(
            f"{sys.platform} has neither Landlock nor seccomp",
            "run this command on Linux (a virtual machine or WSL 2 with kernel 5.13 or later)",
        )
    try:
        tried = _run(_PROBE, timeout=10.0, memory_mb=512)
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


def _run(code: str, timeout: float, memory_mb: int) -> Outcome:
    token = secrets.token_hex(16)
    task = {
        "code": code,
        "token": token,
        "memory": memory_mb * 2**20,
        "cpu": math.ceil(timeout) + 1,
        "file": _FILE_BYTES,
    }
    with (
        # Cleaning up may meet a file that the dying process still held; the folder goes either way.
        tempfile.TemporaryDirectory(prefix="fedsdr-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as told,
    ):
        told.write(json.dumps(task).encode("ascii"))
        told.seek(0)
        report, report_end = os.pipe()
        output, output_end = os.pipe()
        try:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-s", "-S", "-B", "-P", str(_JAIL), str(report_end)],
                    stdin=told,
                    stdout=output_end,
                    stderr=output_end,
                    pass_fds=(report_end,),
                    start_new_session=True,
                    cwd=folder,
                    env={
                        "HOME": folder,
                        "TMPDIR": folder,
                        "LANG": "C.UTF-8",
                        "PYTHONUTF8": "1",
                        "PYTHONHASHSEED": "0",  # the order of a set may decide an answer
                    },
                )
            except OSError as error:
                raise SandboxError(f"no Python can be started: {error.strerror}") from error
            finally:
                os.close(report_end)
                os.close(output_end)
            try:
                said, shown, late = _listen(process, report, output, timeout)
            finally:
                _end(process)
        finally:
            os.close(report)
            os.close(output)
    return _judge(said, shown, token, late, process.returncode)


def _listen(
    process: subprocess.Popen[bytes], report: int, output: int, timeout: float
) -> tuple[bytes, bytes, bool]:
    """What came through both pipes until the program ended or its time was up."""
    got = {report: b"", output: b""}
    end = time.monotonic() + _START
    started = False
    with selectors.DefaultSelector() as ready:
        for pipe in got:
            ready.register(pipe, selectors.EVENT_READ)
        while ready.get_map() and (left := end - time.monotonic()) > 0:
            for key, _ in ready.select(left):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    ready.unregister(key.fd)
                got[key.fd] = (got[key.fd] + piece)[:_KEPT]
            if not started and b"\n" in got[report]:
                started, end = True, time.monotonic() + timeout
    try:
        # A program can close its ends and go on.
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return got[report], got[output], True
    return got[report], got[output], False


def _end(process: subprocess.Popen[bytes]) -> None:
    # While it is not waited for, its id cannot belong to another process.
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _judge(said: bytes, shown: bytes, token: str, late: bool, code: int) -> Outcome:
    lines = said.decode("utf-8", "replace").split("\n")
    if lines[0] != "ready":
        raise SandboxError(lines[0] or "the walled-in Python did not start")
    output = shown.decode("utf-8", "replace")
    end, _, detail = lines[1].partition(" ") if len(lines) > 1 else ("", "", "")
    if end == token:
        return Outcome("passed", output=output)
    if late:
        return Outcome("timeout", output=output)
    if code < 0:
        return Outcome("killed", signal.Signals(-code).name, output)
    if end == "failed" and detail.isidentifier():
        return Outcome("failed", detail[:60], output)
    return Outcome("exited", output=output)
