"""`sweep`: methods × settings × seeds from one file."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedsdr.cli.printing import AsJson, Changes, complain, print_json, say, show_table, talk
from fedsdr.cli.progress import progress_watch
from fedsdr.errors import RecipeError

if TYPE_CHECKING:
    from fedsdr.coordinator.job import Watch
    from fedsdr.jobs.sweep import SettingTable, Sweep, SweepResult

ACROSS = 3  # measures side by side: with mean ± sd, more do not fit a terminal


def sweep(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe with a key `sweep`, such as recipes/sweep-example.yaml.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The sweep's folder, new or begun before.")
    ],
    changes: Changes = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="LABEL", help="This method alone; may be repeated."),
    ] = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="I/N", help="The I-th of N parts, from 0/N on.")
    ] = "0/1",
    tune_only: Annotated[bool, typer.Option("--tune-only", help="Tune, and stop there.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the cells again that failed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells, done and open; train nothing.")
    ] = False,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write the tables there, as a page."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a matrix of methods, settings and seeds, and compare.

    RECIPE has one more key, `sweep`. Stopped, the same command goes on; processes may share DIR.

    \b
    Example:  fedsdr sweep recipes/sweep-example.yaml --out runs/sweep
    """
    from fedsdr.jobs.sweep import Observer, read_sweep, run_sweep, survey, sweep_table
    from fedsdr.runs.places import page_at

    chosen, part = read_sweep(recipe, changes or ()), _part(shard)
    console, labels = talk(as_json), only or ()
    if dry_run:
        _show_survey(console, survey(chosen, out, labels), as_json)
        return

    def watching(title: str, rounds: int) -> AbstractContextManager[Watch]:
        return progress_watch(console, rounds, title)

    page = None if markdown is None else page_at(markdown, ".md")
    observer = Observer(lambda text: say(console, text), watching)
    with _resumable(out):
        result = run_sweep(
            chosen,
            out,
            observer,
            only=labels,
            shard=part,
            tune_only=tune_only,
            retry_failed=retry_failed,
        )
    tables = sweep_table(chosen, result.records, out)
    if page is not None:
        command = ["fedsdr", "sweep", str(recipe), "--out", str(out)]
        command += [word for change in changes or () for word in ("--set", change)]
        command += [word for label in labels for word in ("--only", label)]
        command += ["--markdown", str(markdown)]
        _write_page(page, chosen, result, tables, shlex.join(command))
    if as_json:
        _print(chosen, result, tables, out)
    else:
        _show(console, result, tables)
    _tell_rest(result, tune_only)
    if result.failed:
        raise typer.Exit(1)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
    mine, of = map(int, match.groups()) if match else (0, 0)
    if mine >= of:
        raise RecipeError(f"--shard {text!r}: write it as I/N with I from 0 to N - 1, such as 0/2")
    return mine, of


def _show_survey(console: Console, rows: Sequence[tuple[str, str]], as_json: bool) -> None:
    counts = Counter(state for _, state in rows)
    if as_json:
        print_json({"cells": dict(rows), "counts": counts})
        return
    for name, state in rows:
        say(console, f"{state:>18}  {name}")
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    say(console, f"{len(rows)} cells: {summary}")


def _show(console: Console, result: SweepResult, tables: Sequence[SettingTable]) -> None:
    from fedsdr.jobs.sweep.cells import point_words
    from fedsdr.jobs.sweep.table import COST_HEADER, cost_cells, score_cells

    for tuned in result.tuned:
        if tuned.pick is not None:
            say(console, f"tuned {tuned.name}: {point_words(tuned.pick)}")
        for line in (*tuned.edges, *tuned.losers):
            say(console, f"  {line}")
    for table in tables:
        where = "" if table.setting == "all" else f"{table.setting}: "
        title = f"{where}test scores, mean ± sd over seeds"
        rows = score_cells(table)
        for first in range(0, len(table.measures), ACROSS):
            shown = slice(first, first + ACROSS)
            header = ("method", "model", "n", *table.measures[shown])
            show_table(console, title, header, [(*row[:3], *row[3:][shown]) for row in rows])
        costs = [(label, *cost_cells(cost)) for label, cost in table.costs.items()]
        show_table(console, f"{where}cost, mean per run", ("method", *COST_HEADER), costs)
        for sentence in table.sentences:
            say(console, sentence)


def _print(chosen: Sweep, result: SweepResult, tables: Sequence[SettingTable], out: Path) -> None:
    from fedsdr.jobs.sweep.records import tuning_json

    print_json(
        {
            "directory": str(out),
            "recipe_sha256": chosen.digest,
            "tuning": tuning_json(chosen, result.tuned),
            "settings": [table.to_json() for table in tables],
            "cells": {cell.name: record for cell, record in result.records},
            "failed": result.failed,
            "waiting": result.waiting,
            "open": result.open,
        }
    )


def _write_page(
    path: Path,
    chosen: Sweep,
    result: SweepResult,
    tables: Sequence[SettingTable],
    command: str,
) -> None:
    from fedsdr.jobs.sweep.table import render_markdown
    from fedsdr.runs.files import write_text_atomic

    write_text_atomic(path, render_markdown(chosen, result, tables, command))


def _tell_rest(result: SweepResult, tune_only: bool) -> None:
    if result.waiting:
        more = f" and {len(result.waiting) - 10} more" if len(result.waiting) > 10 else ""
        shown = ", ".join(result.waiting[:10])
        complain(f"these tuning cells are still to come: {shown}{more}", "")
    if result.open and not tune_only:
        complain(f"cells left to other processes, or being run: {len(result.open)}", "")
    if result.waiting or (result.open and not tune_only):
        complain("run again when the other shard is done", "")
    if result.failed:
        for line in result.failed:
            complain(line, "failed: ")
        complain("run again with --retry-failed to try them once more", "")


@contextmanager
def _resumable(out: Path) -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt:
        complain(f"stopped; the same command with --out {shlex.quote(str(out))} goes on", "")
        raise typer.Exit(130) from None
