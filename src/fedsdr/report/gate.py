"""Who may look: requests that only read, from a browser on this machine, with this server's token.

What is refused learns nothing, not even which addresses exist.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedsdr.report.patience import KNOWN

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
