"""The scores of one run: means over clients, and how far the clients are apart.

A table of scores: cells with a number to sort by and a remark below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedsdr.report.compared import all_scores
from fedsdr.report.figures.intervals import Dot, Entry, intervals
from fedsdr.report.figures.svg import Figure
from fedsdr.report.measures import (
    WORST,
    axis_label,
    direction,
    in_words,
    measures_of,
    model_in_words,
)
from fedsdr.report.record import RunRecord, number
from fedsdr.report.section import Absent, Section
from fedsdr.report.sections.personal import gains
from fedsdr.text.numbers import NONE, score


@dataclass(frozen=True, slots=True)
class Cell:
    main: str
    sub: str = ""
    value: float | None = None  # to sort by
    best: bool = False


@dataclass(frozen=True, slots=True)
class ScoreTable:
    caption: str
    header: tuple[str, ...]
    hints: tuple[str, ...]  # under each head
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def wordy(self) -> list[bool]:
        columns = zip(*self.rows, strict=True)
        return [all(cell.value is None and cell.main != NONE for cell in of) for of in columns]


@dataclass(frozen=True, slots=True)
class Block:
    """One group of runs: its table, what its figures show, and what came out of each contrast."""

    setting: str
    table: ScoreTable
    figures: tuple[Figure, ...]
    sentences: tuple[str, ...]
    contrasts: ScoreTable | None
    notes: tuple[str, ...]


TITLE = "Scores"
FIGURES, CLIENTS = 4, 40


def scores_of_run(record: RunRecord) -> Section | Absent:
    by_mix = all_scores(record)
    if not by_mix:
        return Absent("scores", TITLE, record.unscored)
    shown = measures_of([by_mix])
    rows = list[tuple[Cell, ...]]()
    for mix, scores in by_mix.items():
        chosen = ((record.results or {}).get("chosen_rounds") or {}).get(mix)
        cells = [
            Cell(model_in_words(mix)),
            Cell(str(chosen) if chosen is not None else NONE, value=number(chosen)),
        ]
        for measure in shown:
            client_scores = _by_client(record, mix, measure)
            column = [
                v
                for x in by_mix
                for v in (*_by_client(record, x, measure), by_mix[x].get(measure, 0.0))
            ]
            span = (
                f"{score(min(client_scores), column)} – {score(max(client_scores), column)}"
                if len(client_scores) > 1
                else ""
            )
            cells.append(Cell(score(scores.get(measure), column), span, scores.get(measure)))
        rows.append(tuple(cells))
    table = ScoreTable(
        "Test scores of each deployed model: mean over clients, and the range from the least to "
        "the greatest client",
        ("model", "round", *map(in_words, shown)),
        ("", "", *map(direction, shown)),
        tuple(rows),
    )
    figures = [
        _between_clients(record, list(by_mix), measure)
        for measure in shown
        if not gains(record, measure)
        and any(len(_by_client(record, x, measure)) > 1 for x in by_mix)
    ]
    sentences = (
        "One run is one seed: these figures say what happened, not what would happen again. Run "
        "several seeds and give all their directories to `fedsdr report`.",
    )
    block = Block("", table, tuple(figures[:FIGURES]), sentences, None, ())
    lead = "Each deployed model, as of the round that it is deployed from, on clients' test rows."
    return Section("scores", TITLE, "scores.html.j2", {"lead": lead, "blocks": [block]})


def _between_clients(record: RunRecord, mixes: Sequence[str], measure: str) -> Figure:
    everyone = list(dict.fromkeys(c for mix in mixes for c in _clients(record, mix)))
    entries = [
        Entry(client, tuple(Dot(number(_of(record, mix, client, measure))) for mix in mixes))
        for client in everyone[:CLIENTS]
    ]
    cut = f" The first {CLIENTS} of {len(everyone)}." if len(everyone) > CLIENTS else ""
    return intervals(
        f"scores-{measure}-by-client",
        f"{in_words(measure).capitalize()}, by client",
        f"Each row is a client, each dot a deployed model on that client's test rows.{cut}",
        tuple(mixes),
        entries,
        axis_label(measure),
        joined=len(mixes) > 1,
        shown=score,
    )


def _clients(record: RunRecord, mix: str) -> Mapping[str, Mapping[str, float]]:
    return ((record.results or {}).get("clients") or {}).get(mix) or {}


def _of(record: RunRecord, mix: str, client: str, measure: str) -> object:
    return (_clients(record, mix).get(client) or {}).get(measure)


def _by_client(record: RunRecord, mix: str, measure: str) -> list[float]:
    stem = measure.removesuffix(WORST)
    if stem != measure:
        return []
    scores = (number(_of(record, mix, c, stem)) for c in _clients(record, mix))
    return [value for value in scores if value is not None]
