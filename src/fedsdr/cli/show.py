"""`show`: where a run stands, in a screenful. Nothing in the run is changed, or held up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedsdr.cli.printing import (
    AsJson,
    figure,
    print_json,
    say,
    show_facts,
    show_scores,
    show_table,
    talk,
)
from fedsdr.cli.progress import shortened
from fedsdr.text.numbers import duration, size

if TYPE_CHECKING:
    from fedsdr.report.record import Course, Glance, RunRecord

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN_BLOCKS = "_.-=+*#@"  # where the terminal's encoding has no blocks
SPARKS = 20  # wide
MOST_CLIENTS = 40  # in the table; of more, both ends
BOTH_ENDS = 10


def show(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run's directory, finished or under way, or a folder of runs or of a sweep.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Where a run stands: its main figures, and how each client has fared round by round.

    A folder of runs (a demo's, a sweep's) is shown as a list. Only reads, so a run that is going
    on is not disturbed.

    \b
    Example:  fedsdr show runs/fedsdr-seed1
              fedsdr show runs/demo
    """
    from fedsdr.report.read import read_records
    from fedsdr.report.record import glance

    records = read_records([directory])
    glances = [glance(record) for record in records]
    if len(records) == 1 and records[0].path == directory:
        _show_run(records[0], glances[0], as_json)
    elif as_json:
        print_json({"directory": str(directory), "runs": [asdict(run) for run in glances]})
    else:
        _show_list(talk(), directory, glances, records)


def sparkline(values: Sequence[float], low: float, high: float, blocks: str = BLOCKS) -> str:
    """One block a value, from `low` to `high`; more values than fit are averaged in even parts."""
    parts = min(len(values), SPARKS)
    edges = [round(i * len(values) / parts) for i in range(parts + 1)] if parts else []
    means = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(edges) if b > a]
    top, span = len(blocks) - 1, high - low
    # A flat course stands in the middle: neither good nor bad.
    return "".join(
        blocks[min(top, int((mean - low) / span * len(blocks)))] if span > 0 else blocks[top // 2]
        for mean in means
    )


def _show_run(record: RunRecord, run: Glance, as_json: bool) -> None:
    from fedsdr.report.record import courses

    measure, curves = courses(record)
    if as_json:
        clients: dict[str, dict[str, Any]] = {}
        for course in curves:
            points = {"rounds": course.rounds, "values": course.values}
            clients.setdefault(course.client, {})[course.mix] = points
        facts = {"directory": str(record.path), **asdict(run), "notes": list(record.notes)}
        print_json({**facts, "clients": {"measure": measure, "courses": clients}})
        return
    console = talk()
    show_facts(console, str(record.path), _facts(record, run))
    if run.scores and record.results is not None:
        show_scores(console, "test scores, mean over clients", _all_scores(record))
    elif run.scores:
        show_scores(
            console,
            "last validation, mean over clients",
            {mix: {run.measure: value} for mix, value in run.scores.items()},
        )
    if curves:
        _show_courses(console, measure, curves)
    for note in record.notes:
        say(console, note)
    if record.state == "stopped":
        say(console, f"`fedsdr resume {record.path}` goes on")


def _losses(record: RunRecord, main: float) -> str:
    """`1.2`; `1.2 of R on raw, 0.5 of S on rewritten,` where more than one thing was trained."""
    from fedsdr.report.losses import losses_of

    losses = losses_of(record.rounds[-1]) if record.rounds else {}
    if len(losses) < 2:
        return figure(main)
    parts = (f"{figure(of.mean)} of {name}" for name, of in losses.items() if of.mean is not None)
    return ", ".join(parts) + ","


def _facts(record: RunRecord, run: Glance) -> list[tuple[str, str]]:
    of = f" of {run.rounds}" if run.rounds else ""
    left = "" if run.seconds_left is None else f", about {duration(run.seconds_left)} left"
    facts = [
        ("method", run.method),
        ("seed", "–" if run.seed is None else str(run.seed)),
        ("state", f"{run.state}, round {run.round}{of}{left}"),
        ("sent", f"{size(run.bytes_up)} up, {size(run.bytes_down)} down"),
    ]
    if run.loss is not None:
        facts.insert(3, ("training loss", f"{_losses(record, run.loss)} in the last round"))
    if phases := _phases(record):
        facts.append(("time", ", ".join(f"{duration(s)} {phase}" for phase, s in phases.items())))
    return facts


def _phases(record: RunRecord) -> Mapping[str, float]:
    """Seconds of the run's phases; of those within rounds where that is all there is yet."""
    from fedsdr.report.record import number

    rows = [row for row in record.timings if row.get("round") == 0]
    seconds = dict[str, float]()
    for row in rows if any(row.get("phase") == "rounds" for row in rows) else record.timings:
        phase = str(row.get("phase"))
        seconds[phase] = seconds.get(phase, 0.0) + (number(row.get("seconds")) or 0.0)
    return {phase: total for phase, total in seconds.items() if total >= 0.05}


def _all_scores(record: RunRecord) -> dict[str, dict[str, float]]:
    from fedsdr.report.record import scores_of

    return scores_of((record.results or {}).get("scores"))


def _show_courses(console: Console, measure: str, courses: Sequence[Course]) -> None:
    """Clients down, deployed mixes across; one scale for all, so that lines can be compared."""
    from fedsdr.report.measures import higher_is_better

    every = [value for course in courses for value in course.values]
    low, high = min(every), max(every)
    blocks = BLOCKS if "utf" in console.encoding.lower() else PLAIN_BLOCKS
    mixes = sorted(dict.fromkeys(course.mix for course in courses))
    clients = dict.fromkeys(course.client for course in courses)
    at = {(course.client, course.mix): course for course in courses}
    chosen, left_out = list(clients), 0
    if len(clients) > MOST_CLIENTS:
        last = {c: at[c, mix].values[-1] for mix in mixes for c in clients if (c, mix) in at}
        best_first = sorted(
            clients, key=lambda c: last[c], reverse=higher_is_better(measure) is not False
        )
        chosen = best_first[:BOTH_ENDS] + best_first[-BOTH_ENDS:]
        left_out = len(clients) - len(chosen)

    def cells(client: str, mix: str) -> tuple[str, str, str]:
        if (course := at.get((client, mix))) is None:
            return "", "", ""
        line = sparkline(course.values, low, high, blocks)
        return line, figure(course.values[0]), figure(course.values[-1])

    header = ["client"]
    for mix in mixes:
        header += [mix, "first", "last"]
    rows = [
        (shortened(client), *(cell for mix in mixes for cell in cells(client, mix)))
        for client in chosen
    ]
    split = "" if measure.startswith("training") else "validation "
    title = f"{split}{measure} by round, from {figure(low)} ({blocks[0]}) to {figure(high)}"
    show_table(console, f"{title} ({blocks[-1]})", header, rows)
    if left_out:
        say(console, f"the {BOTH_ENDS} best and the {BOTH_ENDS} worst; {left_out} are between them")


def _show_list(
    console: Console, directory: Path, runs: Sequence[Glance], records: Sequence[RunRecord]
) -> None:
    measures = dict.fromkeys(run.measure for run in runs if run.measure)
    mixes = dict.fromkeys((run.measure, mix) for run in runs for mix in run.scores)
    header = ("run", "method", "seed", "state", "round", *(f"{m} {mix}" for m, mix in mixes), "up")
    rows = [
        (
            run.name,
            run.method,
            "–" if run.seed is None else str(run.seed),
            run.state,
            f"{run.round}/{run.rounds}" if run.rounds else str(run.round),
            *(figure(run.scores.get(mix)) if m == run.measure else "–" for m, mix in mixes),
            size(run.bytes_up),
        )
        for run in runs
    ]
    under_way = any(run.split == "validation" and run.scores for run in runs)
    what = "test scores" + (" (validation where a run is not finished)" if under_way else "")
    show_table(
        console, f"{directory}: {len(runs)} runs" + (f"; {what}" * bool(measures)), header, rows
    )
    for record in records:
        for note in record.notes:
            say(console, f"{record.name}: {note}")
