"""Progress of a run: a live table and bars on a terminal, plain lines elsewhere.

with progress_watch(console, rounds=10, title="FedSD") as watch:
    fedsdr.run(recipe, "runs/first", watch)

The rounds of a run as a table in the terminal: one that is going on, or one looked at later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from fedsdr.cli.printing import figure, plain, say
from fedsdr.report.losses import loss_names, losses_of
from fedsdr.report.record import main_measure
from fedsdr.text.numbers import size

if TYPE_CHECKING:
    from fedsdr.coordinator.job import Watch

DIAGNOSTICS = "diagnostics.jsonl"
NAME_WIDTH = 14  # of a client's name


def rounds_table(
    rows: Sequence[Mapping[str, Any]], rounds: int, title: str, drift: Mapping[int, float]
) -> Table:
    """Validation stands in the rounds that were validated; drift where the run measured it. Where
    more than one thing was trained, each loss bears its name, and the caption says on what."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    made.title = plain(title) if title else None
    mixes = dict.fromkeys(
        mix for row in rows for mix, figures in row.get("validation", {}).items() if figures
    )
    measure = main_measure(
        m for row in rows for figures in row.get("validation", {}).values() for m in figures
    )
    drifts = any(row["round"] in drift for row in rows)
    scores = [f"{measure} {mix}" for mix in mixes]
    losses = loss_names(rows)
    main, *others = losses or [""]
    heads = [f"loss {word}" for word in _short(losses)] if others else ["loss"]
    if others:
        captions = (f"{head}: {name}" for head, name in zip(heads, losses, strict=True) if name)
        made.caption, made.caption_justify = plain("; ".join(captions)), "left"
    header = ("round", "clients", heads[0], "highest", "of client", *heads[1:], *scores)
    for name in (*header, *(["drift"] if drifts else []), "up", "down"):
        justify = "left" if name == "of client" else "right"
        made.add_column(plain(name), justify=justify, overflow="ellipsis", no_wrap=True)
    for row in rows:
        worst = max(row.get("losses", {}).items(), key=lambda of: of[1], default=None)
        made.add_row(
            f"{row['round']}/{rounds}" if rounds else str(row["round"]),
            _clients(row),
            _mean(row, main) if others else figure(row["loss"]),
            figure(worst[1]) if worst else "",
            plain(shortened(worst[0])) if worst else "",
            *(_mean(row, name) for name in others),
            *(_score(row, m, measure) for m in mixes),
            *([figure(drift[row["round"]]) if row["round"] in drift else ""] if drifts else []),
            size(row["bytes_up"]),
            size(row["bytes_down"]),
        )
    return made


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


@dataclass(slots=True)
class DriftFile:
    """The clients' drift by round, from a file that grows: what was read is not read again."""

    directory: Path | None
    at: int = 0
    drifts: dict[int, float] = field(default_factory=lambda: dict[int, float]())

    def by_round(self) -> Mapping[int, float]:
        if self.directory is None:
            return self.drifts
        try:
            with (self.directory / DIAGNOSTICS).open("rb") as file:
                file.seek(self.at)
                fresh = file.read()
        except OSError:  # not every run writes one
            return self.drifts
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return self.drifts

    def _take(self, line: bytes) -> None:
        try:
            row: Any = json.loads(line)
            drift = row["branches"]["R"]["drift"]
        except (ValueError, KeyError, TypeError):
            return  # a damaged row is the report's to tell, not a reason to stop a run
        if isinstance(drift, int | float):
            self.drifts[cast("int", row["round"])] = float(drift)


def _clients(row: Mapping[str, Any]) -> str:
    lost = len(row["refused"])
    return f"{row.get('clients', '')}" + (f" ({lost} lost)" if lost else "")


def _short(names: Sequence[str]) -> list[str]:
    """What was trained, where that tells them apart: "R" of "R on raw"."""
    short = [name.partition(" on ")[0] for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _mean(row: Mapping[str, Any], name: str) -> str:
    loss = losses_of(row).get(name)
    return "" if loss is None or loss.mean is None else figure(loss.mean)


def _score(row: Mapping[str, Any], mix: str, measure: str) -> str:
    value = row["validation"].get(mix, {}).get(measure)
    return "" if value is None else figure(value)


PATIENCE = 10.0  # seconds without news, after which a plain line says how far it is
MEASURES_SHOWN = 3  # of each mix, in a round's line
ROUNDS_TOGETHER = 7 * 86400.0  # rich forgets a pace after so many seconds; a round may last hours
LINES_BELOW = 9  # the table's title, head and rules, the bars, and a line to breathe


@contextmanager
def progress_watch(
    console: Console, rounds: int = 0, title: str = "", directory: Path | None = None
) -> Generator[Watch]:
    """Shows what happens inside the `with` block; without rounds, no bar and no lines for them.

    From the run's directory comes what the rows do not tell: how far the clients drifted.
    """
    from fedsdr.coordinator.job import Watch

    if not console.is_terminal:
        lines = _Lines(console, rounds, title)
        yield Watch(lines.advance, lines.round_done, lines.note)
        return
    seen = _Seen(console, rounds, title, DriftFile(directory))
    with _TableAndBars(seen) as progress:
        bars = _Bars(console, rounds, title, progress, seen)
        try:
            yield Watch(bars.advance, bars.round_done, bars.note)
        finally:
            progress.stop()
            if seen.rows:
                console.print(seen.table(len(seen.rows)))


def round_line(row: Mapping[str, Any], rounds: int) -> str:
    """One row of rounds.jsonl in a line."""
    scores = [
        f"{mix}: " + ", ".join(f"{m} {v:.3f}" for m, v in list(figures.items())[:MEASURES_SHOWN])
        for mix, figures in row["validation"].items()
        if figures
    ]
    parts = [
        f"round {row['round']:>{len(str(rounds))}}/{rounds}",
        _losses(row),
        *scores,
        f"{size(row['bytes_up'])} up, {size(row['bytes_down'])} down",
    ]
    return " | ".join(parts)


def _losses(row: Mapping[str, Any]) -> str:
    """`loss 1.2345`; `loss 1.2345 (R on raw), 0.5432 (S on rewritten)` where there are several."""
    main, others = f"loss {row['loss']:.4f}", row.get("other_losses") or {}
    if not others:
        return main
    rest = [f"{other['mean']:.4f} ({name})" for name, other in others.items()]
    return ", ".join([f"{main} ({row['loss_of']})", *rest])


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

    def round_done(self, row: Mapping[str, Any]) -> None:
        self.note(round_line(row, self.rounds))
        self.refused(row)

    def refused(self, row: Mapping[str, Any]) -> None:
        for reason in row["refused"]:
            self.note(f"  {reason}")

    def note(self, text: str) -> None:
        say(self.console, f"{self.title}: {text}" if self.title else text)
        self.last_news = time.monotonic()


@dataclass(slots=True)
class _Seen:
    """The rounds told so far, and how they look."""

    console: Console
    rounds: int
    title: str
    drift: DriftFile
    rows: list[Mapping[str, Any]] = field(default_factory=lambda: list[Mapping[str, Any]]())

    def table(self, newest: int) -> RenderableType:
        return rounds_table(self.rows[-newest:], self.rounds, self.title, self.drift.by_round())


class _TableAndBars(Progress):
    """What stands at the foot of the terminal while a run goes on."""

    def __init__(self, seen: _Seen) -> None:
        self.seen = seen
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=seen.console,
            transient=True,
            speed_estimate_period=ROUNDS_TOGETHER,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.seen.rows:
            yield self.seen.table(max(3, self.console.height - LINES_BELOW))
        yield from super().get_renderables()


class _Bars(_Lines):
    """A bar for the rounds and one for what is going on; notes scroll by above the table."""

    def __init__(
        self, console: Console, rounds: int, title: str, progress: Progress, seen: _Seen
    ) -> None:
        super().__init__(console, rounds, title)
        self.progress, self.seen = progress, seen
        name = plain(f"{title} rounds".strip()).plain
        self.round_bar = progress.add_task(name, total=rounds) if rounds else None
        self.work_bar: TaskID | None = None

    def advance(self, what: str, done: int, total: int) -> None:
        what = plain(what).plain
        if self.work_bar is None:
            self.work_bar = self.progress.add_task(what, total=total)
        elif self.progress.tasks[-1].description != what:
            self.progress.reset(self.work_bar, description=what)
        self.progress.update(self.work_bar, completed=done, total=total)

    def round_done(self, row: Mapping[str, Any]) -> None:
        if self.round_bar is not None:
            if not self.seen.rows and row["round"] > 1:
                # Resumed: the rounds before took this process no time, and say nothing of its pace.
                self.progress.reset(self.round_bar, completed=row["round"] - 1)
            self.progress.update(self.round_bar, completed=row["round"])
        self.seen.rows.append(row)
        self.refused(row)
