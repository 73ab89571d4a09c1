"""One run from its directory on: rewriting, the rounds, final scores, results, sample answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, cast

from fedsdr.coordinator.gather import Cohort
from fedsdr.coordinator.job import Job, Watch
from fedsdr.coordinator.loop import ROUNDS, Judge, Outcome, run_rounds
from fedsdr.coordinator.reports import Inquiry
from fedsdr.distill.audit import AuditSummary, in_a_line, pooled
from fedsdr.errors import CorruptArtifact
from fedsdr.evaluate.finished import RESULTS, SEAL, sealed
from fedsdr.evaluate.means import ClientScores, means
from fedsdr.runs.again import write_again
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import pretty, write_json_atomic
from fedsdr.runs.ledger import timed
from fedsdr.tensors import rng_sample
from fedsdr.types import ServerState, Tensors

PROFILE = "profile.json"
CLIENTS_ASKED = 64  # for sample answers


def conduct(job: Job, cohort: Cohort, run: RunDirectory, watch: Watch) -> dict[str, Any]:
    """From wherever the run stands to its end; returns what `results.json` holds."""
    inquire = Inquiry(cohort, job.loop.run, job.loop.seed, watch.note)
    with timed(run, "rewriting"):
        rewriting = _rewriting(job, inquire, run, watch)
        profiles = _profiles(job, inquire, run, watch)
    judge = Judge(partial(_validated, job, inquire), job.best_on, job.higher_is_better)
    first = ServerState(0, job.first, seed=job.loop.seed, clients=len(job.trained))
    with timed(run, "rounds"):
        outcome = run_rounds(
            job.algorithm,
            cohort,
            clients=job.trained,
            first=first,
            run=run,
            settings=job.loop,
            base_digest=job.base_digest,
            judge=judge if job.validated else None,
            told=watch.told,
            note=watch.note,
            observe=job.observe,
        )
    if any(view.teacher == "global" for view in job.algorithm.rewritten_views()):
        late = inquire("rewrite", job.trained, outcome.state.round)  # as the last teacher did
        if late:
            watch.note(in_a_line(pooled([report.audit for report in late.values()])))
    with timed(run, "final scores"):
        results = _finish(job, inquire, run, outcome, watch, rewriting)
    with timed(run, "answers"):
        _sample_answers(job, inquire, run, profiles, results["chosen_rounds"], watch)
    return results


def _rewriting(
    job: Job, inquire: Inquiry, run: RunDirectory, watch: Watch
) -> dict[str, Any] | None:
    """Have every client's answers rewritten, where the algorithm does; what it did, in counts."""
    if not job.algorithm.rewritten_views():
        return None
    reports = inquire("rewrite", job.trained)
    if not reports:
        return None
    audits = {client: reports[client].audit for client in sorted(reports)}
    overall = pooled(list(audits.values()))
    watch.note(in_a_line(overall))
    summary: dict[str, Any] = asdict(AuditSummary(overall, audits))
    kinds = dict[str, list[int]]()
    for client in reports.values():
        for kind, (faithful, of) in client.faithful.items():
            counts = kinds.setdefault(kind, [0, 0])
            kinds[kind] = [counts[0] + faithful, counts[1] + of]
    if kinds:
        summary["faithful"] = {k: faithful / max(1, of) for k, (faithful, of) in kinds.items()}
    write_json_atomic(run.root / "rewriting.json", summary)
    return json.loads(pretty(summary))


def _profiles(job: Job, inquire: Inquiry, run: RunDirectory, watch: Watch) -> Mapping[str, Any]:
    """`profile.json`: how many rows each client has, of what kind, and how long."""
    profiles = {c: p.model_dump() for c, p in inquire("profile", job.scored).items()}
    write_again(run.root / PROFILE, pretty({"clients": profiles}), watch.note)
    return profiles


def _validated(job: Job, inquire: Inquiry, state: ServerState) -> ClientScores:
    return {
        mix: inquire(
            "score", job.scored, state.round, shared=state.shared, mix=mix, split="validation"
        )
        for mix in job.algorithm.deploys
    }


def _sample_answers(
    job: Job,
    inquire: Inquiry,
    run: RunDirectory,
    profiles: Mapping[str, Any],
    rounds: Mapping[str, int],
    watch: Watch,
) -> None:
    """Have the base, and every deployed mix at its chosen round, answer a few test questions of
    some clients. What they say stays there."""
    if not job.answers:
        return
    able = [c for c in job.scored if c in profiles and profiles[c]["rows"]["test"]]
    clients = sorted(rng_sample(able, CLIENTS_ASKED, job.loop.seed, "clients asked"))
    if not clients or not any(a.answers for a in inquire("answer", clients).values()):
        return
    for done, (name, round) in enumerate(rounds.items()):
        watch.advance("sample answers", done, len(rounds))
        shared = run.load_checkpoint(round).tensors.get("shared", {})
        inquire("answer", clients, round, shared=shared, mix=name)
    watch.advance("sample answers", len(rounds), len(rounds))


def _finish(
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
