"""Learning curves: the global model, each client, and the worst tenth of the clients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from fedsdr.evaluate.statistics import mean_sd
from fedsdr.report.compared import Group
from fedsdr.report.figures.curves import Line, curves
from fedsdr.report.figures.svg import Figure
from fedsdr.report.losses import loss_names, losses_of
from fedsdr.report.measures import axis_label, higher_is_better, in_words, measures_of
from fedsdr.report.record import RunRecord, natural, number, scores_of
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.personal import Material

TITLE = "Learning curves"
MEASURES = 4
METHODS = 8  # lines that can be told apart
BANDS = 3  # of more, bands hide each other
CLIENTS = 64  # lines of clients; of more, every n-th is drawn
LEAD = "How fast the models learned, on validation rows, and who was left behind."

MAIN = "What tables call the loss is this one: it trains what is shared."

Labelled = tuple[str, Sequence[RunRecord]]
ByClient = Mapping[str, Mapping[int, float]]


def courses(material: Material) -> Section | Absent:
    panels = list[Panel]()
    if material.single is None:
        for place, group in enumerate(material.groups):
            panels += _of_group(place, group, len(material.groups))
    panels += material.panels(_of_run)
    if not panels:
        why = material.summarised if not material.detailed else "No round is finished yet."
        return Absent("curves", TITLE, why)
    lead = f"{LEAD} {material.summarised}".strip()
    return paneled("curves", TITLE, lead, tuple(panels))


def _of_run(label: str, record: RunRecord) -> Panel | None:
    if not record.rounds:
        return None
    name = f"curves-{record.name}"
    figures = list[Figure]()
    scored = _by_mix(record.validation)
    means = [scores_of(row.get("validation")) for row in record.rounds]
    for measure in measures_of([s for s in means if s])[:MEASURES]:
        mixes = list(dict.fromkeys(mix for s in means for mix in s if measure in s[mix]))
        if not scored:
            figures.append(_means(name, record, measure, mixes))
            continue
        figures += [_validated(name, measure, mix, scored[mix]) for mix in mixes if mix in scored]
    figures += _losses(name, record)
    sentences = [] if any(means) else ["Nothing was validated in this run."]
    if means and any(means) and not scored:
        sentences.append(
            "There is no validation.jsonl, so clients are not shown one by one, only their mean."
        )
    return Panel(label, tuple(sentences), tuple(figures))


def _of_group(place: int, group: Group, groups: int) -> list[Panel]:
    """Every method's mean over seeds, with a band of ± one standard deviation."""
    labelled = [(label, of) for label, of in group.runs.items() if any(r.rounds for r in of)]
    if not labelled:
        return []
    rows = [scores_of(x.get("validation")) for _, of in labelled for r in of for x in r.rounds]
    figures = list[Figure]()
    for measure in measures_of([s for s in rows if s])[:MEASURES]:
        lines = [
            (f"{label} · {mix}" if mix != "global" else label, line)
            for label, of in labelled
            for mix in dict.fromkeys(
                m for r in of for x in r.rounds for m in scores_of(x.get("validation"))
            )
            if (line := _over_seeds(of, mix, measure))
        ]
        figures.append(_methods(f"curves-all-{place}-{measure}", measure, lines))
    lines = [
        (_with_loss(label, of, labelled), line)
        for label, of in labelled
        if (line := _over_seeds(of, "", "loss"))
    ]
    figures.append(_methods(f"curves-all-{place}-training-loss", "training loss", lines))
    label = "all runs" if groups == 1 else f"all runs, {group.setting}"
    return [Panel(label, (), tuple(figures))]


def _with_loss(label: str, of: Sequence[RunRecord], every: Sequence[Labelled]) -> str:
    """Losses on unlike answers are no race: where they differ, the line says which its is."""
    kinds = {name for _, records in every for name in _main_losses(records)}
    losses = ", ".join(sorted(_main_losses(of) - {""}))
    return f"{label} · {losses}" if len(kinds) > 1 and losses else label


def _main_losses(of: Sequence[RunRecord]) -> set[str]:
    return {loss_names(record.rounds)[0] for record in of if record.rounds}


def _methods(
    name: str, measure: str, lines: Sequence[tuple[str, Mapping[int, list[float]]]]
) -> Figure:
    """The best few in colour, the others grey."""
    higher = higher_is_better(measure) or False
    ranked = sorted(lines, key=lambda of: fmean(of[1][max(of[1])]), reverse=higher)
    coloured = [label for label, _ in ranked[:METHODS]]
    places = [label for label, _ in lines if label in coloured]
    drawn = list[Line]()
    for label, by_round in lines:
        points = [(at, fmean(values)) for at, values in sorted(by_round.items())]
        band = list[tuple[int, float, float]]()
        for at, values in sorted(by_round.items()):
            mean, sd = mean_sd(values)
            if sd is not None and len(lines) <= BANDS:
                band.append((at, mean - sd, mean + sd))
        if label in coloured:
            drawn.append(Line(label, points, places.index(label), band=band))
        else:
            drawn.append(Line(label, points))
    more = len(lines) - len(coloured)
    cut = f" The {METHODS} best at the end are coloured, {more} others grey." if more > 0 else ""
    several = any(len(v) > 1 for _, of in lines for v in of.values())
    if any(len({len(values) for values in of.values()}) > 1 for _, of in lines):
        cut += " Where a run has not come as far, the mean is over fewer seeds."
    band = (
        " The band is ± one standard deviation over seeds."
        if several and len(lines) <= BANDS
        else ""
    )
    return curves(
        name,
        f"{in_words(measure).capitalize()}, by method",
        f"Each line is a model's mean over clients and seeds after each round.{band}{cut}",
        drawn,
        axis_label(measure),
        others="other methods",
    )


def _losses(name: str, record: RunRecord) -> list[Figure]:
    """One figure for each thing that was trained; the one that tables show first."""
    figures = list[Figure]()
    for place, of in enumerate(loss_names(record.rounds)):
        by_client = dict[str, dict[int, float]]()
        mean = list[tuple[int, float | None]]()
        for row in record.rounds:
            if (loss := losses_of(row).get(of)) is None:
                continue
            mean.append((row["round"], loss.mean))
            for client, value in loss.clients.items():
                by_client.setdefault(client, {})[row["round"]] = value
        figures.append(
            curves(
                f"{name}-loss-{place}" if place else f"{name}-loss",
                f"Training loss of {of}" if of else "Training loss",
                "Each thin line is a client's mean loss per trained token in its own local "
                "training." + ("" if place or not of else f" {MAIN}"),
                [Line("mean over clients", mean, 0), *_clients(by_client)],
                "loss, nats per token (lower is better)",
            )
        )
    return figures


def _validated(name: str, measure: str, mix: str, by_client: Mapping[str, ByClient]) -> Figure:
    scores = by_client.get(measure, {})
    rounds = sorted({at for of in scores.values() for at in of})
    mean = [(at, fmean(of[at] for of in scores.values() if at in of)) for at in rounds]
    worst = [
        (at, worst_tenth([of[at] for of in scores.values() if at in of], measure)) for at in rounds
    ]
    few = max(1, math.ceil(len(scores) / 10))
    who = "the worst client" if few == 1 else f"the worst {few} clients (10 %)"
    lines = [
        Line("mean over clients", mean, 0),
        Line("worst 10 %", worst, 1, dashed=True),
        *_clients(scores),
    ]
    return curves(
        f"{name}-{mix}-{measure}",
        f"{in_words(measure).capitalize()}, {mix} model",
        f"Each thin line is a client; the dashed one is {who} of each round.",
        lines,
        axis_label(measure),
    )


def _means(name: str, record: RunRecord, measure: str, mixes: Sequence[str]) -> Figure:
    lines = [
        Line(
            mix,
            [
                (row["round"], scores[mix][measure])
                for row in record.rounds
                if measure in (scores := scores_of(row.get("validation"))).get(mix, {})
            ],
            n,
        )
        for n, mix in enumerate(mixes[:METHODS])
    ]
    return curves(
        f"{name}-{measure}",
        f"{in_words(measure).capitalize()}, mean over clients",
        "Each line is a deployed model's mean over clients after each round.",
        lines,
        axis_label(measure),
    )


def worst_tenth(values: Sequence[float], measure: str) -> float:
    """The mean over the tenth of the clients that fare worst, at least one."""
    ordered = sorted(values, reverse=higher_is_better(measure) is False)
    return fmean(ordered[: max(1, math.ceil(len(ordered) / 10))])


def _clients(by_client: ByClient) -> list[Line]:
    names = sorted(by_client, key=natural)
    every = -(-len(names) // CLIENTS) or 1
    return [Line(name, sorted(by_client[name].items())) for name in names[::every]]


def _by_mix(
    rows: Iterable[Mapping[str, object]],
) -> dict[str, dict[str, dict[str, dict[int, float]]]]:
    """validation.jsonl -> mix -> measure -> client -> round -> value."""
    by_mix = dict[str, dict[str, dict[str, dict[int, float]]]]()
    for row in rows:
        at, scores = row["round"], row.get("scores")
        if not isinstance(at, int) or not isinstance(scores, Mapping):
            continue
        for mix, clients in scores.items():
            for client, measures in scores_of(clients).items():
                for measure, value in measures.items():
                    of = by_mix.setdefault(mix, {}).setdefault(measure, {})
                    of.setdefault(client, {})[at] = value
    return by_mix


def _over_seeds(of: Sequence[RunRecord], mix: str, measure: str) -> dict[int, list[float]]:
    """Round -> the values of all runs that have one; without a mix, of the row itself."""
    by_round = dict[int, list[float]]()
    for record in of:
        for row in record.rounds:
            scores = scores_of(row.get("validation")).get(mix, {}) if mix else row
            value = number(scores.get(measure))
            if value is not None:
                by_round.setdefault(row["round"], []).append(value)
    return by_round
