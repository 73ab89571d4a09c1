"""How long a connection may keep the server waiting, and how many may at once.

Only a reader who has shown the token may take time: live pages hold a connection each for as long
as they are open. Anyone else has to ask for something, whole, within `PATIENCE`.
"""

from __future__ import annotations

import asyncio
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

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
