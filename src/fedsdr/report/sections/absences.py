"""Who was asked and did not count in a round, and why.

The rewrites and the answers of the one run that has most to show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from fedsdr.report.answer_view import IncludeTexts, answers_section
from fedsdr.report.figures.heatmap import Colours, heatmap
from fedsdr.report.figures.svg import Figure, Table
from fedsdr.report.record import RunRecord, natural, number
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.personal import Material
from fedsdr.report.viewer import rewrites_section
from fedsdr.text.numbers import counted

TITLE = "Dropouts and refused updates"
REFUSED = re.compile(
    r"update of client (?P<quote>['\"])(?P<who>.*?)(?P=quote) refused(?P<why>.*)", re.S
)
LOST = re.compile(r"client (?P<quote>['\"])(?P<who>.*?)(?P=quote) lost: (?P<why>.*)", re.S)
ROWS, CLIENTS, ROUNDS = 200, 64, 60


def absences(material: Material) -> Section | Absent:
    panels = material.panels(_missing)
    failed = [record for record in material.records if record.state == "failed"]
    if failed:
        rows = tuple((r.name, " ".join(r.notes)) for r in failed[:ROWS])
        table = Table(("cell", "why"), rows)
        sentences = (f"{counted(len(failed), 'cell')} of the sweep failed.",)
        panels = (Panel("cells", sentences, (), (("Cells that failed", table),)), *panels)
    if panels:
        lead = "Who was asked and did not count in a round, and why."
        return paneled("absences", TITLE, lead, panels)
    if not any(record.rounds for record in material.records):
        return Absent("absences", TITLE, "Rounds are not recorded here, so nothing is known.")
    lead = "None: in every round each client that was asked answered, and no update was refused."
    return paneled("absences", TITLE, lead, ())


def _missing(label: str, record: RunRecord) -> Panel | None:
    refusals = [
        (row["round"], *parse_reason(str(text)))
        for row in record.rounds
        for text in row.get("refused") or ()
    ]
    if not refusals:
        return None
    grouped = dict[tuple[str, str], list[int]]()
    for at, who, why in refusals:
        grouped.setdefault((who, why), []).append(at)
    rows = tuple(
        (who, why, str(len(rounds)), _rounds(rounds))
        for (who, why), rounds in sorted(grouped.items(), key=lambda of: natural(of[0][0]))
    )
    note = f"The first {ROWS} of {len(rows)}." if len(rows) > ROWS else ""
    table = Table(("client", "why", "times", "rounds"), rows[:ROWS], note)
    answered = sum(int(number(row.get("clients")) or 0) for row in record.rounds)
    sentence = (
        f"{counted(len(refusals), 'answer')} of {answered + len(refusals):,} did not count, from "
        f"{counted(len({who for _, who, _ in refusals}), 'client')}."
    )
    return Panel(
        label,
        (sentence,),
        (_attendance(record, refusals),),
        (("Why updates did not count", table),),
    )


def parse_reason(text: str) -> tuple[str, str]:
    """Who and why, of a sentence in rounds.jsonl."""
    for pattern in (REFUSED, LOST):
        if match := pattern.fullmatch(text):
            return match["who"], match["why"].lstrip(",: ") or "no reason given"
    return "unknown", text


def _attendance(record: RunRecord, refusals: Sequence[tuple[int, str, str]]) -> Figure:
    absent = {(who, at): why for at, who, why in refusals}
    names = sorted({*record.clients, *(who for _, who, _ in refusals)}, key=natural)
    shown = sorted(names, key=lambda n: -sum(who == n for _, who, _ in refusals))[:CLIENTS]
    names = [name for name in names if name in shown]
    rows = record.rounds[:: -(-len(record.rounds) // ROUNDS)]
    matrix = [
        [
            -1.0 if (n, r["round"]) in absent else 1.0 if n in (r.get("losses") or {}) else 0.0
            for r in rows
        ]
        for n in names
    ]
    words = {-1.0: "did not count", 1.0: "counted", 0.0: "was not asked"}
    return heatmap(
        f"absences-{record.name}",
        "Who counted in which round",
        reading=(
            "Blue: the client's update counted; orange: it was lost or refused; neutral: not asked."
        ),
        rows=names,
        columns=[str(row["round"]) for row in rows],
        matrix=matrix,
        colours=Colours(-1, 1, around_zero=True),
        scale_label="counted (1), did not (−1)",
        row_label="client",
        column_label="round",
        shown=lambda value: "",
        tip=lambda value: words.get(value or 0.0, ""),
    )


def _rounds(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 -> '1–3, 7'."""
    parts, ordered = list[str](), sorted(set(numbers))
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        parts.append(str(first) if first == last else f"{first}–{last}")
    return ", ".join(parts)


Build = Callable[[RunRecord, IncludeTexts], Section | Absent]


def rewrites(material: Material) -> Section | Absent:
    return _of_last(material, rewrites_section, "rewrites", "What rewriting did to the answers")


def answers(material: Material) -> Section | Absent:
    return _of_last(material, answers_section, "answers", "Answers side by side")


def _of_last(material: Material, build: Build, id: str, title: str) -> Section | Absent:
    """Of several runs, the last that has something: methods come from plain to boosted."""
    why = Absent(id, title, material.summarised)
    for label, record in reversed(material.detailed):
        if not record.path.is_dir():
            continue
        section = build(record, material.include_texts)
        if isinstance(section, Section):
            run = "" if material.single is not None else label
            return replace(section, data={**section.data, "run": run})
        why = section
    return why
