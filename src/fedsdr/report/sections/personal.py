"""What a model of its own gains a client: the global model against the personal one."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from fedsdr.report.figures.curves import curves, told_apart
from fedsdr.report.figures.intervals import Dot, Entry, intervals
from fedsdr.report.figures.svg import Figure
from fedsdr.report.glance import number, scores_of
from fedsdr.report.measures import axis_label, higher_is_better, in_words, measures_of
from fedsdr.report.numbers import counted, decimals, fixed, score
from fedsdr.report.record import RunRecord, natural
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.material import Material

TITLE = "What personalisation gains"
MEASURES, CLIENTS = 4, 40
RATIOS = {
    "s_over_r": (
        "Size of S against R",
        "Each line is a client: how large its personal change is next to the shared one.",
        "norm of S over norm of R",
    ),
    "cos_s_r": (
        "Direction of S against R",
        "Each line is a client: near 0 its personal change is about something else than the shared "
        "one; towards 1 it repeats it.",
        "cosine of S and R",
    ),
}


def personal(material: Material) -> Section | Absent:
    panels = material.panels(_panel)
    if panels:
        lead = (
            "The global model against each client's own, on that client's test rows, each as of "
            "the round that it is deployed from."
        )
        return paneled("personal", TITLE, f"{lead} {material.summarised}".strip(), panels)
    if not material.detailed:
        return Absent("personal", TITLE, material.summarised)
    if all(record.results is None for _, record in material.detailed):
        return Absent("personal", TITLE, "Known once a run is finished and scored.")
    why = "No run here deploys both a global and a personal model of one client."
    return Absent("personal", TITLE, why)


def gains(record: RunRecord, measure: str) -> dict[str, tuple[float, float]]:
    """Client -> its score by the global and by its personal model."""
    clients: Mapping[str, Any] = (record.results or {}).get("clients") or {}
    both = (scores_of(clients.get("global")), scores_of(clients.get("personal")))
    return {
        client: (both[0][client][measure], both[1][client][measure])
        for client in sorted(both[0], key=natural)
        if measure in both[0][client] and measure in both[1].get(client, {})
    }


def _panel(label: str, record: RunRecord) -> Panel | None:
    scores = scores_of((record.results or {}).get("scores"))
    figures, sentences = list[Figure](), list[str]()
    for measure in [m for m in measures_of([scores]) if not m.endswith("_worst")][:MEASURES]:
        if pairs := gains(record, measure):
            figures.append(_dumbbell(record.name, measure, pairs))
            sentences.append(sentence(measure, pairs))
    for key, (title, reading, unit) in RATIOS.items():
        by_client = dict[str, list[tuple[int, float | None]]]()
        for row in record.diagnostics:
            for client, of in (row.get("personal") or {}).items():
                if (value := number((of or {}).get(key))) is not None:
                    by_client.setdefault(client, []).append((row["round"], value))
        if by_client:
            name = f"personal-{record.name}-{key}"
            figures.append(
                curves(name, title, reading, told_apart(by_client), unit, within=(0.0, 0.0))
            )
    return Panel(label, tuple(sentences), tuple(figures)) if figures else None


def sentence(measure: str, pairs: Mapping[str, tuple[float, float]]) -> str:
    better = higher_is_better(measure)
    steps = {client: personal_score - shared for client, (shared, personal_score) in pairs.items()}
    mean = fmean(steps.values())
    words = in_words(measure)
    if better is None:
        return f"Personal models change {words} by {fixed(mean, 2, True)} on average."
    places = max(2, decimals(max(map(abs, steps.values()))))
    good = [c for c, step in steps.items() if (step > 0) == better and step]
    bad = [c for c, step in steps.items() if (step > 0) != better and step]
    most = max(steps, key=lambda c: steps[c] if better else -steps[c])
    text = (
        f"On {words}, the personal model is better than the global one for "
        f"{len(good)} of {counted(len(steps), 'client')} and worse for {len(bad)}, by "
        f"{fixed(mean, places, True)} on average"
    )
    return (
        f"{text}; {most} gains most ({fixed(steps[most], places, True)})." if good else f"{text}."
    )


def _dumbbell(run: str, measure: str, pairs: Mapping[str, tuple[float, float]]) -> Figure:
    words, better = in_words(measure), higher_is_better(measure)
    order = sorted(pairs, key=lambda c: pairs[c][1] - pairs[c][0], reverse=better is not False)
    cut = f" The {CLIENTS} that gain most, of {len(order)}." if len(order) > CLIENTS else ""
    return intervals(
        f"personal-{run}-{measure}",
        f"{words.capitalize()}: global against personal",
        "Each row is a client, the line runs from its global to its personal model; who gains "
        f"most stands at the top.{cut}",
        ("global", "personal"),
        [Entry(client, tuple(Dot(v) for v in pairs[client])) for client in order[:CLIENTS]],
        axis_label(measure),
        joined=True,
        shown=score,
    )
