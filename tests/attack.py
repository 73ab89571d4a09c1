"""Hostile input by the hundred: each case in a process of its own, under a deadline.

    outcome = attempt(lambda: read_recipe(path))
    outcome.kind   # refused | returned | traceback | hang | died

A case may hang in native code, abort, or fill the memory; the process that tries it is a fork, so
neither ends the tests. `Tally` counts, and says it: `FEDSDR_FUZZ=2000 pytest -s tests/fuzz`
tries that many of each kind (a few dozen where it is not set).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import stat
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fedsdr.errors import FedsdrError

COUNT = int(os.environ.get("FEDSDR_FUZZ", "0"))
SECONDS = 10.0  # what takes longer is a hang
MEMORY = 8 * 2**30  # beyond what the process has mapped already

Kind = Literal["refused", "returned", "traceback", "hang", "died"]


def how_many(usually: int) -> int:
    """Cases to try: `usually` in the suite, as many as $FEDSDR_FUZZ says where it is set."""
    return COUNT or usually


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    text: str  # the message, the traceback, the signal
    value: Any = None  # what came back, where it is JSON
    seconds: float = 0.0


def attempt(action: Callable[[], object], seconds: float = SECONDS) -> Outcome:
    """Run it in a fork: a `FedsdrError` is a refusal, any other exception a traceback."""
    read, write = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.close(read)
        _in_the_child(action, write)
    os.close(write)
    data, late = _until(read, began + seconds)
    os.close(read)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    spent = time.monotonic() - began
    if late:
        return Outcome("hang", f"nothing after {seconds:g} s", None, spent)
    try:
        said = json.loads(data)
    except ValueError:
        ended = os.waitstatus_to_exitcode(status)
        return Outcome("died", f"ended with {ended}", None, spent)
    return Outcome(said["kind"], said["text"], said["value"], spent)


@dataclass(slots=True)
class Tally:
    """What became of the cases of one kind; a test asserts `bad` to be empty at its end."""

    what: str
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def add(self, name: str, outcome: Outcome, may_return: bool = False) -> None:
        """`may_return`: whether the input is in order after all (an oracle's word, not ours)."""
        kind = outcome.kind
        if kind == "returned" and not may_return:
            kind = "silent"
        self.counts[kind] += 1
        if kind not in ("refused", "returned"):
            self.bad.append(f"{name}: {kind} ({outcome.text[-600:]})")

    def note(self, name: str, wrong: str) -> None:
        """Something else that must not be, such as bytes outside the run."""
        self.counts["wrong"] += 1
        self.bad.append(f"{name}: {wrong}")

    def __str__(self) -> str:
        count = sum(self.counts.values()) - self.counts["wrong"]
        kinds = ("refused", "returned", "traceback", "hang", "died", "silent", "wrong")
        said = ", ".join(f"{self.counts[kind]} {kind}" for kind in kinds)
        return f"fuzz {self.what}: {count} cases: {said}"


def snapshot(folder: Path) -> dict[str, str]:
    """Every name below a folder with its kind, mode and content: what must not change."""
    found = dict[str, str]()
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            there = path.lstat()
            if stat.S_ISREG(there.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                content = os.readlink(path) if stat.S_ISLNK(there.st_mode) else ""
            found[str(path.relative_to(folder))] = f"{there.st_mode:o} {content}"
    return found


def _in_the_child(action: Callable[[], object], write: int) -> None:
    """Never returns: what pytest or the tests would do at an exit is the parent's."""
    code = 0
    try:
        signal.alarm(0)
        # Threads that the parent had before the fork are gone, and waiting for them has no end.
        torch.set_num_threads(1)
        torch.set_num_threads = lambda threads: None
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            value = action()
            kind, text = "returned", ""
        except FedsdrError as error:
            kind, text, value = "refused", str(error), None
        except BaseException:
            kind, text, value = "traceback", traceback.format_exc(), None
        try:
            said = json.dumps({"kind": kind, "text": text, "value": value})
        except (TypeError, ValueError):
            said = json.dumps({"kind": kind, "text": text, "value": None})
        data = said.encode(errors="replace")
        while data:
            data = data[os.write(write, data) :]
    except BaseException:
        code = 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def _until(handle: int, deadline: float) -> tuple[bytes, bool]:
    data = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([handle], [], [], left)[0]:
            return data, True
        if not (more := os.read(handle, 1 << 20)):
            return data, False
        data += more
