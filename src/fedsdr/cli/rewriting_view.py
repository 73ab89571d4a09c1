"""What `distill` shows: progress with rows per second and time left, and the audit as a table."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fedsdr.cli.printing import say, show_table
from fedsdr.cli.progress import PATIENCE

if TYPE_CHECKING:
    from fedsdr.coordinator.observer import Watch
    from fedsdr.distill.audit import AuditSummary, ClientAudit


@contextmanager
def rewriting_watch(console: Console) -> Generator[Watch]:
    """A bar on a terminal; elsewhere a line now and then, and one at the end."""
    from fedsdr.coordinator.observer import Watch

    if not console.is_terminal:
        lines = _Lines(console)
        yield Watch(lines.advance, note=lambda text: say(console, text))
        lines.tell()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("rewriting rows", total=None)

        def advance(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        yield Watch(advance, note=lambda text: say(console, text))


@dataclass(slots=True)
class _Lines:
    """Speed is that since the first news, which tells what was there before."""

    console: Console
    first: tuple[float, int] | None = None
    last_told: float = 0.0
    news: tuple[str, int, int] = field(default=("rewriting rows", 0, 0))

    def advance(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.last_told = (now, done), now
        self.news = (what, done, total)
        if now - self.last_told >= PATIENCE:
            self.tell()

    def tell(self) -> None:
        if self.first is None:
            return
        (what, done, total), self.last_told = self.news, time.monotonic()
        began, before = self.first
        rate = (done - before) / max(1e-3, self.last_told - began)
        speed = f", {rate:.1f} rows/s" if rate else ", all of them known"
        left = f", {_clock((total - done) / rate)} left" if rate and done < total else ""
        say(self.console, f"{what}: {done:,} of {total:,}{speed}{left}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} rows/s" if task.speed else "")


def _clock(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def show_audit(console: Console, summary: AuditSummary) -> None:
    header = (
        "client", "rows", "kept", "fell back", "length ×", "numbers lost", "numbers invented",
        "names lost", "names invented",
    )  # fmt: skip
    everyone = {**summary.clients, "all": summary.overall}
    rows = [(name, *_audit_cells(audit)) for name, audit in everyone.items()]
    show_table(console, "rewrites, in shares of rows; length: median ratio", header, rows)
    for name, audit in summary.clients.items():
        if audit.reasons:
            why = ", ".join(f"{reason} ({count})" for reason, count in audit.reasons.items())
            say(console, f"{name} fell back: {why}")


def _audit_cells(audit: ClientAudit) -> tuple[str, ...]:
    written = audit.written
    shares = (
        written.numbers_lost,
        written.numbers_invented,
        written.names_lost,
        written.names_invented,
    )
    return (
        str(audit.examples),
        f"{audit.kept:.0%}",
        f"{audit.fell_back:.0%}",
        f"{written.length_ratio:.2f}",
        *(f"{share:.0%}" for share in shares),
    )
