"""Which of several methods leads, what else that changes, and how sure one can be."""

from __future__ import annotations

from fedsdr.evaluate.comparison import Row
from fedsdr.evaluate.verdicts import Finding
from fedsdr.report.compared import Group, all_scores, safe
from fedsdr.report.measures import UNSEEN, WORST, higher_is_better, in_words
from fedsdr.report.record import RunRecord, State, glance
from fedsdr.report.sections.cost import phases
from fedsdr.report.sections.personal import Material
from fedsdr.report.words.one import Verdict, spelt
from fedsdr.text.numbers import (
    column_decimals,
    counted,
    decimals,
    duration,
    fixed,
    listed,
    score,
    size,
)

NAMED = 4  # methods in a title
# Of the states of several runs, the first in this order is the page's.
WEIGHTY: tuple[State, ...] = ("running", "failed", "stopped", "purged", "finished")


def of_several(material: Material) -> Verdict:
    groups, records = material.groups, material.records
    labels = list(dict.fromkeys(spelt(label) for group in groups for label in group.runs))
    seeds = sorted({record.seed for record in records if record.seed is not None})
    names = listed(labels) if len(labels) <= NAMED else f"{len(labels)} methods"
    over = f", seed {seeds[0]}" if len(seeds) == 1 else f" over {len(seeds)} seeds"
    done = sum(bool(all_scores(record)) for record in records)
    states = {record.state for record in records}
    tags = [f"{done} of {counted(len(records), 'run')} scored"]
    if going := sum(record.state == "running" for record in records):
        tags.append(f"{going} under way")
    if len(groups) > 1:
        tags.append(counted(len(groups), "setting"))
    tags += ["synthetic data"] * all(record.synthetic for record in records)
    group = max(groups, key=lambda g: len(g.comparison.rows) if g.comparison else 0)
    return Verdict(
        f"{names}{over}",
        "finished" if done == len(records) else next(s for s in WEIGHTY if s in states),
        tuple(tags),
        (_leader(group), _side_effects(group), _how_sure(group, len(records) - done)),
        (
            ("methods", f"{len(labels):,}", ""),
            ("runs", f"{len(records):,}", ""),
            ("seeds", f"{len(seeds):,}", ""),
            ("traffic, all runs", size(sum(map(_moved, records))), ""),
            ("wall time, all runs", duration(sum(sum(phases(r).values()) for r in records)), ""),
        ),
    )


def _leader(group: Group) -> str:
    row, others = _best(group)
    if row is None:
        if group.measures:
            return "The runs cannot be compared: the section on scores says why."
        return "There are no scores to compare yet."
    measure = group.primary
    within = f" in {group.setting}" if group.setting else ""
    mean = _with_spread(row, measure)
    if not others:
        return (
            f"{_name(group, row)} reaches a {in_words(measure)} of {mean}{within}; there is "
            "nothing to compare it with."
        )
    end = "lowest" if higher_is_better(measure) is False else "highest"
    sentence = (
        f"{_name(group, row)} has the {end} {in_words(measure)}{within}, {mean}, before "
        f"{_name(group, others[0])} with {_with_spread(others[0], measure)}"
    )
    finding = group.finding(row.method, row.mix, measure)
    if finding is None or finding.difference is None:
        return f"{sentence}."
    difference = finding.difference
    places = column_decimals((difference.sd,), (difference.mean,))
    gap = fixed(difference.mean, places, True)
    if difference.interval:
        gap += " [{}, {}]".format(*(fixed(end, places, True) for end in difference.interval))
    return f"{sentence}; against {_right(group, finding)} that is {gap}, which {_holds(finding)}."


def _side_effects(group: Group) -> str:
    row, _ = _best(group)
    if row is None:
        return "Nothing is known of side effects."
    parts: dict[str, list[str]] = {"ahead": [], "behind": [], "level": []}
    against = ""
    for measure in group.measures[1:]:
        finding, better = group.finding(row.method, row.mix, measure), higher_is_better(measure)
        if finding is None or finding.difference is None or better is None:
            continue
        rival, step = _right(group, finding), finding.difference.mean
        if rival != (against := against or rival):
            continue
        places = column_decimals((finding.difference.sd,), (step,))
        level = not round(step, places)
        word = "level" if level else "ahead" if (step > 0) == better else "behind"
        sure = ", holds up" if finding.holds_up else ""
        parts[word].append(f"{in_words(measure)} ({fixed(step, places, True)}{sure})")
    if against:
        clauses = [f"{word} on {listed(of, 5)}" for word, of in parts.items() if of]
        return f"Besides, against {against} it is {'; '.join(clauses)}."
    for measure in group.measures:
        if measure.endswith(WORST) and measure in row.summaries:
            stem = in_words(measure.removesuffix(WORST))
            return f"Its worst-served client has a {stem} of {_with_spread(row, measure)}."
    return "No other measure can be compared."


def _how_sure(group: Group, unscored: int) -> str:
    findings = group.comparison.findings if group.comparison else ()
    paired = max((len(finding.seeds) for finding in findings), default=len(group.seeds))
    seeds, tested = counted(paired, "seed"), counted(len(findings), "contrast")
    up = sum(finding.holds_up for finding in findings)
    if not findings:
        sentence = f"Nothing was tested over {seeds}"
    elif all(finding.hopeless for finding in findings):
        sentence = f"With {seeds} and {tested} nothing can be significant, however clear it looks"
    else:
        count = (
            f"{up} of {tested} {'holds' if up == 1 else 'hold'}"
            if up
            else f"none of {tested} holds"
        )
        sentence = f"Over {seeds}, {count} up (paired t and sign-flip, Holm-adjusted)"
    if unscored:
        verb = "is" if unscored == 1 else "are"
        sentence += f"; {counted(unscored, 'run')} without final scores {verb} not in it"
    return f"{sentence}."


def _best(group: Group) -> tuple[Row | None, list[Row]]:
    """By the first measure, the models of trained clients; of equal ones, the first given."""
    rows = [
        row
        for row in (group.comparison.rows if group.comparison else ())
        if group.primary in row.summaries and not row.mix.endswith(UNSEEN)
    ]
    sign = 1 if higher_is_better(group.primary) is False else -1
    rows.sort(key=lambda row: sign * row.summaries[group.primary].mean)
    return (rows[0], rows[1:]) if rows else (None, [])


def _right(group: Group, finding: Finding) -> str:
    method, mix = finding.contrast.right.split(":")
    return _called(group, method) + ("" if mix == "global" else f" ({mix})")


def _name(group: Group, row: Row) -> str:
    name = _called(group, row.method)
    return name if row.mix == "global" else f"{name}'s {row.mix} model"


def _called(group: Group, method: str) -> str:
    return spelt(next((label for label in group.runs if safe(label) == method), method))


def _holds(finding: Finding) -> str:
    if finding.holds_up:
        return "holds up"
    return "so few seeds cannot settle" if finding.hopeless else "does not hold up"


def _with_spread(row: Row, measure: str) -> str:
    summary = row.summaries[measure]
    if summary.sd is None:
        return score(summary.mean)
    places = decimals(summary.sd)
    return f"{fixed(summary.mean, places)} ± {fixed(summary.sd, places)}"


def _moved(record: RunRecord) -> float:
    seen = glance(record)
    return seen.bytes_up + seen.bytes_down
