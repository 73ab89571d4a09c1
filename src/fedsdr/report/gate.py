"""Who may look: requests that only read, from a browser on this machine, with this server's token.

What is refused learns nothing, not even which addresses exist.

How long a connection may keep the server waiting, and how many may at once.

Only a reader who has shown the token may take time: live pages hold a connection each for as long
as they are open. Anyone else has to ask for something, whole, within `PATIENCE`.

The server itself: a socket on this machine only, and an end that leaves nothing hanging.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedsdr.errors import RunError
from fedsdr.report.serve import live_pages
from fedsdr.report.watch import Library

PATIENCE = 10.0  # seconds for a request, from the connection or the last answer on
AT_ONCE = 100  # connections
KNOWN = "fedsdr.known"  # in the scope of a request with the token


class Patient(H11Protocol):
    """A connection. One too many is made room for by the one that has kept it waiting longest."""

    since = 0.0
    alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.wait()
        if len(self.connections) > AT_ONCE:
            others = [c for c in self.connections if isinstance(c, Patient)]
            idle: list[Patient] = [c for c in others if not c.reading()]
            min(idle, key=lambda c: c.since).leave()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.wait()

    def wait(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
        self.since = time.monotonic()
        self.alarm = self.loop.call_later(PATIENCE, self.lose_patience)

    def lose_patience(self) -> None:
        if not self.reading():
            self.leave()

    def reading(self) -> bool:
        """Whether it is answering one who has the token."""
        answering = bool(self.cycle) and not self.cycle.response_complete  # None before the first
        return answering and KNOWN in self.scope

    def leave(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


METHODS = ("GET", "HEAD")
TOKEN = "token"  # in the address that is opened first; a cookie from then on
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """Stands before the pages. `hosts` are the names by which this machine calls itself: a page
    elsewhere whose name was made to point here (DNS rebinding) brings its own."""

    app: ASGIApp
    token: str
    hosts: Collection[str]
    cookie: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing here speaks anything else

        refusal = self._refusal(Request(scope))
        if refusal is None or refusal.status_code < 400:
            scope[KNOWN] = True

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if KNOWN not in scope:
                    headers["Connection"] = "close"
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        if not self._is_here(request.headers):
            return PlainTextResponse("This page is for this machine only.\n", 403)
        if request.method not in METHODS:
            allowed = {"Allow": ", ".join(METHODS)}
            return PlainTextResponse("Nothing can be changed here.\n", 405, allowed)
        if (given := request.query_params.get(TOKEN)) is not None and self._is_token(given):
            opened = RedirectResponse("/", 303)
            opened.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return opened
        if given is None and self._is_token(request.cookies.get(self.cookie, "")):
            return None
        return PlainTextResponse(
            "Open the address that `fedsdr serve` printed: it holds the token.\n", 403
        )

    def _is_here(self, headers: Headers) -> bool:
        named = headers.getlist("host")
        return len(named) == 1 and _without_port(named[0]) in self.hosts

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isascii() and port.isdigit() else host


@dataclass(frozen=True, slots=True)
class Server:
    """Bound, and not yet answering: `run` does, until it is stopped."""

    address: str  # with the token
    server: uvicorn.Server
    socket: socket.socket

    def run(self) -> None:
        with self.socket, suppress(KeyboardInterrupt):  # uvicorn ends by itself, then raises it
            self.server.run(sockets=[self.socket])

    def stop(self) -> None:
        self.server.should_exit = True


def listen(folder: Path, host: str, port: int, include_texts: bool = False) -> Server:
    """Ready to serve the runs in a folder to browsers on this machine."""
    library, bound = Library.open(folder), _bind(loopback(host), port)
    number = bound.getsockname()[1]
    token = secrets.token_urlsafe(32)
    ended: list[Callable[[], bool]] = []
    pages = live_pages(library, include_texts, lambda: any(has() for has in ended))
    shown = f"[{host}]" if ":" in host else host
    gate = Gate(pages, token, {shown, "localhost", "127.0.0.1", "[::1]"}, f"fedsdr-{number}")
    server = uvicorn.Server(
        uvicorn.Config(
            gate,
            access_log=False,  # the first line would hold the token
            date_header=False,
            http=Patient,
            interface="asgi3",
            lifespan="off",
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            ws="none",
        )
    )
    ended.append(lambda: server.should_exit)
    return Server(f"http://{shown}:{number}/?{TOKEN}={token}", server, bound)


def loopback(host: str) -> str:
    """The address itself, if only this machine reaches it."""
    with suppress(ValueError):
        if ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback:
            return "127.0.0.1" if host == "localhost" else host
    raise RunError(
        f"--host {host}: runs are shown on this machine only (127.0.0.1, ::1, localhost); from "
        "another, forward the port: ssh -L 8765:localhost:8765 THIS-MACHINE"
    )


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that ended just now
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise RunError(
            f"port {port} of {host} cannot be used ({error.strerror}): another `fedsdr serve` may "
            "have it; name another with --port, or any free one with --port 0"
        ) from error
    return bound
