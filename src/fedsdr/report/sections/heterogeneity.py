"""How different the clients are, before and after rewriting: `fedsdr diagnose` measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsdr.report.figures.heatmap import Colours, heatmap, in_cells
from fedsdr.report.figures.scatter import Point, scatter
from fedsdr.report.figures.svg import Figure, Table
from fedsdr.report.record import RunRecord, natural, number
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.personal import Material
from fedsdr.text.numbers import NONE, fixed, plain, share

TITLE = "How different the clients are"
LEAD = (
    "Raw against rewritten answers: the method's premise is that the base model's own wording "
    "draws the clients together."
)
# key -> title, how to read, scale label, low end, high end, around zero, does less mean more alike
MEASURES: Mapping[str, tuple[str, str, str, float, float, bool, bool]] = {
    "js_divergence": (
        "Jensen–Shannon divergence of words",
        "0: two clients' answers use the same words equally often; 1: no word in common.",
        "divergence, bits", 0.0, 1.0, False, True,
    ),
    "tfidf_cosine": (
        "TF-IDF cosine",
        "1: two clients' answers weigh the same words; 0: none in common.",
        "cosine", 0.0, 1.0, False, False,
    ),
    "gradient_cosine": (
        "Cosine of the base model's gradients",
        "1: both clients pull the model the same way; below 0, against each other.",
        "cosine", -1.0, 1.0, True, False,
    ),
    "loss_transfer": (
        "Loss after training on another client",
        "Row: trained on; column: tested on. Blue lowers that client's loss, orange raises it.",
        "relative change of loss", -1.0, 1.0, True, True,
    ),
    "cka": (
        "Linear CKA of locally trained models",
        "1: models trained on the one and on the other client see the same rows alike.",
        "CKA", 0.0, 1.0, False, False,
    ),
    "js_divergence_prompts": (
        "Jensen–Shannon divergence of prompts",
        "The same of what is asked, which rewriting leaves as it is.",
        "divergence, bits", 0.0, 1.0, False, True,
    ),
}  # fmt: skip

LIKENESS = {"loss_transfer": ("helps others more", "helps others less")}


def heterogeneity(material: Material) -> Section | Absent:
    panels = list(material.panels(_panel))
    if not panels:
        path = next((record.path for _, record in material.detailed), None)
        if path is None:
            return Absent("heterogeneity", TITLE, material.summarised)
        why = f"Nobody has measured it yet: `fedsdr diagnose {path}`, then make this page again."
        return Absent("heterogeneity", TITLE, why)
    return paneled("heterogeneity", TITLE, LEAD, tuple(panels))


def _panel(label: str, record: RunRecord) -> Panel | None:
    tables = list[tuple[str, Table]]()
    if (audit := _audit(record)) is not None:
        tables.append(("What rewriting changed, by client", audit))
    views: Mapping[str, Any] = (record.diagnosis or {}).get("views") or {}
    if not views:
        if not tables:
            return None
        sentence = (
            f"Divergences and gradients are not measured yet: `fedsdr diagnose {record.path}`."
        )
        return Panel(label, (sentence,), (), tuple(tables))
    clients = [str(client) for client in (record.diagnosis or {}).get("clients") or []]
    figures = list[Figure]()
    for key in MEASURES:
        there = {view: of[key] for view, of in views.items() if (of or {}).get(key)}
        if key == "js_divergence_prompts":  # the same in every view
            there = dict(list(there.items())[:1])
        for view, measured in there.items():
            figures.append(_matrix(record.name, key, view, clients, measured, list(there.values())))
    maps = {view: of["pca"] for view, of in views.items() if (of or {}).get("pca")}
    everything = [point for pca in maps.values() for point in _points(pca)]
    figures += [_map(record.name, view, pca, everything) for view, pca in maps.items()]
    tables.insert(0, ("Mean over pairs of clients", _summary(views)))
    return Panel(label, tuple(_sentences(views)), tuple(figures), tuple(tables))


def _matrix(
    run: str, key: str, view: str, clients: Sequence[str], measured: Any, both: Sequence[Any]
) -> Figure:
    title, reading, unit, low, high, around, _ = MEASURES[key]
    if key == "loss_transfer":  # as far as the values go, the same for raw and rewritten
        values = [abs(v) for of in both for row in of["matrix"] for v in row if v is not None]
        low, high = -max(values, default=1.0), max(values, default=1.0)
    return heatmap(
        f"heterogeneity-{run}-{key}-{view}",
        f"{title}, {view}",
        reading=reading,
        rows=clients,
        columns=clients,
        matrix=measured["matrix"],
        colours=Colours(low, high, around, key == "loss_transfer"),
        scale_label=unit,
        row_label="trained on" if key == "loss_transfer" else "",
        column_label="tested on" if key == "loss_transfer" else "",
        shown=in_cells,
        tip=lambda value: fixed(value, 3),
    )


def _points(pca: Any) -> list[Point]:
    points = [Point(str(p["client"]), float(p["x"]), float(p["y"])) for p in pca["points"]]
    return sorted(points, key=lambda point: natural(point.kind))


def _map(run: str, view: str, pca: Any, everything: Sequence[Point]) -> Figure:
    first, second = (share(number(v)) for v in (*(pca.get("explained") or ()), None, None)[:2])
    return scatter(
        f"heterogeneity-{run}-map-{view}",
        f"Map of the rows, {view}",
        reading=(
            "Each point is a row as the base model sees it; clients apart are clouds apart. Raw "
            "and rewritten stand on the same axes."
        ),
        points=_points(pca),
        x_label=f"first component ({first} of the variance)",
        y_label=f"second component ({second})",
        among=everything,
    )


def _summary(views: Mapping[str, Any]) -> Table:
    rows = list[tuple[str, ...]]()
    for key, (title, *_) in MEASURES.items():
        means = {view: _mean(key, (of or {}).get(key)) for view, of in views.items()}
        if any(value is not None for value in means.values()):
            rows.append((title, *(fixed(value, 3) for value in means.values())))
    return Table(("measure", *views), tuple(rows))


def _sentences(views: Mapping[str, Any]) -> list[str]:
    """Raw against rewritten, measure by measure."""
    sentences = list[str]()
    raw, rewritten = views.get("raw") or {}, views.get("rewritten") or {}
    for key, (title, _, _, _, _, _, less_is_alike) in MEASURES.items():
        before, after = _mean(key, raw.get(key)), _mean(key, rewritten.get(key))
        if before is None or after is None or key == "js_divergence_prompts":
            continue
        gap = after - before
        more, less = LIKENESS.get(key, ("more alike", "less alike"))
        better = (gap < 0) == less_is_alike
        word = "about the same" if abs(gap) < 0.005 else more if better else less
        sentences.append(f"{title}: {fixed(before, 3)} raw, {fixed(after, 3)} rewritten: {word}.")
    return sentences


def _mean(key: str, measured: Any) -> float | None:
    return number((measured or {}).get("other" if key == "loss_transfer" else "mean"))


def _audit(record: RunRecord) -> Table | None:
    clients: Mapping[str, Any] = (record.rewriting or {}).get("clients") or {}
    if not clients:
        return None
    header = (
        "client", "answers", "kept", "changed", "length, rewrite / raw", "numbers lost",
        "numbers invented", "names lost", "names invented",
    )  # fmt: skip
    rows = list[tuple[str, ...]]()
    for client in sorted(clients, key=natural):
        of, written = clients[client], clients[client].get("written") or {}
        rows.append(
            (
                client,
                plain(number(of.get("examples"))),
                share(number(of.get("kept"))),
                share(number(of.get("changed"))),
                f"{fixed(number(written.get('length_ratio')), 2)} ×".replace(f"{NONE} ×", NONE),
                *(
                    share(number(written.get(key)))
                    for key in ("numbers_lost", "numbers_invented", "names_lost", "names_invented")
                ),
            )
        )
    return Table(
        header, tuple(rows), "Shares are of a client's answers, in the rewrites as they came."
    )
