"""A recipe, or a run, opened: everything at hand, checked, and given back at the end.

    with opened(recipe) as experiment: ...
    with reopened(run, "fedsdr.resume") as experiment: ...

`site_of` and `job_of` make of it the two sides of a run in one process: the site, where all clients
stand side by side, and what the coordinator is told.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fedsdr.atlas.judge import judge, verdict
from fedsdr.cohort.observer import RoundObserver
from fedsdr.coordinator.admit import Enrolled
from fedsdr.coordinator.job import Job, Watch
from fedsdr.coordinator.loop import LoopSettings
from fedsdr.distill.rewrite import once
from fedsdr.errors import RunError
from fedsdr.jobs.assembly import Experiment, assemble, given, rewriting_settings
from fedsdr.jobs.recorded import recorded_recipe, refuse_changed, refuse_without
from fedsdr.jobs.sources import Federation
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm
from fedsdr.recipe.settings import Recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.plain import user_path
from fedsdr.site.prepare import RAW
from fedsdr.site.score import save_mix
from fedsdr.site.site import Site, Truth
from fedsdr.types import ClientData, Example, Tensors


@contextmanager
def opened(
    recipe: Recipe,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | Federation | None = None,
    beginning: AbstractContextManager[object] | None = None,
) -> Generator[Experiment]:
    """What is given replaces what the recipe says. `beginning`: in what the branches are made. The
    base and torch's threads are as they were afterwards."""
    threads = torch.get_num_threads()
    federation = clients if isinstance(clients, Federation) else given(clients, recipe)
    try:
        with beginning or nullcontext():
            experiment = assemble(recipe, base, algorithm, federation)
        try:
            yield experiment
        finally:
            experiment.close()
    finally:
        torch.set_num_threads(threads)


@contextmanager
def reopened(
    run: RunDirectory,
    verb: str,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Generator[Experiment]:
    """As the run began; refused where it can no longer be so."""
    refuse_without(run, verb, algorithm, clients)
    with opened(recorded_recipe(run), base, algorithm, clients) as experiment:
        refuse_changed(experiment, run)
        yield experiment


def site_of(experiment: Experiment, run: RunDirectory, watch: Watch) -> Site:
    recipe, federation = experiment.recipe, experiment.federation
    cache, everybody = recipe.rewriting.cache, (*federation.clients, *experiment.unseen)
    site = Site(
        lora=experiment.lora,
        algorithm=experiment.algorithm,
        branches=experiment.branches,
        clients={c.client_id: c for c in experiment.trained},
        scored={c.client_id: c for c in everybody},
        scorer=federation.scorer,
        truth=_truth(experiment),
        run=run,
        cache=user_path(cache, RunError) if cache else run.inside("rewrites"),
        training=experiment.local,
        rewriting=rewriting_settings(recipe),
        seed=recipe.seed,
        stack=experiment.stack,
        max_length=experiment.max_length,
        rows_scored=recipe.evaluation.batch,
        rows_answered=recipe.evaluation.answers,
        equal_weights=recipe.training.weights == "equal",
        texts_in_audit=recipe.run.include_texts,
        advance=watch.advance,
        note=once(watch.note),  # every client asks the same endpoint
    )
    site.tokens.update({(client, RAW): rows for client, rows in experiment.raw.items()})
    return site


def job_of(experiment: Experiment, run: RunDirectory) -> Job:
    recipe, federation, branches = experiment.recipe, experiment.federation, experiment.branches
    training, mixes = recipe.training, experiment.algorithm.deploys

    def save(mix: str, shared: Tensors) -> None:
        save_mix(branches, run.inside("adapters") / mix, shared, {}, mixes[mix])

    return Job(
        algorithm=experiment.algorithm,
        loop=LoopSettings(
            run=run.facts()["run"],
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
                client.client_id: Enrolled(
                    len(client.train),
                    experiment.local,
                    experiment.max_length,
                    training.weights == "equal",
                )
                for client in experiment.trained
            },
            ranks=branches.ranks,
        ),
        base_digest=experiment.base.digest,
        first=branches.first(),
        trained=[c.client_id for c in experiment.trained],
        scored=[c.client_id for c in federation.clients],
        unseen=[c.client_id for c in experiment.unseen],
        validated=any(c.validation for c in federation.clients),
        best_on=federation.scorer.best_on,
        higher_is_better=federation.scorer.higher_is_better,
        select=recipe.evaluation.select,
        answers=recipe.evaluation.answers,
        world=federation.world,
        save=save,
        observe=RoundObserver(branches, run, recipe.seed),
    )


def _truth(experiment: Experiment) -> Truth | None:
    if (atlas := experiment.federation.atlas) is None:
        return None
    truths = atlas.truths

    def faithful(example: Example) -> tuple[str, bool]:
        question = truths[example.id]
        return question.kind, judge(question, example.response).faithful

    return Truth(lambda example, text: verdict(truths[example.id], text), faithful)
