"""What a model of its own gains a client: the global model against the personal one.

What the sections draw on: all runs, the groups they form, and the few shown one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from fedsdr.evaluate.verdicts import Contrast
from fedsdr.report.answer_view import IncludeTexts
from fedsdr.report.compared import Group, grouped
from fedsdr.report.figures.curves import curves, told_apart
from fedsdr.report.figures.intervals import Dot, Entry, intervals
from fedsdr.report.figures.svg import Figure
from fedsdr.report.measures import axis_label, higher_is_better, in_words, measures_of
from fedsdr.report.record import RunRecord, natural, number, scores_of
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.text.numbers import counted, decimals, fixed, score

DETAILED = 6  # runs that are shown one by one


@dataclass(frozen=True)
class Material:
    records: Sequence[RunRecord]
    include_texts: IncludeTexts = False
    contrasts: Sequence[Contrast] | None = None  # what to test; every method against FedAvg

    @cached_property
    def groups(self) -> list[Group]:
        return grouped(self.records, self.contrasts)

    @property
    def single(self) -> RunRecord | None:
        return self.records[0] if len(self.records) == 1 else None

    @cached_property
    def detailed(self) -> list[tuple[str, RunRecord]]:
        """All of a few runs; of many, the first run of each of the first methods."""
        labelled = [
            (label, record)
            for group in self.groups
            for label, of in group.runs.items()
            for record in of
        ]
        if len(labelled) > DETAILED:
            firsts = dict[str, tuple[str, RunRecord]]()
            for label, record in labelled:
                if record.rounds:
                    firsts.setdefault(label, (label, record))
            labelled = list(firsts.values())[:DETAILED]
        names = [label for label, _ in labelled]
        return [
            (label if names.count(label) == 1 else f"{label}, seed {record.seed}", record)
            for label, record in labelled
        ]

    @property
    def summarised(self) -> str:
        """Said wherever not every run is shown."""
        left = len(self.records) - len(self.detailed)
        if left <= 0:
            return ""
        if not self.detailed:
            return "A sweep keeps each cell's results only, so there is nothing by round or client."
        return (
            f"Of {len(self.records)} runs, {len(self.detailed)} are shown one by one: the first "
            "of each method. For another, `fedsdr report` that run."
        )

    def panels(self, make: Callable[[str, RunRecord], Panel | None]) -> tuple[Panel, ...]:
        """One panel for each run that has something to show."""
        return tuple(p for label, record in self.detailed if (p := make(label, record)) is not None)


def missing_file(material: Material, file: str, otherwise: str) -> str:
    """Why a section that needs this file is not there."""
    states = {record.state for record in material.records}
    if not material.detailed:
        return material.summarised
    if "running" in states:
        return f"The run has not written {file} yet."
    return otherwise


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
