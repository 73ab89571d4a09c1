"""What the cells say: for every setting, each model over seeds, its cost, and the contrasts.

The sweep as a page: how it was made, what was picked, the tables, the sentences. The same cells
give the same page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsdr.errors import RecipeError
from fedsdr.evaluate.comparison import Comparison, RunResult, compare, render_text
from fedsdr.evaluate.finished import default_measures
from fedsdr.evaluate.statistics import Summary
from fedsdr.evaluate.verdicts import Contrast
from fedsdr.jobs.sweep.cells import Cell, Sweep, point_words
from fedsdr.jobs.sweep.records import Record, Tried, Tuned, run_result
from fedsdr.jobs.sweep.run import SweepResult

REWRITING = "rewriting"  # the phase whose drafts the methods of a seed share


@dataclass(frozen=True, slots=True)
class Cost:
    """Means per run. Seconds are without the rewriting before round 1, over the runs that were not
    interrupted."""

    steps: float
    seconds: float | None
    bytes_up: float
    bytes_down: float


@dataclass(frozen=True, slots=True)
class SettingTable:
    setting: str
    measures: tuple[str, ...]  # to be shown; the comparison has all
    comparison: Comparison
    costs: Mapping[str, Cost]  # by method
    rewriting: float | None  # seconds per seed, for all methods together
    notes: tuple[str, ...]

    @property
    def sentences(self) -> list[str]:
        lines = render_text(self.comparison).splitlines()
        if self.rewriting:
            lines.append(
                "Seconds are without the rewriting before round 1, whose drafts the methods of a "
                f"seed share: {self.rewriting:.0f} s per seed for all together."
            )
        return [*lines, *self.notes]

    def to_json(self) -> dict[str, Any]:
        return {
            "setting": self.setting,
            "shown": list(self.measures),
            **self.comparison.to_json(),
            "costs": {label: asdict(cost) for label, cost in self.costs.items()},
            "rewriting_seconds": self.rewriting,
            "sentences": self.sentences,
        }


def sweep_table(
    sweep: Sweep, records: Sequence[tuple[Cell, Record]], out: Path = Path()
) -> list[SettingTable]:
    """One table per setting that has finished cells; methods in the order of the sweep file."""
    tables = list[SettingTable]()
    order = list(sweep.methods)
    for setting in sweep.settings:
        finished = [(cell, record) for cell, record in records if cell.setting == setting]
        finished.sort(key=lambda pair: (order.index(pair[0].label), pair[0].seed))
        if finished:
            tables.append(_table(sweep, setting, finished, out))
    return tables


def score_cells(table: SettingTable, interval: bool = False) -> list[tuple[str, ...]]:
    """Method, model, seeds, then each measure as mean ± sd, with the 95 % interval if wanted."""
    return [
        (
            row.method,
            row.mix,
            str(row.n),
            *(_cell(row.summaries.get(m), interval) for m in table.measures),
        )
        for row in table.comparison.rows
    ]


def cost_cells(cost: Cost) -> tuple[str, ...]:
    """Steps, seconds, MB up, MB down."""
    seconds = "–" if cost.seconds is None else _three(cost.seconds)
    return (
        f"{cost.steps:.0f}",
        seconds,
        _three(cost.bytes_up / 1e6),
        _three(cost.bytes_down / 1e6),
    )


COST_HEADER = ("steps", "seconds", "MB up", "MB down")


def _table(
    sweep: Sweep, setting: str, finished: Sequence[tuple[Cell, Record]], out: Path
) -> SettingTable:
    results = [run_result(out, cell, record) for cell, record in finished]
    contrasts, notes = _testable(sweep.contrasts, results)
    every = tuple(dict.fromkeys(m for r in results for s in r.scores.values() for m in s))
    worst = tuple(m for m in every if m.endswith("_worst"))
    shown = tuple(dict.fromkeys((*default_measures(results), *worst)))
    labels = dict.fromkeys(cell.label for cell, _ in finished)
    costs = {label: _cost([r for c, r in finished if c.label == label]) for label in labels}
    seeds = {cell.seed for cell, _ in finished}
    spent = sum(record["seconds"].get(REWRITING, 0.0) for _, record in finished)
    rewritten = any("rewriting" in record for _, record in finished)
    return SettingTable(
        setting,
        shown,
        compare(results, contrasts, every),
        costs,
        spent / len(seeds) if rewritten else None,
        tuple(notes),
    )


def _testable(
    contrasts: Sequence[Contrast], results: Sequence[RunResult]
) -> tuple[list[Contrast], list[str]]:
    """Those whose cells are there; a contrast that cannot be tested yet must not hide the table."""
    fine, notes = list[Contrast](), list[str]()
    for contrast in contrasts:
        try:
            compare(results, [contrast], ())
        except RecipeError as error:
            notes.append(f"Not tested: {error}")
        else:
            fine.append(contrast)
    if not contrasts:
        notes.append(
            "Nothing was tested: name contrasts in the sweep file, such as sweep.contrasts: "
            '["fedsd+fedavg:global > fedavg:global on recall"].'
        )
    return fine, notes


def _cost(records: Sequence[Record]) -> Cost:
    clocks = [
        sum(s for phase, s in record["seconds"].items() if phase != REWRITING)
        for record in records
        if record["seconds"]
    ]
    steps, up, down = (
        fmean(float(record[key]) for record in records)
        for key in ("steps", "bytes_up", "bytes_down")
    )
    return Cost(steps, fmean(clocks) if clocks else None, up, down)


def _cell(summary: Summary | None, interval: bool) -> str:
    if summary is None:
        return "–"
    spread = "" if summary.sd is None else f" ± {summary.sd:.3f}"
    bounds = ""
    if interval and summary.interval is not None:
        bounds = f" [{summary.interval[0]:.3f}, {summary.interval[1]:.3f}]"
    return f"{summary.mean:.3f}{spread}{bounds}"


def _three(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def render_markdown(
    sweep: Sweep, result: SweepResult, tables: Sequence[SettingTable], command: str
) -> str:
    versions = {(record["fedsdr"], record["torch"]) for _, record in result.records}
    made = "; ".join(f"fedsdr {ours}, torch {theirs}" for ours, theirs in sorted(versions))
    title = sweep.name.replace("\\", "/").rpartition("/")[2]
    parts = [
        f"# {title}",
        f"```sh\n{command}\n```",
        f"Made with {made}. Digest of the sweep file: `{sweep.digest[:16]}`. "
        f"Seeds: {', '.join(map(str, sweep.seeds))}. "
        "Scores are means over clients on test data, then over seeds: mean ± sd [95 % interval].",
        *_tuning(sweep, result.tuned),
    ]
    for table in tables:
        if len(sweep.settings) > 1:
            parts.append(f"## {table.setting}")
        costs = {row.method: cost_cells(table.costs[row.method]) for row in table.comparison.rows}
        rows = [(*cells, *costs[cells[0]]) for cells in score_cells(table, interval=True)]
        parts.append(_grid(("method", "model", "n", *table.measures, *COST_HEADER), rows))
        parts.append("\n".join(f"- {sentence}" for sentence in table.sentences))
    if missing := (*result.open, *result.waiting):
        parts.append(f"Not all is there yet: {len(missing)} cells are open.")
    if result.failed:
        parts.append("Failed:\n\n" + "\n".join(f"- {line}" for line in result.failed))
    return "\n\n".join(parts) + "\n"


def _tuning(sweep: Sweep, tuned: Sequence[Tuned]) -> Iterable[str]:
    if sweep.tune is None:
        return
    seeds = ", ".join(map(str, sweep.tune.seeds))
    measures = dict.fromkeys(t.measure for t in tuned if t.measure)
    held = f" While tuning: {point_words(sweep.tune.changes)}." if sweep.tune.changes else ""
    yield "## Tuning"
    yield (
        f"By {' and '.join(measures)} on validation data, mean over the deployed models, on "
        f"tuning seeds {seeds}.{held}"
    )
    rows = [(t.name, "; ".join(map(_tried, t.tried)), _picked(t)) for t in tuned]
    yield _grid(("method", "tried", "picked"), rows)
    if notes := [line for t in tuned for line in (*t.edges, *t.losers)]:
        yield "\n".join(f"- {line}" for line in notes)


def _tried(tried: Tried) -> str:
    score = "failed" if tried.failed else "open" if tried.mean is None else f"{tried.mean:.3f}"
    return f"{point_words(tried.point)}: {score}"


def _picked(tuned: Tuned) -> str:
    return "–" if tuned.pick is None else point_words(tuned.pick)


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
