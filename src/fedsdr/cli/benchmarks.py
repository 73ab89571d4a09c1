"""What `fedsdr evaluate --tasks` and `--merge` print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from fedsdr.cli.printing import figure, say, show_table

if TYPE_CHECKING:
    from fedsdr.evaluate.benchmarks.results import Entry, Results


def show_benchmarks(console: Console, results: Results) -> None:
    """Tasks down, models across; then what limits a figure, then what was forgotten."""
    if not results.entries:
        say(console, "no task is scored yet")
        return
    tasks = list(dict.fromkeys(e.task for e in results.entries))
    mixes = list(dict.fromkeys(e.mix for e in results.entries))
    cells = {(e.task, e.mix): e for e in results.entries}
    rows = [row for task in tasks for row in _rows(task, [cells.get((task, mix)) for mix in mixes])]
    show_table(console, "tasks, score [95 % interval]", ("task", "items", *mixes), rows)
    for task, mix, note in _notes(results.entries):
        say(console, f"{task}, {mix}: {note}")
    for forgot in results.forgetting:
        say(console, forgot.words)


def _rows(task: str, entries: list[Entry | None]) -> Iterator[tuple[str, ...]]:
    items = {str(e.n) for e in entries if e}
    yield (task, "/".join(sorted(items)), *map(_score, entries))
    for measure in dict.fromkeys(m for e in entries if e for m in e.measures):
        values = [e.measures.get(measure) if e else None for e in entries]
        if measure != "empty" or any(values):
            yield (f"  {measure}", "", *map(figure, values))


def _score(entry: Entry | None) -> str:
    if entry is None or entry.score is None or entry.interval is None:
        return figure(entry.score if entry else None)
    low, high = entry.interval
    return f"{entry.score:.3f} [{low:.3f}, {high:.3f}]"


def _notes(entries: Iterable[Entry]) -> Iterator[tuple[str, str, str]]:
    """Each once, with the mixes that it is true of."""
    mixes_of: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        for note in entry.notes:
            mixes_of.setdefault((entry.task, note), []).append(entry.mix)
    for (task, note), mixes in mixes_of.items():
        yield task, ", ".join(mixes), note
