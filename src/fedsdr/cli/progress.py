"""Progress of a run: bars on a terminal, plain lines elsewhere.

with progress_watch(console, rounds=10, title="FedSD") as watch:
    fedsdr.run(recipe, "runs/first", watch)
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedsdr.cli.printing import say, size

if TYPE_CHECKING:
    from fedsdr.assembly import Watch

PATIENCE = 10.0  # seconds without news, after which a plain line says how far it is
MEASURES_SHOWN = 3  # of each mix, in a round's line


@contextmanager
def progress_watch(console: Console, rounds: int = 0, title: str = "") -> Generator[Watch]:
    """Shows what happens inside the `with` block; without rounds, no bar and no lines for them."""
    from fedsdr.assembly import Watch

    if not console.is_terminal:
        lines = _Lines(console, rounds, title)
        yield Watch(lines.advance, lines.told, lines.note)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bars = _Bars(console, rounds, title, progress)
        yield Watch(bars.advance, bars.told, bars.note)


def round_line(row: Mapping[str, Any], rounds: int) -> str:
    """One row of rounds.jsonl in a line."""
    scores = [
        f"{mix}: " + ", ".join(f"{m} {v:.3f}" for m, v in list(found.items())[:MEASURES_SHOWN])
        for mix, found in row["validation"].items()
        if found
    ]
    parts = [
        f"round {row['round']:>{len(str(rounds))}}/{rounds}",
        f"loss {row['loss']:.4f}",
        *scores,
        f"{size(row['bytes_up'])} up, {size(row['bytes_down'])} down",
    ]
    return " | ".join(parts)


@dataclass(slots=True)
class _Lines:
    console: Console
    rounds: int
    title: str
    last_news: float = field(default_factory=lambda: time.monotonic())

    def advance(self, what: str, done: int, total: int) -> None:
        """Silent as long as rounds follow each other quickly."""
        if time.monotonic() - self.last_news >= PATIENCE:
            self.note(f"{what}: {done} of {total}")

    def told(self, row: Mapping[str, Any]) -> None:
        self.note(round_line(row, self.rounds))
        for reason in row["refused"]:
            self.note(f"  {reason}")

    def note(self, text: str) -> None:
        say(self.console, f"{self.title}: {text}" if self.title else text)
        self.last_news = time.monotonic()


class _Bars(_Lines):
    """A bar for the rounds and one for what is going on; notes and rounds scroll by above them."""

    def __init__(self, console: Console, rounds: int, title: str, progress: Progress) -> None:
        super().__init__(console, rounds, title)
        self.progress = progress
        name = f"{title} rounds".strip()
        self.round_bar = progress.add_task(name, total=rounds) if rounds else None
        self.work_bar: TaskID | None = None

    def advance(self, what: str, done: int, total: int) -> None:
        if self.work_bar is None:
            self.work_bar = self.progress.add_task(what, total=total)
        elif self.progress.tasks[-1].description != what:
            self.progress.reset(self.work_bar, description=what)
        self.progress.update(self.work_bar, completed=done, total=total)

    def told(self, row: Mapping[str, Any]) -> None:
        super().told(row)
        if self.round_bar is not None:
            self.progress.update(self.round_bar, completed=row["round"])
