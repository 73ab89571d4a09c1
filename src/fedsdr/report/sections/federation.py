"""Who has what data: counts by domain and origin, and how long prompts and answers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.report.figures.bars import Series, columns
from fedsdr.report.figures.heatmap import Colours, heatmap
from fedsdr.report.figures.intervals import Dot, Entry, intervals
from fedsdr.report.figures.svg import Figure, Table
from fedsdr.report.record import RunRecord, natural, number
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.personal import Material, missing_file
from fedsdr.text.numbers import counted, plain

TITLE = "Who has what data"
LEAD = "What each client trains and is tested on: how much, of which kind, and how long."
KINDS = 12  # columns of a heat-map; what is rarer goes together
CLIENTS = 64


def federation(material: Material) -> Section | Absent:
    # One panel for each federation, from a run that rewrote where there is one.
    worlds = dict[str, tuple[str, RunRecord]]()
    for label, record in material.detailed:
        if record.profile and (record.world not in worlds or record.rewriting):
            worlds[record.world] = (label, record)
    candidates = [_panel(label, record) for label, record in worlds.values()]
    panels = [panel for panel in candidates if panel is not None]
    if not panels:
        why = missing_file(material, "profile.json", "The run has no profile.json: it was made "
        "with an older fedsdr; a new run writes one.")  # fmt: skip
        return Absent("data", TITLE, why)
    if len(panels) == 1 and len(material.records) > 1:
        panels = [Panel("all runs", panels[0].sentences, panels[0].figures, panels[0].tables)]
    return paneled("data", TITLE, LEAD, tuple(panels))


def _panel(label: str, record: RunRecord) -> Panel | None:
    clients: Mapping[str, Any] = (record.profile or {}).get("clients") or {}
    if not clients:
        return None
    names = sorted(clients, key=natural)
    train = {c: int(number((clients[c].get("rows") or {}).get("train")) or 0) for c in names}
    least, most = min(names, key=train.__getitem__), max(names, key=train.__getitem__)
    sentences = [
        f"{counted(len(names), 'client')} with {counted(sum(train.values()), 'training row')} in "
        f"all, from {train[least]:,} ({least}) to {train[most]:,} ({most})."
    ]
    if len(names) > CLIENTS:
        sentences.append(f"The figures show every {-(-len(names) // CLIENTS)}th client.")
    shown = names[:: -(-len(names) // CLIENTS)]
    name = f"data-{record.name}"
    figures = [
        figure
        for key, title in (("domains", "domain"), ("origins", "origin"))
        if (figure := _kinds(name, key, title, shown, clients)) is not None
    ]
    figures += [
        figure
        for what in ("prompt", "response")
        if (figure := _lengths(name, what, shown, clients)) is not None
    ]
    if (figure := _histogram(name, names, clients)) is not None:
        figures.append(figure)
    return Panel(
        label, tuple(sentences), tuple(figures), (("Rows by client", _rows(names, clients)),)
    )


def _kinds(
    name: str, key: str, title: str, names: Sequence[str], clients: Mapping[str, Any]
) -> Figure | None:
    totals = dict[str, int]()
    for client in names:
        for kind, count in (clients[client].get(key) or {}).items():
            totals[kind] = totals.get(kind, 0) + int(count)
    kinds = sorted(totals, key=lambda kind: -totals[kind])
    if len(kinds) < 2:
        return None
    shown, rest = kinds[:KINDS], kinds[KINDS:]
    matrix = list[list[float]]()
    for client in names:
        counts = clients[client].get(key) or {}
        row = [float(counts.get(kind, 0)) for kind in shown]
        matrix.append(row + [float(sum(counts.get(kind, 0) for kind in rest))] * bool(rest))
    headed = [kind or "(none)" for kind in shown] + [f"{len(rest)} others"] * bool(rest)
    return heatmap(
        f"{name}-{key}",
        f"Training rows by client and {title}",
        reading=(
            "Each cell is a client's number of rows; the darker, the more. Rows that look alike "
            "are clients with like data."
        ),
        rows=names,
        columns=headed,
        matrix=matrix,
        colours=Colours(0, max(max(row) for row in matrix)),
        scale_label="training rows",
        row_label="client",
        column_label=title,
        shown=lambda value: plain(value) if value else "",
        tip=plain,
    )


def _lengths(
    name: str, what: str, names: Sequence[str], clients: Mapping[str, Any]
) -> Figure | None:
    kinds = {"prompt": "prompt"} if what == "prompt" else {"raw": "raw", "rewritten": "rewritten"}
    histograms = {
        kind: [_histogram_of(clients[client], what, kind) for client in names] for kind in kinds
    }
    histograms = {kind: of for kind, of in histograms.items() if any(of)}
    if not histograms:
        return None
    entries = [
        Entry(
            client,
            tuple(
                Dot(number(of[n].get("p50")), number(of[n].get("p10")), number(of[n].get("p90")))
                for of in histograms.values()
            ),
        )
        for n, client in enumerate(names)
    ]
    many = "answers, raw and rewritten" if len(histograms) > 1 else f"{what}s"
    return intervals(
        f"{name}-{what}-tokens",
        f"Length of {many}, by client",
        "The dot is a client's median; the bar runs from its 10th to its 90th percentile.",
        tuple(histograms) if len(histograms) > 1 else (what,),
        entries,
        f"tokens per {'answer' if what == 'response' else what}",
        span="10th to 90th percentile",
        within=(0.0,),
    )


def _histogram(name: str, names: Sequence[str], clients: Mapping[str, Any]) -> Figure | None:
    """All clients' answers together, raw beside rewritten, as shares."""
    series, edges = list[Series](), list[float]()
    for kind in ("raw", "rewritten"):
        histograms = [h for c in names if (h := _histogram_of(clients[c], "response", kind))]
        if not histograms:
            continue
        edges = histograms[0].get("edges") or []
        counts = [sum(column) for column in zip(*(h["counts"] for h in histograms), strict=False)]
        total = sum(counts) or 1
        series.append(Series(kind, [100 * count / total for count in counts]))
    if not series or not edges:
        return None
    last = max(i for s in series for i, v in enumerate(s.values) if v) + 1
    classes = [
        f"{low:g}–{edges[i + 1] - 1:g}" if i + 1 < len(edges) else f"≥ {low:g}"
        for i, low in enumerate(edges)
    ]
    return columns(
        f"{name}-histogram",
        "Length of answers, all clients",
        reading="Each bar is the share of all answers whose length is in that class.",
        classes=classes[:last],
        kinds=[Series(s.label, s.values[:last]) for s in series],
        y_label="share of answers, %",
        x_label="tokens per answer",
    )


def _histogram_of(client: Mapping[str, Any], what: str, kind: str) -> Mapping[str, Any]:
    tokens = client.get(f"{what}_tokens") or {}
    return tokens if what == "prompt" else tokens.get(kind) or {}


def _rows(names: Sequence[str], clients: Mapping[str, Any]) -> Table:
    parts = ("train", "validation", "test")
    rows = [
        (
            client,
            *(plain(number((clients[client].get("rows") or {}).get(part))) for part in parts),
            plain(number((clients[client].get("prompt_tokens") or {}).get("p50"))),
            plain(number(_histogram_of(clients[client], "response", "raw").get("p50"))),
        )
        for client in names
    ]
    header = ("client", *parts, "median prompt, tokens", "median answer, tokens")
    return Table(header, tuple(rows))
