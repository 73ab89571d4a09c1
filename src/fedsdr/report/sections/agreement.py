"""Do the clients' updates agree: cosines by round, conflict, diversity, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedsdr.report.figures.curves import Line, curves, told_apart
from fedsdr.report.figures.heatmap import Colours, heatmap, in_cells
from fedsdr.report.figures.svg import Figure
from fedsdr.report.record import RunRecord, natural, number
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.personal import Material, missing_file
from fedsdr.text.numbers import fixed, share

AGREEMENT, DRIFT = "Do the updates agree?", "Drift and conflict"
CELLS = 60_000  # of all rounds together; of more, rounds are left out
NAMED = {"R": "the shared branch R", "S": "the personal branch S"}
MEASURES = {
    "conflict": (
        "Conflict", "Share of pairs of clients whose updates point apart.", "share of pairs",
    ),
    "diversity": (
        "Gradient diversity",
        "1: all clients move alike; as many as there are clients: they move at right angles; more: "
        "against each other.",
        "diversity",
    ),
    "drift": (
        "Client drift",
        "How far clients end from their mean, against how far that mean moved.",
        "relative distance",
    ),
    "aggregation_error": (
        "Aggregation error",
        "How far what the server made of the round is from the mean of the clients' products B A.",
        "relative error",
    ),
}  # fmt: skip
OLD = (
    "The run has no diagnostics.jsonl: it was made with an older fedsdr, or without diagnostics; a "
    "new run writes one."
)


def agreement(material: Material) -> Section | Absent:
    panels = material.panels(_cosines)
    if not panels:
        why = missing_file(material, "diagnostics.jsonl", OLD)
        return Absent("agreement", AGREEMENT, why)
    lead = (
        "The cosine between each two clients' changes of the model in a round, the two branches "
        "apart: 1, they agree; 0, they have nothing to do with each other; below 0, averaging "
        "cancels them."
    )
    return paneled("agreement", AGREEMENT, f"{lead} {material.summarised}".strip(), panels)


def drift(material: Material) -> Section | Absent:
    panels = material.panels(_measures)
    if not panels:
        return Absent("drift", DRIFT, missing_file(material, "diagnostics.jsonl", OLD))
    lead = "What the cosines come to, round by round."
    return paneled("drift", DRIFT, f"{lead} {material.summarised}".strip(), panels)


def _cosines(label: str, record: RunRecord) -> Panel | None:
    branches = _branches(record)
    slides = [_slides(record, branch) for branch in branches]
    figures = tuple(figure for figure in slides if figure is not None)
    sampled = max((row.get("sampled_of") or 0 for row in record.diagnostics), default=0)
    note = (f"The clients are a seeded sample of {sampled}.",) if sampled else ()
    return Panel(label, (*note, *_mean_cosines(record, branches)), figures) if figures else None


def _slides(record: RunRecord, branch: str) -> Figure | None:
    """The last round drawn; the others as numbers that the page's script puts in its place."""
    rows = [row for row in record.diagnostics if _cosine(row, branch)]
    if not rows:
        return None
    names = sorted({c for row in rows for c in row["clients"]}, key=natural)
    every = max(1, -(-len(rows) * len(names) ** 2 // CELLS))
    kept = [row for n, row in enumerate(reversed(rows)) if n % every == 0][::-1]
    frames = [_arranged(row, branch, names) for row in kept]
    last = frames[-1]
    cut = f" Of {len(rows)} rounds, {len(kept)} can be chosen." if len(kept) < len(rows) else ""
    figure = heatmap(
        f"agreement-{record.name}-{branch}",
        f"Cosine of updates, {NAMED.get(branch, branch)}",
        reading=(
            "Each cell is a pair of clients; blue pairs pull the same way, orange ones against "
            f"each other. The last round, {kept[-1]['round']}, is drawn first.{cut}"
        ),
        rows=names,
        columns=names,
        matrix=last,
        colours=Colours(-1, 1, around_zero=True),
        scale_label="cosine",
        shown=in_cells,
        tip=lambda value: fixed(value, 2),
    )
    if len(frames) < 2:
        return figure
    values = [[[None if v is None else round(100 * v) for v in r] for r in f] for f in frames]
    return replace(
        figure,
        slides={"names": names, "rounds": [row["round"] for row in kept], "values": values},
    )


def _arranged(
    row: Mapping[str, Any], branch: str, names: Sequence[str]
) -> list[list[float | None]]:
    """In the order of the names; who was not in the round has empty cells."""
    place = {client: n for n, client in enumerate(row["clients"])}
    matrix = _cosine(row, branch)
    return [
        [number(matrix[place[a]][place[b]]) if a in place and b in place else None for b in names]
        for a in names
    ]


def _mean_cosines(record: RunRecord, branches: Sequence[str]) -> list[str]:
    sentences = list[str]()
    for branch in branches:
        means = [
            (row["round"], m) for row in record.diagnostics if (m := _mean(row, branch)) is not None
        ]
        if means:
            (first, before), (last, after) = means[0], means[-1]
            sentences.append(
                f"Over the pairs, {NAMED.get(branch, branch)} has a mean cosine of "
                f"{fixed(before, 2)} in round {first} and {fixed(after, 2)} in round {last}."
            )
    return sentences


def _mean(row: Mapping[str, Any], branch: str) -> float | None:
    matrix = _cosine(row, branch)
    values = [
        value
        for i, line in enumerate(matrix)
        for j, v in enumerate(line)
        if i < j and (value := number(v)) is not None
    ]
    return sum(values) / len(values) if values else None


def _measures(label: str, record: RunRecord) -> Panel | None:
    figures, branches = list[Figure](), _branches(record)
    for key, (title, reading, unit) in MEASURES.items():
        lines = [
            Line(NAMED.get(branch, branch), points, n)
            for n, branch in enumerate(branches)
            if (points := _over_rounds(record, branch, key))
        ]
        if lines:
            within = (0.0, 1.0 if key == "conflict" else 0.0)
            name = f"drift-{record.name}-{key}"
            figures.append(curves(name, title, reading, lines, unit, within=within))
    norms = _norms(record, branches)
    figures += norms
    if not figures:
        return None
    sentences = list[str]()
    if points := _over_rounds(record, "R", "conflict"):
        sentences.append(
            f"In the last round R's cosine is below 0 for {share(points[-1][1])} of the pairs of "
            f"clients; in the first it was for {share(points[0][1])}."
        )
    return Panel(label, tuple(sentences), tuple(figures))


def _norms(record: RunRecord, branches: Sequence[str]) -> list[Figure]:
    figures = list[Figure]()
    for branch in branches:
        by_client = dict[str, list[tuple[int, float | None]]]()
        for row in record.diagnostics:
            norms = ((row.get("branches") or {}).get(branch) or {}).get("norms") or {}
            for client, norm in norms.items():
                by_client.setdefault(client, []).append((row["round"], number(norm)))
        if by_client:
            figures.append(
                curves(
                    f"drift-{record.name}-norms-{branch}",
                    f"Size of updates, {NAMED.get(branch, branch)}",
                    "Each line is the length of one client's change in a round: a client that "
                    "moves much further than the others outweighs them.",
                    told_apart(by_client),
                    "Frobenius norm of the change of B A",
                    within=(0.0, 0.0),
                )
            )
    return figures


def _branches(record: RunRecord) -> list[str]:
    names = dict.fromkeys(b for row in record.diagnostics for b in row.get("branches") or {})
    return [b for b in ("R", "S") if b in names] + [b for b in names if b not in ("R", "S")]


def _cosine(row: Mapping[str, Any], branch: str) -> Any:
    return ((row.get("branches") or {}).get(branch) or {}).get("cosine") or []


def _over_rounds(record: RunRecord, branch: str, key: str) -> list[tuple[int, float | None]]:
    return [
        (row["round"], value)
        for row in record.diagnostics
        if (value := number(((row.get("branches") or {}).get(branch) or {}).get(key))) is not None
    ]
