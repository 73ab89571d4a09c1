"""A finished run: every deployed mix at its chosen round scored on test data, and written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from fedsdr.coordinator.job import Job
from fedsdr.coordinator.loop import ROUNDS, Outcome
from fedsdr.coordinator.observer import Watch
from fedsdr.coordinator.reports import Inquiry
from fedsdr.errors import CorruptArtifact
from fedsdr.evaluate.finished import RESULTS, SEAL, sealed
from fedsdr.evaluate.means import means
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import write_json_atomic
from fedsdr.types import Tensors


def finish(
    job: Job,
    inquire: Inquiry,
    run: RunDirectory,
    outcome: Outcome,
    watch: Watch,
    rewriting: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Score every mix, have its adapters saved, write the results."""
    scores, unseen = dict[str, Any](), dict[str, Any]()
    chosen = dict[str, int]()
    for name, mix in job.algorithm.deploys.items():
        wanted = outcome.chosen(name) if job.select == "best" else outcome.state.round
        at, shared = _checkpoint(run, wanted, outcome, watch)
        chosen[name], personal = at, job.algorithm.is_personal(mix)
        scores[name] = inquire("score", job.scored, at, shared=shared, mix=name)
        if job.unseen and not personal:
            unseen[name] = inquire("score", job.unseen, at, shared=shared, mix=name)
        if personal:
            inquire("save", job.trained, at, shared=shared, mix=name)
        else:
            job.save(name, shared)
    summary = means(scores)
    for mix, clients in scores.items():
        values = [c[job.best_on] for c in clients.values() if job.best_on in c]
        if values:
            worst = min(values) if job.higher_is_better else max(values)
            summary[mix][f"{job.best_on}_worst"] = worst
    rows = run.rows(ROUNDS)
    results: dict[str, Any] = {
        "method": job.algorithm.name,
        "seed": job.loop.seed,
        "world": job.world,
        "lr": job.loop.lr,
        "rounds": outcome.state.round,
        "chosen_rounds": chosen,
        **{name: _total(rows, name) for name in ("bytes_up", "bytes_down", "steps", "tokens")},
        "scores": summary,
        "clients": scores,
    }
    if unseen:
        results["unseen"] = means(unseen)
    if rewriting is not None:
        results["rewriting"] = rewriting
    write_json_atomic(run.root / RESULTS, results)
    run.amend({SEAL: sealed((run.root / RESULTS).read_bytes())})
    return results


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [row.get(name) for row in rows]  # of an older run nobody has checked them
    if not all(type(value) in (int, float) for value in values):
        raise CorruptArtifact(f"{ROUNDS}: a row has no {name!r} that is a number; put it back")
    return sum(cast("list[float]", values))


def _checkpoint(
    run: RunDirectory, round: int, outcome: Outcome, watch: Watch
) -> tuple[int, Tensors]:
    """The shared tensors of a round; of the last one, said so, where that one was damaged."""
    try:
        return round, run.load_checkpoint(round).tensors.get("shared", {})
    except CorruptArtifact as error:
        watch.note(f"{error}; the last round is deployed instead of round {round}")
        return outcome.state.round, outcome.state.shared
