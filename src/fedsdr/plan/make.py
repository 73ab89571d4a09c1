"""From a recipe to its plan. Nothing is written, and the base is given back as it was."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from fedsdr.assembly import Experiment, assemble, given
from fedsdr.config import Recipe
from fedsdr.loop import LoopSettings, sample_clients
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm
from fedsdr.plan.estimate import (
    OutOfMemory,
    Rows,
    count_rewriting,
    estimate_duration,
    estimate_memory,
    fit,
    memory_there,
    stage_steps,
)
from fedsdr.plan.questions import ask, memory_problems
from fedsdr.plan.rows import shown
from fedsdr.plan.shape import Duration, Plan, RewritingWork
from fedsdr.plan.traffic import count_traffic
from fedsdr.plan.words import describe_algorithm, describe_model, notes
from fedsdr.sources import Federation
from fedsdr.types import ClientData


def make_plan(
    recipe: Recipe,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Plan:
    """Check and count everything; what cannot even be loaded raises its `FedsdrError`."""
    with assembled(recipe, base, algorithm, given(clients, recipe)) as experiment:
        ground = Ground(memory_there(experiment), fit, estimate_duration)
        return build_plan(experiment, ground, custom=algorithm is not None)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a plan reckons with: a machine, tried out; or one on paper."""

    there: int | None  # bytes that the device has
    fit: Callable[[Experiment, Rows], None]  # where run.stack is auto
    duration: Callable[
        [Experiment, Rows, Sequence[int], RewritingWork], tuple[Duration | None, list[str]]
    ]


@contextmanager
def assembled(
    recipe: Recipe,
    base: BaseModel | None,
    algorithm: Algorithm | None,
    federation: Federation | None,
    beginning: AbstractContextManager[object] | None = None,
) -> Generator[Experiment]:
    """`beginning`: in what the branches are made."""
    threads = torch.get_num_threads()
    try:
        with beginning or nullcontext():
            experiment = assemble(recipe, base, algorithm, federation)
        try:
            yield experiment
        finally:
            experiment.close()
    finally:
        torch.set_num_threads(threads)


def build_plan(experiment: Experiment, ground: Ground, custom: bool) -> Plan:
    recipe, algorithm = experiment.recipe, experiment.algorithm
    rounds = recipe.training.rounds
    answers = ask(experiment, custom)
    rows = answers.rows
    if recipe.run.stack == "auto":
        ground.fit(experiment, rows)
    asked = _asked(recipe, list(rows))
    steps = {
        client: tuple(stage_steps(stage, own, experiment.local) for stage in algorithm.stages)
        for client, own in rows.items()
    }
    totals = [
        sum(steps[c][i] for n, now in enumerate(asked, 1) if stage.when(n) for c in now)
        for i, stage in enumerate(algorithm.stages)
    ]
    work, memory = count_rewriting(experiment, asked), estimate_memory(experiment, rows)
    there = ground.there
    problems = [
        *answers.data,
        *answers.settings,
        *memory_problems(experiment, rows, there),
    ]
    duration = None
    if not problems:
        try:
            duration, faulty = ground.duration(experiment, rows, totals, work)
            problems += faulty
        except OutOfMemory:
            problems.append(
                "a trial step ran out of memory; lower run.stack, training.micro_batch or "
                "model.max_length"
            )
    return Plan(
        clients=answers.clients,
        notes=(
            *experiment.federation.files,
            *experiment.notes,
            *notes(experiment, asked, memory, there),
        ),
        model=describe_model(experiment),
        algorithm=describe_algorithm(algorithm, recipe),
        rounds=rounds,
        sampled=len(asked[0]),
        stack=min(experiment.stack, len(asked[0])),
        traffic=count_traffic(experiment, asked),
        steps=steps,
        total_steps=sum(totals),
        rewriting=work,
        memory=memory,
        duration=duration,
        problems=tuple(dict.fromkeys(problems)),
        example=shown(experiment.base, rows),
    )


def _asked(recipe: Recipe, clients: Sequence[str]) -> list[list[str]]:
    """Who takes part, round by round: the very clients that the run will draw."""
    training = recipe.training
    settings = LoopSettings(
        "plan", recipe.seed, training.rounds, training.lr, participation=training.participation
    )
    return [sample_clients(clients, settings, n) for n in range(1, training.rounds + 1)]
