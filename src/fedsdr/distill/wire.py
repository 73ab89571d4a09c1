"""Bytes to a server and back, all of one request before one deadline.

The HTTP is httpcore's. What it waits for goes through here: a name, a connection, a handshake, a
byte sent or received. Each wait is cut to what is left of the request's time, so that a server
that sends a little every second, for ever, wins nothing; nor does one that sends much.
"""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Any

import httpcore

LARGEST_ANSWER = 8 << 20  # bytes received for one request: headers, chunks, all of it
LONGEST = 86_400.0  # seconds that one wait may last: more is no number for a socket

Addresses = list[tuple[Any, ...]] | OSError


class TooLate(Exception):
    """The time of this request is up, or nobody waits for it any more."""


class TooLarge(Exception):
    """The server sent more than an answer can be."""


class NotHere(Exception):
    """A name of this machine that leads elsewhere."""


class Wire(httpcore.NetworkBackend):
    """One connection at a time. `here`: only this machine's own addresses are connected to."""

    def __init__(self, here: bool) -> None:
        self._here = here
        self._deadline = self._received = 0.0
        self._stream: httpcore.NetworkStream | None = None
        self._cut = False
        self.ended = False  # the server has closed its end

    def begin(self, seconds: float) -> None:
        """Another request."""
        self._deadline, self._received = time.monotonic() + seconds, 0
        self.ended = False

    def cut(self) -> None:
        """From another thread: whatever is waited for, now or later, is not."""
        self._cut = True
        if self._stream is not None:
            _shut(self._stream)

    def left(self) -> float:
        if self._cut or (left := self._deadline - time.monotonic()) <= 0:
            raise TooLate
        return min(left, LONGEST)

    def count(self, size: int) -> None:
        self.ended = size == 0
        self._received += size
        if self._received > LARGEST_ANSWER:
            raise TooLarge

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _addresses(host, port, self.left())
        if self._here and not all(ip_address(str(a[0])).is_loopback for a in addresses):
            raise NotHere
        failure = OSError("no address")
        for address in addresses:
            try:
                with _plainly():
                    stream = httpcore.SyncBackend().connect_tcp(
                        str(address[0]), port, self.left(), None, socket_options
                    )
            except OSError as error:
                failure = error
            else:
                return Stream(self, self.holds(stream))
        raise failure

    def holds(self, stream: httpcore.NetworkStream) -> httpcore.NetworkStream:
        self._stream = stream
        if self._cut:  # in between
            _shut(stream)
        return stream


class Stream(httpcore.NetworkStream):
    def __init__(self, wire: Wire, stream: httpcore.NetworkStream) -> None:
        self._wire, self._stream = wire, stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _plainly():
            piece = self._stream.read(max_bytes, self._wire.left())
        self._wire.count(len(piece))
        return piece

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        sock: socket.socket = self._stream.get_extra_info("socket")
        rest = memoryview(buffer)
        try:
            while rest:  # one by one: a server may take in very little at a time
                sock.settimeout(self._wire.left())
                rest = rest[sock.send(rest) :]
        except TimeoutError:
            raise TooLate from None
        except OSError as error:
            raise httpcore.WriteError from error  # by which httpcore looks for an early answer

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        with _plainly():
            secure = self._stream.start_tls(ssl_context, server_hostname, self._wire.left())
        return Stream(self._wire, self._wire.holds(secure))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _addresses(host: str, port: int, seconds: float) -> list[tuple[Any, ...]]:
    """The C library's search for a name cannot be stopped, only left behind."""
    results = queue.SimpleQueue[Addresses]()

    def look() -> None:
        try:
            kind = socket.SOCK_STREAM
            # Bytes: as text, a name of 64 characters and more raises what is no OSError.
            results.put([a[4] for a in socket.getaddrinfo(host.encode("ascii"), port, type=kind)])
        except OSError as error:
            results.put(error)

    threading.Thread(target=look, daemon=True).start()
    try:
        result = results.get(timeout=seconds)
    except queue.Empty:
        raise TooLate from None
    if isinstance(result, OSError):
        raise result
    return result


@contextmanager
def _plainly() -> Generator[None]:
    """The system's own error, whose cause httpcore would hide."""
    try:
        yield
    except httpcore.TimeoutException:
        raise TooLate from None
    except httpcore.NetworkError as error:
        raise (error.__cause__ or error) from None


def _shut(stream: httpcore.NetworkStream) -> None:
    with suppress(OSError):  # closed already
        # Not an SSLSocket's own, which would take its state from the thread that reads.
        socket.socket.shutdown(stream.get_extra_info("socket"), socket.SHUT_RDWR)
