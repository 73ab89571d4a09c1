"""What came out of one run, for whom, and what it cost.

The head of a page, and how methods and states are spelt in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from fedsdr.evaluate.verdicts import SPELT
from fedsdr.report.compared import all_scores
from fedsdr.report.measures import UNSEEN, higher_is_better, in_words, measures_of
from fedsdr.report.record import STATES, RunRecord, State, glance, number, scores_of
from fedsdr.report.sections.cost import phases, planned_bytes, traffic_in_words
from fedsdr.report.sections.personal import gains
from fedsdr.text.numbers import counted, decimals, duration, fixed, listed, score, share, size


@dataclass(frozen=True, slots=True)
class Verdict:
    title: str
    state: State
    tags: tuple[str, ...]
    sentences: tuple[str, ...]
    facts: tuple[tuple[str, str, str], ...]  # (name, value, hint)


def spelt(method: str) -> str:
    """`fedsd+fedavg` -> `FedSD+FedAvg`."""
    return "+".join(SPELT.get(part, part) for part in method.split("+"))


def of_run(record: RunRecord) -> Verdict:
    seen, clients, name = glance(record), record.clients, spelt(record.method)
    on = f" on {counted(len(clients), 'client')}" if clients else ""
    seed = f", seed {record.seed}" if record.seed is not None else ""
    tags = (
        STATES[record.state],
        f"{seen.round} of {seen.rounds} rounds" if seen.rounds else counted(seen.round, "round"),
        "synthetic data" if record.synthetic else "private data",
    )
    sentences = (_what_came_out(record), _for_whom(record), _what_it_cost(record))
    return Verdict(f"{name}{on}{seed}", record.state, tags, sentences, _facts(record))


def _facts(record: RunRecord) -> tuple[tuple[str, str, str], ...]:
    seen = glance(record)
    done = seen.split == "test"
    facts = [
        (
            f"{in_words(seen.measure)}, {mix}",
            score(value, seen.scores.values()),
            "" if done else "on validation rows",
        )
        for mix, value in seen.scores.items()
    ][:3]
    if moved := seen.bytes_up + seen.bytes_down:
        budget = planned_bytes(record)
        hint = f"{share(moved / budget)} of what all rounds come to" if budget else ""
        facts.append(("traffic", size(moved), hint))
    if spent := sum(phases(record).values()):
        facts.append(("wall time", duration(spent), ""))
    refused, asked = _attendance(record)
    if asked:
        facts.append(("updates that counted", f"{asked - refused:,} of {asked:,}", ""))
    return tuple(facts)


def _what_came_out(record: RunRecord) -> str:
    name, by_mix, seen = spelt(record.method), all_scores(record), glance(record)
    if not by_mix:
        loss = f", at a mean training loss of {fixed(seen.loss)}" if seen.loss is not None else ""
        rounds = counted(seen.round, "round")
        return f"{name} is {STATES[record.state]} after {rounds}{loss}. {record.unscored}"
    measures = [m for m in measures_of([by_mix]) if not m.endswith("_worst")]
    chosen = (record.results or {}).get("chosen_rounds") or {}
    parts = list[str]()
    for mix, scores in by_mix.items():
        shown = [
            f"{in_words(m)} {score(scores[m], (of[m] for of in by_mix.values() if m in of))}"
            for m in measures[:3]
            if m in scores
        ]
        if mix.endswith(UNSEEN) or not shown:
            continue
        at = f" (of round {chosen[mix]})" if mix in chosen else ""
        parts.append(f"its {mix} model{at} reaches {listed(shown)}")
    return f"{name}, after {counted(seen.round, 'round')}: {'; '.join(parts)}."


def _for_whom(record: RunRecord) -> str:
    measure = next(iter(measures_of([all_scores(record)])), "")
    better = higher_is_better(measure)
    if (pairs := gains(record, measure)) and better is not None:
        return _gain(measure, pairs, better)
    mix, clients = next(iter(((record.results or {}).get("clients") or {}).items()), ("", {}))
    values = {c: s[measure] for c, s in scores_of(clients).items() if measure in s}
    if len(values) > 1 and better is not None:
        ordered = sorted(values, key=lambda c: values[c] if better else -values[c])
        worst, best = ordered[0], ordered[-1]
        low, high = (score(values[client], values.values()) for client in (worst, best))
        if low == high:
            return f"The {mix} model serves all clients alike: {in_words(measure)} is {high}."
        return (
            f"The {mix} model serves clients unequally: {in_words(measure)} is {high} for {best}, "
            f"the best served, and {low} for {worst}, the worst."
        )
    losses = (record.rounds[-1].get("losses") if record.rounds else None) or {}
    known = {c: v for c, loss in losses.items() if (v := number(loss)) is not None}
    if len(known) > 1:
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        return (
            f"In the last round the training loss runs from {fixed(known[low], 2)} ({low}) to "
            f"{fixed(known[high], 2)} ({high})."
        )
    return "How the clients fare one by one is not recorded."


def _gain(measure: str, pairs: Mapping[str, tuple[float, float]], higher: bool) -> str:
    steps = {client: personal - shared for client, (shared, personal) in pairs.items()}
    good = sum((step > 0) == higher for step in steps.values() if step)
    ordered = sorted(steps, key=lambda c: steps[c] if higher else -steps[c])
    least, most = ordered[0], ordered[-1]
    places = max(2, decimals(max(map(abs, steps.values()))))
    mean, low, high = (
        fixed(value, places, True) for value in (fmean(steps.values()), steps[least], steps[most])
    )
    return (
        f"On {in_words(measure)}, the personal model is ahead of the global one for {good} of "
        f"{counted(len(steps), 'client')}: by {mean} on average, from {low} ({least}) to {high} "
        f"({most})."
    )


def _what_it_cost(record: RunRecord) -> str:
    parts = list[str]()
    if record.rounds:
        parts.append(traffic_in_words(record).rstrip("."))
    refused, asked = _attendance(record)
    if refused:
        parts.append(f"{refused:,} of {asked:,} updates did not count")
    conflicts = [
        value
        for row in record.diagnostics
        for of in [(row.get("branches") or {}).get("R") or {}]
        if (value := number(of.get("conflict"))) is not None
    ]
    if conflicts:
        apart = share(conflicts[-1])
        parts.append(f"in the last round {apart} of the pairs of clients had R's cosine below 0")
    parts.append("with one seed nobody knows yet whether this holds up")
    sentence = "; ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def _attendance(record: RunRecord) -> tuple[int, int]:
    """Updates that did not count, of those that were asked for."""
    refused = sum(len(row.get("refused") or ()) for row in record.rounds)
    return refused, refused + sum(int(number(row.get("clients")) or 0) for row in record.rounds)
