"""The pages of the report, live: each is made anew when its run changed, and pages hear of that.

    /                       all runs of the folder, to sort, filter and compare
    /run/ID                 the report of one run
    /compare?run=ID&run=ID  of several
    /events?run=ID&seen=…   server-sent events: one line for each change of those runs, or of any

There is no other address, and none of these changes anything.

The list of all runs in a folder, as the live server shows it.
"""

from __future__ import annotations

import html
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from threading import Lock
from urllib.parse import urlencode

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fedsdr.errors import FedsdrError
from fedsdr.report.page import PageOptions, render_page, render_report
from fedsdr.report.record import Glance, glance
from fedsdr.report.section import Section
from fedsdr.report.watch import MOST, Library, Place, UnknownRun
from fedsdr.text.numbers import NONE, fixed, size

STATES = ("running", "stopped", "finished", "failed", "purged")
WORDS = {"running": "under way"}
Column = tuple[str, str]  # a measure of a deployed mix


@dataclass(frozen=True, slots=True)
class Head:
    name: str
    look: str = ""  # figure: to the right; wide: left out where there is little room


@dataclass(frozen=True, slots=True)
class Cell:
    """What is read, and by what it is sorted; what is not known stands last either way."""

    text: str = NONE
    key: float | str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    id: str
    name: str
    state: str
    share: float | None = None  # of the rounds that are done
    cells: tuple[tuple[Head, Cell], ...] = ()
    why: str = ""  # it cannot be shown


def render_runs(library: Library, options: PageOptions) -> str:
    """Every run in a line: sorted, filtered and ticked for comparison by the page's script."""
    places = list(library.places().values())
    glances, refused = dict[str, Glance](), dict[str, str]()
    for place in places:
        try:
            glances[place.id] = glance(library.record(place, brief=True))
        except FedsdrError as error:
            refused[place.id] = str(error)
    columns = list(dict.fromkeys((g.measure, mix) for g in glances.values() for mix in g.scores))
    heads = _heads(columns)
    lines = [
        _line(place, glances[place.id], heads, columns)
        if place.id in glances
        else Line(place.id, place.name, "failed", why=refused[place.id])
        for place in places
    ]
    states = [state for state in STATES if any(line.state == state for line in lines)]
    data = {
        "folder": library.root,
        "heads": heads,
        "lines": lines,
        "most": MOST if len(places) == MOST else 0,
        "states": [(state, WORDS.get(state, state)) for state in states],
    }
    sections = [
        Section("tools", "Find and compare", "runs_tools.html.j2", data, ("runs.js",), "runs.css"),
        Section("runs", "Runs", "runs.html.j2", data),
    ]
    title = f"Runs in {library.root.name}"
    return render_page("runs_page.html.j2", title, options, sections, folder=library.root)


def _heads(columns: Sequence[Column]) -> list[Head]:
    return [
        Head("method", "wide"),
        Head("seed", "figure wide"),
        Head("state"),
        Head("round", "figure"),
        Head("loss", "figure"),
        *(Head(f"{measure} {mix}", "figure") for measure, mix in columns),
        Head("up", "figure wide"),
        Head("changed", "figure wide"),
    ]


def _line(place: Place, run: Glance, heads: Sequence[Head], columns: Sequence[Column]) -> Line:
    changed = _changed(place)
    of = f"/{run.rounds}" if run.rounds else ""
    cells = [
        Cell(run.method, run.method),
        Cell() if run.seed is None else Cell(str(run.seed), run.seed),
        Cell(WORDS.get(run.state, run.state), STATES.index(run.state)),
        Cell(f"{run.round}{of}", run.round),
        Cell(fixed(run.loss), run.loss),
        *(_score(run, column) for column in columns),
        Cell(size(run.bytes_up), run.bytes_up),
        Cell(datetime.fromtimestamp(changed).strftime("%Y-%m-%d %H:%M"), changed),
    ]
    share = min(1.0, run.round / run.rounds) if run.rounds else None
    return Line(place.id, place.name, run.state, share, tuple(zip(heads, cells, strict=True)))


def _score(run: Glance, column: Column) -> Cell:
    measure, mix = column
    if measure != run.measure or mix not in run.scores:
        return Cell()
    mark = "" if run.split == "test" else " v"
    return Cell(fixed(run.scores[mix]) + mark, run.scores[mix])


def _changed(place: Place) -> float:
    """When its rounds were last written to."""
    for file in (place.path / "rounds.jsonl", place.path / "run.json", place.path):
        try:
            return file.stat().st_mtime
        except OSError:
            continue
    return 0.0


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
