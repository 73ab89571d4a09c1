"""The server itself: a socket on this machine only, and an end that leaves nothing hanging."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from fedsdr.errors import RunError
from fedsdr.report.gate import TOKEN, Gate
from fedsdr.report.patience import Patient
from fedsdr.report.serve import live_pages
from fedsdr.report.watch import Library


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
