"""The list of all runs in a folder, as the live server shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fedsdr.errors import FedsdrError
from fedsdr.report.glance import Glance, glance
from fedsdr.report.numbers import NONE, fixed, size
from fedsdr.report.page import PageOptions, render_page
from fedsdr.report.section import Section
from fedsdr.report.watch import MOST, Library, Place

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
