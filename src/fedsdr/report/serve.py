"""The pages of the report, live: each is made anew when its run changed, and pages hear of that.

    /                       all runs of the folder, to sort, filter and compare
    /run/ID                 the report of one run
    /compare?run=ID&run=ID  of several
    /events?run=ID&seen=…   server-sent events: one line for each change of those runs, or of any

There is no other address, and none of these changes anything.
"""

from __future__ import annotations

import html
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import urlencode

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fedsdr.errors import FedsdrError
from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.runs_page import render_runs
from fedsdr.report.watch import Library, UnknownRun

LOOK_EVERY = 1.0  # seconds
# What making a page took, times this, passes before its next change is told: a page that takes long
# must not keep a core from the training that it shows.
REST = 10.0
HEARTBEAT = 15.0
KEPT = 6  # pages in memory
GONE = "gone"
EVENTS = "text/event-stream"
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"')


def live_pages(
    library: Library,
    include_texts: bool = False,
    ended: Callable[[], bool] = lambda: False,
    look_every: float = LOOK_EVERY,
) -> Starlette:
    """Without the gate (`gate.py`), which every server puts before it."""
    pages = Pages(library, include_texts)

    def runs(request: Request) -> Response:
        return _page(pages.runs())

    def run(request: Request) -> Response:
        return _page(pages.report([request.path_params["id"]]))

    def compare(request: Request) -> Response:
        chosen = list(dict.fromkeys(request.query_params.getlist("run")))
        return _page(pages.report(chosen) if chosen else pages.runs())

    async def events(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type=EVENTS)
        chosen = request.query_params.getlist("run")
        seen = request.headers.get("last-event-id") or request.query_params.get("seen", "")
        return StreamingResponse(changes(chosen, seen), media_type=EVENTS)

    async def changes(chosen: Sequence[str], seen: str) -> AsyncGenerator[str]:
        yield "retry: 2000\n\n"
        last_word = time.monotonic()
        while not ended():
            now = await run_in_threadpool(pages.stamp, chosen)
            if now != seen:
                yield f"id: {now}\ndata: {now}\n\n"
                seen, last_word = now, time.monotonic()
            elif time.monotonic() - last_word > HEARTBEAT:
                yield ": still here\n\n"
                last_word = time.monotonic()
            rest = time.monotonic() + max(look_every, REST * pages.seconds.get(tuple(chosen), 0.0))
            while time.monotonic() < rest and not ended():
                await anyio.sleep(min(look_every, 0.25))

    def refused(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", 404 if isinstance(error, UnknownRun) else 500)

    return Starlette(
        routes=[
            Route("/", runs),
            Route("/run/{id}", run),
            Route("/compare", compare),
            Route("/events", events),
        ],
        exception_handlers={FedsdrError: refused},
    )


@dataclass(slots=True)
class Pages:
    """Made when asked for, and kept while their runs stay as they are."""

    library: Library
    include_texts: bool
    seconds: dict[tuple[str, ...], float] = field(
        default_factory=lambda: dict[tuple[str, ...], float]()
    )
    kept: OrderedDict[tuple[str, ...], tuple[str, str]] = field(
        default_factory=lambda: OrderedDict[tuple[str, ...], tuple[str, str]]()
    )
    making: Lock = field(default_factory=lambda: Lock())

    def stamp(self, chosen: Sequence[str]) -> str:
        try:
            return self.library.stamp(chosen)
        except UnknownRun:
            return GONE  # for now: a run that is begun again in the same directory has the same id

    def runs(self) -> str:
        def make(options: PageOptions) -> str:
            return render_runs(self.library, options)

        return self._made([], make)

    def report(self, chosen: Sequence[str]) -> str:
        def make(options: PageOptions) -> str:
            places = self.library.find(chosen)
            return render_report([self.library.record(p) for p in places], options)

        return self._made(chosen, make)

    def _made(self, chosen: Sequence[str], make: Callable[[PageOptions], str]) -> str:
        key = tuple(chosen)
        with self.making:
            # Taken before anything is read: what changes meanwhile is told as a change.
            stamp, began = self.library.stamp(chosen), time.monotonic()
            if key in self.kept and self.kept[key][0] == stamp:
                self.kept.move_to_end(key)
                return self.kept[key][1]
            address = "/events?" + urlencode([*(("run", id) for id in chosen), ("seen", stamp)])
            made = make(PageOptions(include_texts=self.include_texts, live=address))
            self.kept[key], self.seconds[key] = (stamp, made), time.monotonic() - began
            while len(self.kept) > KEPT:
                self.kept.popitem(last=False)
            return made


def _page(text: str) -> Response:
    """With the page's own policy as a header too, where it can also say who may frame it."""
    match = POLICY.search(text)
    policy = html.unescape(match[1]) if match else "default-src 'none'"
    return HTMLResponse(
        text, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
    )
