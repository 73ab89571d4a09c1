"""The sweep as a page: how it was made, what was picked, the tables, the sentences. The same cells
give the same page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedsdr.jobs.sweep.cells import Sweep, point_words
from fedsdr.jobs.sweep.run import SweepResult
from fedsdr.jobs.sweep.table import COST_HEADER, SettingTable, cost_cells, score_cells
from fedsdr.jobs.sweep.tuning import Tried, Tuned


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
