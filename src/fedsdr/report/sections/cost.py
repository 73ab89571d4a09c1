"""What a run cost: bytes sent and time by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean

from fedsdr.report.figures.bars import Series, columns, lying
from fedsdr.report.figures.curves import Line, curves
from fedsdr.report.figures.svg import Figure, Table
from fedsdr.report.measures import axis_label, in_words, measures_of
from fedsdr.report.record import RunRecord, number, scores_of, total
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.personal import Material
from fedsdr.text.numbers import duration, plain, share, size

TITLE = "Traffic and time"


def cost(material: Material) -> Section | Absent:
    panels = list[Panel]()
    if material.single is None:
        panels.append(_table_of_all(material))
    panels += material.panels(_of_run)
    if not panels:
        return Absent("cost", TITLE, "No round is finished yet.")
    lead = "What went over the wire (tensors only, both ways) and how long each phase took."
    return paneled("cost", TITLE, f"{lead} {material.summarised}".strip(), tuple(panels))


def traffic_in_words(record: RunRecord) -> str:
    """Moved so far, against what all rounds come to when everyone who is asked answers."""
    up, down = (total(record, key) for key in ("bytes_up", "bytes_down"))
    moved = f"{size(up)} went up and {size(down)} down"
    budget = planned_bytes(record)
    if budget is None or not budget:
        return f"{moved}."
    part = share((up + down) / budget)
    return (
        f"{moved}: {part} of the {size(budget)} that all the recipe's rounds come to where "
        "everyone answers."
    )


def planned_bytes(record: RunRecord) -> float | None:
    """All rounds of the recipe, with as many clients as are asked and all of them answering."""
    training = record.recipe.get("training")
    rounds = number(training.get("rounds")) if isinstance(training, Mapping) else None
    if rounds is None or not record.rounds:
        return None
    per_round = list[float]()
    for row in record.rounds:
        answered = number(row.get("clients")) or 0
        asked = answered + len(row.get("refused") or ())
        up, down = number(row.get("bytes_up")) or 0.0, number(row.get("bytes_down")) or 0.0
        per_round.append((up / answered * asked if answered else 0.0) + down)
    return rounds * sum(per_round) / len(per_round)


def _table_of_all(material: Material) -> Panel:
    rows = list[tuple[str, ...]]()
    for group in material.groups:
        for label, of in group.runs.items():
            done = [r for r in of if r.results or r.rounds]
            if not done:
                continue
            seconds = [s for r in done if (s := sum(phases(r).values()))]
            means = [
                fmean(total(r, key) for r in done)
                for key in ("steps", "tokens", "bytes_up", "bytes_down")
            ]
            rows.append(
                (
                    f"{label}, {group.setting}" if group.setting else label,
                    str(len(done)),
                    plain(means[0]),
                    plain(means[1]),
                    size(means[2]),
                    size(means[3]),
                    duration(fmean(seconds)) if seconds else "–",
                )
            )
    header = ("method", "runs", "steps", "tokens", "up", "down", "time")
    note = "Time is wall time where it ran; runs that shared a rewriting cache paid for it once."
    return Panel(
        "all runs", (), (), (("Cost of a run, mean over seeds", Table(header, tuple(rows), note)),)
    )


def _of_run(label: str, record: RunRecord) -> Panel | None:
    figures, sentences = list[Figure](), list[str]()
    name = f"cost-{record.name}"
    if record.rounds:
        sentences.append(traffic_in_words(record))
        figures.append(_bytes(name, record.rounds))
        if (figure := _against_bytes(name, record)) is not None:
            figures.append(figure)
    spent = phases(record)
    if any(spent.values()):
        sentences.append(f"It took {duration(sum(spent.values()))} in all.")
        entries = sorted(spent.items(), key=lambda of: -of[1])
        figures.append(
            lying(
                f"{name}-phases", "Time by phase", reading=(
"Each bar is the wall time of one phase, all "
                "rounds together."
), entries=entries, x_label="seconds", shown=duration, head="phase",
            )
        )  # fmt: skip
    if (figure := _time_by_round(name, record)) is not None:
        figures.append(figure)
    return Panel(label, tuple(sentences), tuple(figures)) if figures else None


def phases(record: RunRecord) -> dict[str, float]:
    """Seconds by phase. The whole of the rounds is left out where its parts are known."""
    spent = dict[str, float]()
    for row in record.timings:
        phase, seconds = str(row.get("phase")), number(row.get("seconds")) or 0.0
        spent[phase] = spent.get(phase, 0.0) + seconds
    if any(row["round"] > 0 for row in record.timings) and "rounds" in spent:
        inside = sum(
            number(row.get("seconds")) or 0.0 for row in record.timings if row["round"] > 0
        )
        spent["other, within rounds"] = max(0.0, spent.pop("rounds") - inside)
        if spent["other, within rounds"] < 0.05:
            del spent["other, within rounds"]
    return {phase: seconds for phase, seconds in spent.items() if seconds}


def _bytes(name: str, rows: Sequence[Mapping[str, object]]) -> Figure:
    megabytes = {
        key: [(number(row.get(key)) or 0.0) / 1e6 for row in rows]
        for key in ("bytes_up", "bytes_down")
    }
    return columns(
        f"{name}-bytes",
        "Bytes by round",
        reading="Each bar is one round's traffic of all clients together.",
        classes=[str(row["round"]) for row in rows],
        kinds=[
            Series("up, to the server", megabytes["bytes_up"]),
            Series("down, to clients", megabytes["bytes_down"]),
        ],
        y_label="MB",
        x_label="round",
        stacked=True,
    )


def _against_bytes(name: str, record: RunRecord) -> Figure | None:
    """What a budget of so many bytes buys."""
    spent = list(
        accumulate(
            (number(r.get("bytes_up")) or 0.0) + (number(r.get("bytes_down")) or 0.0)
            for r in record.rounds
        )
    )
    scores = [scores_of(row.get("validation")) for row in record.rounds]
    measures = measures_of([s for s in scores if s])
    if not measures or not spent or not spent[-1]:
        return None
    mixes = list(dict.fromkeys(mix for s in scores for mix in s if measures[0] in s[mix]))
    lines = [
        Line(
            mix,
            [(round(b / 1e6, 3), s[mix][measures[0]]) for b, s in zip(spent, scores, strict=True)
             if measures[0] in s.get(mix, {})],
            n,
        )
        for n, mix in enumerate(mixes[:8])
    ]  # fmt: skip
    words = in_words(measures[0])
    return curves(
        f"{name}-budget",
        f"{words.capitalize()} against bytes spent",
        f"Read upwards from a budget in MB: the validation {words} that it buys.",
        lines,
        axis_label(measures[0]),
        "MB sent so far, up and down",
        within=None,
        whole=False,
    )


def _time_by_round(name: str, record: RunRecord) -> Figure | None:
    rows = [row for row in record.timings if row["round"] > 0]
    if not rows:
        return None
    rounds = sorted({row["round"] for row in rows})
    every = dict.fromkeys(str(row.get("phase")) for row in rows)
    spent = {(row["round"], str(row.get("phase"))): number(row.get("seconds")) for row in rows}
    return columns(
        f"{name}-time",
        "Time by round",
        reading="Each bar is one round's wall time, phase upon phase.",
        classes=[str(at) for at in rounds],
        kinds=[Series(phase, [spent.get((at, phase)) for at in rounds]) for phase in every],
        y_label="seconds",
        x_label="round",
        stacked=True,
    )
