"""One run from its directory on: rewriting, the rounds, final scores, adapters, results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

from torch import Tensor

from fedsdr.assembly import Experiment, Watch, rewriting_settings
from fedsdr.atlas.judge import judge
from fedsdr.atlas.scores import faithful_shares
from fedsdr.cohort.claims import Enrolled
from fedsdr.cohort.in_process import RAW, InProcessCohort, rewritten_views
from fedsdr.cohort.observer import RoundObserver
from fedsdr.deployed import is_personal, personal_states, save_adapters, score, score_less
from fedsdr.distill.audit import AuditRow, in_a_line, summarise, write_audit
from fedsdr.distill.rewrite import once
from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.evaluate.means import ClientScores, means
from fedsdr.keepsakes.again import write_again
from fedsdr.keepsakes.answers import keep_answers
from fedsdr.keepsakes.profile import keep_profile
from fedsdr.keepsakes.rewrites import keep_last_rewrites, keep_rewrites
from fedsdr.loop import ROUNDS, Cohort, Judge, LoopSettings, Outcome, run_rounds
from fedsdr.recorded import PARTITION, SOURCES
from fedsdr.results import RESULTS, SEAL, sealed
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import pretty, write_json_atomic
from fedsdr.runs.plain import user_path
from fedsdr.runs.timings import timed
from fedsdr.tensors import within_memory
from fedsdr.types import ServerState

Wrap = Callable[[Cohort], Cohort]
T = TypeVar("T")


def unchanged(cohort: Cohort) -> Cohort:
    """Nothing stands between the server and its clients."""
    return cohort


def conduct(
    experiment: Experiment, run: RunDirectory, watch: Watch, wrap: Wrap = unchanged
) -> dict[str, Any]:
    """From wherever the run stands to its end; returns what `results.json` holds."""
    recipe, facts = experiment.recipe, run.facts()
    for note in experiment.notes:
        watch.note(note)
    _write_partition(experiment, run, watch)
    cohort = _cohort(experiment, run, watch)
    with timed(run, "rewriting"):
        cohort.prepare()
        keep_profile(experiment, run, cohort, watch.note)
        keep_rewrites(experiment, run, cohort, watch.note)
        _tell_rewriting(cohort, watch)
        rewriting = _write_audit(experiment, run, cohort)
    scorer = experiment.federation.scorer

    def validate(state: ServerState) -> ClientScores:
        own = personal_states(run, state.round)
        return scored(lambda: score(experiment, state.shared, own, "validation", watch=watch))

    def scored(action: Callable[[], T]) -> T:
        """No more at a time than training came down to, or scoring itself. Where memory runs out,
        all of a phase is done again, so that a resume does the same."""
        experiment.stack, experiment.local = cohort.stack, cohort.training

        def less() -> None:
            run.amend(score_less(experiment))
            cohort.stack, rows = experiment.stack, experiment.recipe.evaluation.batch
            watch.note(
                f"memory ran out; from now on {rows} rows are scored at a time, of "
                f"{experiment.stack} clients side by side"
            )

        return within_memory(action, less)

    validation = Judge(validate, scorer.best_on, scorer.higher_is_better)
    has_validation = any(c.validation for c in experiment.federation.clients)
    training = recipe.training
    with timed(run, "rounds"):
        outcome = run_rounds(
            experiment.algorithm,
            wrap(cohort),
            [c.client_id for c in experiment.trained],
            ServerState(
                0,
                experiment.branches.first(),
                seed=recipe.seed,
                clients=len(experiment.trained),
            ),
            run,
            LoopSettings(
                run=facts["run"],
                seed=recipe.seed,
                rounds=training.rounds,
                lr=training.lr,
                schedule=training.schedule,
                min_lr=training.min_lr,
                participation=training.participation,
                quorum=training.quorum,
                evaluate_every=recipe.evaluation.every,
                patience=recipe.evaluation.patience,
                enrolled={
                    c.client_id: Enrolled(
                        len(c.train),
                        experiment.local,
                        experiment.max_length,
                        training.weights == "equal",
                    )
                    for c in experiment.trained
                },
                ranks=experiment.branches.ranks,
            ),
            experiment.base.digest,
            validation if has_validation else None,
            watch.told,
            watch.note,
            RoundObserver(experiment.branches, run, recipe.seed),
        )
    _tell_rewriting(cohort, watch)  # of a method whose global model rewrites while it trains
    with timed(run, "final scores"):
        results = scored(lambda: _finish(experiment, run, outcome, watch, rewriting))
    with timed(run, "answers"):
        keep_last_rewrites(experiment, run, cohort, outcome.state.round)
        scored(lambda: keep_answers(experiment, run, results["chosen_rounds"], watch))
    return results


def _finish(
    experiment: Experiment,
    run: RunDirectory,
    outcome: Outcome,
    watch: Watch,
    rewriting: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Score every mix at its chosen round on test data, save its adapters, write the results."""
    scores: dict[str, Mapping[str, Mapping[str, float]]] = {}
    unseen: dict[str, Mapping[str, Mapping[str, float]]] = {}
    chosen = dict[str, int]()
    for name, mix in experiment.algorithm.deploys.items():
        best = experiment.recipe.evaluation.select == "best"
        wanted = outcome.chosen(name) if best else outcome.state.round
        chosen[name], shared = _checkpoint(run, wanted, outcome, watch)
        personal = personal_states(run, chosen[name])
        scores |= score(experiment, shared, personal, "test", {name: mix}, watch)
        if experiment.unseen and not is_personal(experiment, mix):
            strange = experiment.unseen
            unseen |= score(experiment, shared, personal, "test", {name: mix}, watch, strange)
        save_adapters(experiment, run.inside("adapters"), shared, personal, {name: mix})
    best_on = experiment.federation.scorer.best_on
    higher = experiment.federation.scorer.higher_is_better
    summary = means(scores)
    for mix, clients in scores.items():
        values = [c[best_on] for c in clients.values() if best_on in c]
        if values:
            summary[mix][f"{best_on}_worst"] = min(values) if higher else max(values)
    rows = run.rows(ROUNDS)
    results: dict[str, Any] = {
        "method": experiment.algorithm.name,
        "seed": experiment.recipe.seed,
        "world": experiment.federation.world,
        "lr": experiment.recipe.training.lr,
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
) -> tuple[int, Mapping[str, Tensor]]:
    """The shared tensors of a round; of the last one, said so, where that one was damaged."""
    try:
        return round, run.load_checkpoint(round).tensors.get("shared", {})
    except CorruptArtifact as error:
        watch.note(f"{error}; the last round is deployed instead of round {round}")
        return outcome.state.round, outcome.state.shared


def _cohort(experiment: Experiment, run: RunDirectory, watch: Watch) -> InProcessCohort:
    recipe, training = experiment.recipe, experiment.recipe.training
    cache = recipe.rewriting.cache
    cohort = InProcessCohort(
        lora=experiment.lora,
        algorithm=experiment.algorithm,
        clients={c.client_id: c for c in experiment.trained},
        run=run,
        branches=experiment.branches,
        training=experiment.local,
        rewriting=rewriting_settings(recipe),
        cache=user_path(cache, RunError) if cache else run.inside("rewrites"),
        stack=experiment.stack,
        max_length=experiment.max_length,
        equal_weights=training.weights == "equal",
        include_texts=True,  # for the client's own eyes; the audit leaves them out
        advance=watch.advance,
        note=once(watch.note),  # every client asks the same endpoint
    )
    cohort.tokens.update({(client, RAW): rows for client, rows in experiment.raw.items()})
    return cohort


def _write_partition(experiment: Experiment, run: RunDirectory, watch: Watch) -> None:
    """Who has which rows. A data file that was written anew with the same rows has another digest:
    then the one that the run began with stays."""
    everybody = (*experiment.federation.clients, *experiment.unseen)
    text = replace(experiment.federation, clients=everybody).manifest()
    path, facts = run.root / PARTITION, run.facts()
    if facts.get(SOURCES, now := sealed(text.encode())) == now:
        write_again(path, text, watch.note)
    elif not path.is_file() or sealed(path.read_bytes()) != facts[SOURCES]:
        raise CorruptArtifact(
            f"{path} is not what this run wrote, and the data files are not those it was made from "
            "(though their rows are the same); put it back as it was"
        )


def _audited(cohort: InProcessCohort) -> list[AuditRow]:
    return [row for client in sorted(cohort.audit) for row in cohort.audit[client]]


def _tell_rewriting(cohort: InProcessCohort, watch: Watch) -> None:
    if rows := _audited(cohort):
        watch.note(in_a_line(summarise(rows).overall))


def _write_audit(
    experiment: Experiment, run: RunDirectory, cohort: InProcessCohort
) -> dict[str, Any] | None:
    """What rewriting did, in counts: no text enters these files unless asked for."""
    rows = _audited(cohort)
    if not rows:
        return None
    texts = experiment.recipe.run.include_texts
    write_audit(
        run.root / "rewriting_audit.jsonl", (r if texts else replace(r, texts=None) for r in rows)
    )
    summary: dict[str, Any] = asdict(summarise(rows))
    if (atlas := experiment.federation.atlas) is not None:
        (view, *_others) = rewritten_views(experiment.algorithm)
        trained = [e for c in cohort.clients for e in cohort.examples(c, view)]
        summary["faithful"] = faithful_shares(
            (atlas.truths[e.id].kind, judge(atlas.truths[e.id], e.response)) for e in trained
        )
    write_json_atomic(run.root / "rewriting.json", summary)
    cohort.audit.clear()  # with its texts
    return json.loads(pretty(summary))
