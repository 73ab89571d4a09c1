"""The table of scores: mean ± sd, interval, and in words what holds up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedsdr.evaluate.comparison import Row, render_text
from fedsdr.evaluate.statistics import Summary
from fedsdr.evaluate.verdicts import Finding
from fedsdr.report.compared import Group, safe
from fedsdr.report.figures.intervals import Dot, Entry, intervals
from fedsdr.report.figures.svg import Figure
from fedsdr.report.measures import (
    UNSEEN,
    WORST,
    axis_label,
    direction,
    higher_is_better,
    in_words,
    model_in_words,
)
from fedsdr.report.section import Absent, Section
from fedsdr.report.sections.personal import Material
from fedsdr.report.sections.scores_of_one import TITLE, Block, Cell, ScoreTable, scores_of_run
from fedsdr.text.numbers import NONE, column_decimals, decimals, fixed

FIGURES, MOST_ROWS, SENTENCES = 4, 40, 6


def scores(material: Material) -> Section | Absent:
    if material.single is not None:
        return scores_of_run(material.single)
    blocks = [_block(n, group) for n, group in enumerate(material.groups) if group.comparison]
    if not blocks:
        notes = [note for group in material.groups for note in group.notes]
        return Absent("scores", TITLE, " ".join(["No run has scores to compare.", *notes]))
    lead = (
        "Test scores, mean over clients, then mean ± standard deviation over seeds; below it the "
        "95 % interval of that mean (Student's t). Runs of one seed share data, partition and "
        "start, so they are compared pair by pair."
    )
    return Section("scores", TITLE, "scores.html.j2", {"lead": lead, "blocks": blocks})


def _block(place: int, group: Group) -> Block:
    assert group.comparison is not None
    rows, shown = group.comparison.rows, group.measures
    digits = {
        m: column_decimals((s.sd for s in of), (s.mean for s in of))
        for m in shown
        for of in [[row.summaries[m] for row in rows if m in row.summaries]]
    }
    best = {
        m: _best(m, [r.summaries[m].mean for r in rows if m in r.summaries and not _apart(r)])
        for m in shown
    }
    labels = {safe(label): label for label in group.runs}
    table = ScoreTable(
        "Test scores of each model over seeds",
        ("method", "model", "seeds", *map(in_words, shown)),
        ("", "", "", *map(direction, shown)),
        tuple(
            (
                Cell(labels.get(row.method, row.method)),
                Cell(model_in_words(row.mix)),
                Cell(str(row.n), value=row.n),
                *(
                    _cell(row.summaries.get(m), digits[m], None if _apart(row) else best[m], row.n)
                    for m in shown
                ),
            )
            for row in rows
        ),
    )
    plain = [m for m in shown if not m.endswith(WORST)][:FIGURES]
    figures = [_figure(place, group, m, digits[m]) for m in plain]
    findings = group.comparison.findings
    first = [f for f in findings if f.contrast.measure == group.primary]
    power = render_text(replace(group.comparison, notes=())).splitlines()[: -len(findings) or None]
    sentences = [*power, *(group.called(f.verdict) for f in first[:SENTENCES])]
    return Block(
        group.setting,
        table,
        tuple(figures),
        tuple(sentences),
        contrasts(group, digits) if findings else None,
        group.notes,
    )


def contrasts(group: Group, digits: Mapping[str, int]) -> ScoreTable:
    findings = group.comparison.findings if group.comparison else ()
    rows = list[tuple[Cell, ...]]()
    for finding in findings:
        contrast, difference = finding.contrast, finding.difference
        places = digits.get(contrast.measure, 3)
        if difference is not None and difference.sd:
            places = max(places, decimals(difference.sd))
        ends = (difference.interval if difference else None) or ()
        span = f"[{', '.join(fixed(end, places, True) for end in ends)}]" if ends else ""
        mean = difference.mean if difference else None
        rows.append(
            (
                Cell(group.side(contrast.left)),
                Cell(group.side(contrast.right)),
                Cell(in_words(contrast.measure)),
                Cell(fixed(mean, places, True), span, mean),
                Cell(_p(finding.paired_t_holm), value=finding.paired_t_holm),
                Cell(_p(finding.sign_flip_holm), value=finding.sign_flip_holm),
                Cell(_told(finding)),
            )
        )
    caption = (
        "Every contrast that was tested. p-values are two-sided and adjusted over all contrasts "
        "(Holm); a difference holds up when both are below .05"
    )
    header = ("model", "against", "measure", "difference", "paired t", "sign-flip", "in words")
    hints = ("", "", "", "95 % interval", "adjusted p", "adjusted p", "")
    return ScoreTable(caption, header, hints, tuple(rows))


def _figure(place: int, group: Group, measure: str, places: int) -> Figure:
    assert group.comparison is not None
    rows = [r for r in group.comparison.rows if measure in r.summaries and not _apart(r)]
    rows.sort(key=lambda row: -row.summaries[measure].mean)
    better = higher_is_better(measure)
    if better is False:
        rows.reverse()
    first = "highest" if better is None else "best"
    entries = [
        Entry(
            group.side(f"{row.method}:{row.mix}"),
            (Dot(row.summaries[measure].mean, *(row.summaries[measure].interval or ())),),
        )
        for row in rows[:MOST_ROWS]
    ]
    cut = f" The first {MOST_ROWS} of {len(rows)}." if len(rows) > MOST_ROWS else ""
    lone = all(row.n == 1 for row in rows)
    bar = "One seed each, so there are no intervals." if lone else "The bar is the 95 % interval."
    return intervals(
        f"scores-{place}-{measure}",
        f"{in_words(measure).capitalize()}, by model",
        f"Each dot is a model's mean over seeds, the {first} at the top. {bar}{cut}",
        (measure,),
        entries,
        axis_label(measure),
        shown=lambda value: fixed(value, places),
    )


def _cell(summary: Summary | None, places: int, best: float | None, runs: int) -> Cell:
    if summary is None:
        return Cell(NONE)
    main = fixed(summary.mean, places)
    if summary.sd is not None:
        main += f" ± {fixed(summary.sd, places)}"
    sub = ""
    if summary.interval is not None:
        sub = f"[{fixed(summary.interval[0], places)}, {fixed(summary.interval[1], places)}]"
    if summary.n < runs:
        sub += f" n = {summary.n}"
    return Cell(main, sub, summary.mean, summary.mean == best)


def _apart(row: Row) -> bool:
    """Scores on clients that never trained are no rivals to those on clients that did."""
    return row.mix.endswith(UNSEEN)


def _best(measure: str, values: Sequence[float]) -> float | None:
    better = higher_is_better(measure)
    if better is None or len(values) < 2:
        return None
    return max(values) if better else min(values)


def _told(finding: Finding) -> str:
    if finding.difference is None:
        return "no seed in common"
    if abs(finding.difference.mean) < 1e-12:
        return "level"
    if finding.holds_up:
        return "holds up"
    if finding.hopeless:
        return "too few seeds to tell"
    return "does not hold up"


def _p(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NONE
    # Two figures would write .0496 as .05, which does not hold up.
    return "< .0001" if p < 1e-4 else f"{p:.3g}" if p < 0.1 else f"{p:.2f}"
