"""A small server of OpenAI's protocol, on this machine: it rewrites, and misbehaves on demand.

What it is asked is counted by the reference answer in the prompt. Real rewrites are replayed where
they are at hand; otherwise it says the reference after a few words of its own.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REFERENCE = re.compile(r"Reference answer:\n(.*)\n\n(?:Using|Stay)", re.DOTALL)


@dataclass
class Reply:
    """As the protocol has it, unless something else is given."""

    text: str | None = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # in place of the protocol's
    promised: int | None = None  # Content-Length, where it lies
    delay: float = 0.0
    finish: Any = "stop"


Script = Callable[[int, str], Reply]  # the number of the request, from 1, and the reference


@dataclass
class Server:
    script: Script
    replay: Mapping[str, str]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def own_words(self, reference: str) -> str:
        return self.replay.get(reference, f"In short: {reference}")


def prompt_of(body: Mapping[str, Any]) -> Any:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def reference_of(body: Mapping[str, Any]) -> str:
    asked = prompt_of(body)
    found = REFERENCE.search(asked) if isinstance(asked, str) else None  # not if it is tokens
    return found[1] if found else ""


@contextmanager
def serving(
    script: Script = lambda number, reference: Reply(), replay: Mapping[str, str] | None = None
) -> Iterator[Server]:
    state = Server(script, replay or {})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one packet: with Nagle's algorithm, two would wait for each other.
        wbufsize = -1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reference = reference_of(body)
            with state.lock:
                state.bodies.append(body)
                state.headers.append(dict(self.headers))
                state.paths.append(self.path)
                state.asked[reference] += 1
                number = len(state.bodies)
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                reply = state.script(number, reference)
                time.sleep(reply.delay)
            finally:
                with state.lock:
                    state.at_once -= 1
            with suppress(OSError):  # who asked may be gone
                self._send(reply, body, reference)

        def _send(self, reply: Reply, body: dict[str, Any], reference: str) -> None:
            text = state.own_words(reference) if reply.text is None else reply.text
            said = {"text": text} if "prompt" in body else {"message": {"content": text}}
            choice = {"index": 0, "finish_reason": reply.finish, **said}
            data = json.dumps({"choices": [choice]}).encode() if reply.body is None else reply.body
            if reply.status == 200:
                state.answered[reference] += 1
            self.send_response(reply.status)
            sent = {"Content-Type": "application/json", **reply.headers}
            for name, value in sent.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(reply.promised or len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
            if reply.promised:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that was killed

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
