"""`profile.json`: how many rows each client has, of what kind, and how long. No record's text."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from fedsdr.assembly import Experiment
from fedsdr.cohort.in_process import RAW, InProcessCohort
from fedsdr.data.render import Rendered
from fedsdr.distill.rewrite import Note
from fedsdr.keepsakes.again import write_again
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import pretty
from fedsdr.types import ClientData, Example

PROFILE = "profile.json"
EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # the last bin is open
LABELS, LABEL_LENGTH, OTHER = 64, 80, "other"
FEWEST = 5  # rows that share a label: one that marks a row or two may name a person


def keep_profile(
    experiment: Experiment, run: RunDirectory, cohort: InProcessCohort, note: Note
) -> None:
    """How many rows each client has, of what kind, and how long: of the training rows, in tokens as
    they are trained on."""
    if not experiment.raw:  # a resume needs them here for the first time
        experiment.tokenise()
        cohort.tokens.update({(c, RAW): rows for c, rows in experiment.raw.items()})
    clients, rewritten = experiment.federation.clients, dict[str, list[Rendered]]()
    for (client, view), rows in cohort.tokens.items():
        if view != RAW:
            rewritten.setdefault(client, rows)
    raw = _dealt(experiment, experiment.raw)
    new = _dealt(experiment, rewritten) if rewritten else {}
    domains, origins = _labels(clients, lambda e: e.domain), _labels(clients, lambda e: e.origin)
    profiles: dict[str, Any] = {}
    for client in clients:
        name, lengths = client.client_id, {"raw": _responses(raw[client.client_id])}
        if name in new:
            lengths["rewritten"] = _responses(new[name])
        profiles[name] = {
            "rows": {
                "train": len(client.train),
                "validation": len(client.validation),
                "test": len(client.test),
            },
            "domains": domains[name],
            "origins": origins[name],
            "prompt_tokens": histogram([row.prompt for row in raw[name]]),
            "response_tokens": lengths,
        }
    write_again(run.root / PROFILE, pretty({"clients": profiles}), note)


def histogram(lengths: Sequence[int]) -> dict[str, Any]:
    """Counts between `EDGES`, percentiles by nearest rank, and the mean."""
    counts, ordered = [0] * len(EDGES), sorted(lengths)
    for length in ordered:
        counts[bisect_right(EDGES, length) - 1] += 1
    ranks = {f"p{p}": -(-p * len(ordered) // 100) - 1 for p in (10, 50, 90)}
    return {
        "edges": list(EDGES),
        "counts": counts,
        **{name: ordered[rank] if ordered else None for name, rank in ranks.items()},
        "mean": round(sum(ordered) / len(ordered), 2) if ordered else None,
    }


def _dealt(
    experiment: Experiment, rows: Mapping[str, Sequence[Rendered]]
) -> dict[str, list[Rendered]]:
    """Whose rows they are, also where all are pooled to train: they stand client by client."""
    every = chain.from_iterable(rows[client.client_id] for client in experiment.trained)
    clients = experiment.federation.clients
    return {client.client_id: list(islice(every, len(client.train))) for client in clients}


def _responses(rows: Sequence[Rendered]) -> dict[str, Any]:
    return histogram([len(row.ids) - row.prompt for row in rows])


def _labels(
    clients: Sequence[ClientData], label: Callable[[Example], str]
) -> dict[str, dict[str, int]]:
    """By client; rare ones, and those beyond the most frequent, are all one."""
    counted = {
        c.client_id: Counter(label(e)[:LABEL_LENGTH] for e in c.train if label(e)) for c in clients
    }
    whole = Counter[str]()
    for own in counted.values():
        whole.update(own)
    common = (name for name in whole if whole[name] >= FEWEST)
    named = sorted(common, key=lambda name: (-whole[name], name))[:LABELS]
    found = dict[str, dict[str, int]]()
    for client, own in counted.items():
        found[client] = {name: own[name] for name in named if own[name]}
        if rest := own.total() - sum(found[client].values()):
            found[client][OTHER] = found[client].get(OTHER, 0) + rest
    return found
