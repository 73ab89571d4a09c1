"""A plan on the terminal: who trains on what, with which model, and what it costs.

What `distill` shows: progress with rows per second and time left, and the audit as a table.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
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

from fedsdr.cli.printing import plain, say, show_facts, show_table
from fedsdr.cli.progress import PATIENCE
from fedsdr.text.numbers import size

if TYPE_CHECKING:
    from fedsdr.coordinator.job import Watch
    from fedsdr.distill.audit import AuditSummary, ClientAudit
    from fedsdr.jobs.plan.shape import ClientRow, Lengths, Plan


def show_plan(console: Console, plan: Plan) -> None:
    """Everything but the problems. Record text goes to a terminal only, never to a file or pipe."""
    header = (
        "client", "train", "validation", "test", "prompt tokens", "response tokens",
        "trained tokens", "cut", "domains",
    )  # fmt: skip
    title = "clients; tokens: median (longest) of a training row"
    dropped = any(client.left_out for client in plan.clients)
    header = (*header[:-1], "left out", header[-1]) if dropped else header
    show_table(console, title, header, (_client(row, dropped) for row in plan.clients))
    show_facts(console, "model", _model(plan))
    show_facts(console, "algorithm", _algorithm(plan))
    show_facts(console, "cost", _cost(plan))
    for note in plan.notes:
        say(console, f"note: {note}")
    if plan.example:
        _show_mask(console, plan.example)


def _show_mask(console: Console, example: Sequence[tuple[str, bool]]) -> None:
    """Read and trained parts in turn. Without a terminal their lengths, and nothing they say."""
    parts = [(on, [text for text, _ in tokens]) for on, tokens in groupby(example, lambda t: t[1])]
    counts = ", ".join(f"{len(texts)} {'trained' if on else 'read'}" for on, texts in parts)
    say(console, f"one example as it is trained on, in tokens: {counts}", "bold")
    if not console.is_terminal:
        say(console, "its text is shown on a terminal only")
        return
    coloured = console.color_system is not None
    legend = "the trained parts are underlined" if coloured else "the trained parts stand in ⟦ ⟧"
    say(console, f"{legend}:")
    shown = Text()
    for on, texts in parts:
        text = plain("".join(texts)).plain
        marked = f"⟦{text}⟧" if on and not coloured else text
        shown.append(marked, "underline green" if on else "dim")
    console.print(shown)


def _client(client: ClientRow, dropped: bool) -> tuple[str, ...]:
    return (
        client.client_id,
        str(client.train),
        str(client.validation),
        str(client.test),
        _lengths(client.prompt),
        _lengths(client.response),
        f"{client.trained_tokens:,}",
        str(client.truncated),
        *([str(client.left_out)] if dropped else []),
        ", ".join(f"{domain} {count}" for domain, count in client.domains.items()),
    )


def _lengths(lengths: Lengths) -> str:
    return f"{lengths.median:.0f} ({lengths.longest})"


def _model(plan: Plan) -> Iterable[tuple[str, str]]:
    model = plan.model
    yield "path", model.path
    yield "parameters", f"{model.parameters:,} in {model.dtype} on {model.device}"
    if model.digest:
        yield "digest", model.digest[:16]
    yield "chat template", model.template
    yield "layers with branches", str(len(model.layers))
    for branch, count in model.trainable.items():
        yield f"parameters of {branch}", f"{count:,} per client"


def _algorithm(plan: Plan) -> Iterable[tuple[str, str]]:
    algorithm = plan.algorithm
    yield "name", algorithm.name
    for number, stage in enumerate(algorithm.stages, 1):
        yield f"stage {number}", stage
    yield "sent", algorithm.shared
    yield "stays with the client", algorithm.stays
    for name, mix in algorithm.deploys.items():
        yield f"{name} model", mix


def _cost(plan: Plan) -> Iterable[tuple[str, str]]:
    traffic, memory, work = plan.traffic, plan.memory, plan.rewriting
    yield "rounds", f"{plan.rounds}, {plan.sampled} clients each, {plan.stack} side by side"
    up, down = size(traffic.up_client), size(traffic.down_client)
    yield "bytes of a client in a round", f"{up} up, {down} down"
    yield "bytes of a round", f"{size(traffic.up_round)} up, {size(traffic.down_round)} down"
    yield "bytes in all", size(traffic.total)
    yield "optimiser steps", f"{plan.total_steps:,}"
    if work.examples:
        yield "rewrites", f"{work.examples:,} rows, {work.drafts:,} drafts at most"
    counted = f"base {size(memory.base)}, branches {size(memory.branches)}"
    yield "memory", f"about {size(memory.total)}: {counted}, activations {size(memory.activations)}"
    if plan.duration is not None:
        yield "time, estimated", _duration(plan.duration.rewriting, plan.duration.training)


def _duration(rewriting: float | None, training: float) -> str:
    text = f"{_seconds(training)} of training"
    return f"{_seconds(rewriting)} of rewriting, {text}" if rewriting else text


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def rewriting_watch(console: Console) -> Generator[Watch]:
    """A bar on a terminal; elsewhere a line now and then, and one at the end."""
    from fedsdr.coordinator.job import Watch

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
