"""Conversations rendered by a chat template, within a time and a memory.

fedsdr's own templates are rendered here; any other, in a process beside this one
(template_language.py), which is ended when it takes too long. It is started when it is first
needed, and ends with this one.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fedsdr.errors import ModelError
from fedsdr.model import template_language
from fedsdr.model.fresh import CHAT_TEMPLATE
from fedsdr.text.templates import BOS, TEMPLATES

WAIT = 60.0  # seconds by the clock: another process may have the processor
TIMES, ROOM = 8, 1 << 20  # as many characters may come out for each that went in, and so many more
NEEDED = ("PATH", "LD_LIBRARY_PATH", "LANG")  # of our environment, where secrets stand too
GUARD = "\udfff"  # half of a surrogate pair, which is no text: no record can hold it
HALF = re.compile("[\ud800-\udfff]")
OTHER = "set model.chat_template: plain, or name another one there"
OURS = frozenset(
    (CHAT_TEMPLATE, *(b + named.text for named in TEMPLATES.values() for b in ("", BOS)))
)


class TemplateFailure(Exception):
    """The template refuses the conversation, or is no template. What it says could quote it."""


def render_chat(template: str, variables: Mapping[str, Any], size: int) -> str:
    """`size`: characters that the conversation itself has."""
    if template in OURS:
        try:
            return template_language.compiled(template).render(variables)
        except Exception as error:  # as the process beside would
            raise TemplateFailure(template_language.failure_text(error)) from None
    request = {"template": template, "variables": variables, "most": TIMES * size + ROOM}
    reply = _BESIDE.ask(json.dumps(request).encode() + b"\n")
    if (text := reply.get("text")) is None:
        raise TemplateFailure(reply["failed"])
    if HALF.search(text.replace(GUARD, "")):
        raise ModelError(f"the chat template writes half of a surrogate pair; {OTHER}")
    return text


@dataclass(slots=True)
class _Beside:
    """The process, if it runs. A fork of ours has pipes to the same one, and starts its own."""

    process: subprocess.Popen[bytes] | None = None
    owner: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, request: bytes) -> Mapping[str, str]:
        with self.lock:
            if self.process is None or self.owner != os.getpid():
                self.process, self.owner = _started(), os.getpid()
            try:
                line = _exchanged(self.process, request)
            except BaseException:  # an interrupt too: its answer would be taken for the next one's
                self._end()
                raise
        return cast("dict[str, str]", json.loads(line))

    def _end(self) -> None:
        process, self.process = self.process, None
        assert process is not None
        process.kill()
        process.wait()


_BESIDE = _Beside()


def _started() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in NEEDED if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", template_language.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # an interrupt of ours is none of its
    )


def _exchanged(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """One line there, one line back."""
    assert process.stdin is not None
    assert process.stdout is not None
    into, out = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(into, False)
    deadline, waiting, reply = time.monotonic() + WAIT, memoryview(request), bytearray()
    while not reply.endswith(b"\n"):
        left = max(0.0, deadline - time.monotonic())
        ready, free, _ = select.select([out], [into] if waiting else [], [], left)
        try:
            if free:
                waiting = waiting[os.write(into, waiting) :]
            more = os.read(out, 1 << 20) if ready else b""
        except OSError:  # it is gone
            more, ready = b"", [out]
        if not more and (ready or not free):
            raise ModelError(_why(process, bool(ready)))
        reply += more
    return bytes(reply)


def _why(process: subprocess.Popen[bytes], ended: bool) -> str:
    if not ended or process.wait() == -signal.SIGXCPU:
        seconds = template_language.SECONDS
        why = f"the chat template takes longer than {seconds} seconds for one conversation"
    else:
        why = "the chat template asks for too much memory, or nests too deep"
    return f"{why}; {OTHER}"
