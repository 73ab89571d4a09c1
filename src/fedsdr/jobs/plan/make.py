"""From a recipe to its plan. Nothing is written, and the base is given back as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedsdr.coordinator.loop import LoopSettings, sample_clients
from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.opened import opened
from fedsdr.jobs.plan.estimate import (
    OutOfMemory,
    Rows,
    count_rewriting,
    estimate_duration,
    estimate_memory,
    fit,
    memory_there,
    stage_steps,
)
from fedsdr.jobs.plan.questions import ask, memory_problems
from fedsdr.jobs.plan.rows import shown
from fedsdr.jobs.plan.shape import Duration, Plan, RewritingWork
from fedsdr.jobs.plan.traffic import count_traffic
from fedsdr.jobs.plan.words import describe_algorithm, describe_model, notes
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm
from fedsdr.recipe.settings import Recipe
from fedsdr.types import ClientData


def make_plan(
    recipe: Recipe,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Plan:
    """Check and count everything; what cannot even be loaded raises its `FedsdrError`.

    Args:
        recipe: What to do, from `read_recipe`, `parse_recipe` or `build_recipe`.
        base: A model that is open already, in place of the one that the recipe names.
        algorithm: An algorithm from Python, in place of the recipe's.
        clients: Clients from Python, in place of the recipe's data; a run begun with
            them needs them again.
    """
    with opened(recipe, base, algorithm, clients) as experiment:
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


def build_plan(experiment: Experiment, ground: Ground, custom: bool) -> Plan:
    recipe, algorithm = experiment.recipe, experiment.algorithm
    rounds = recipe.training.rounds
    answers = ask(experiment, custom)
    rows = answers.rows
    if recipe.run.stack == "auto":
        ground.fit(experiment, rows)
    asked = _asked(recipe, list(rows))
    steps = {
        client: tuple(
            stage_steps(stage, client_rows, experiment.local) for stage in algorithm.stages
        )
        for client, client_rows in rows.items()
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
        run="plan",
        seed=recipe.seed,
        rounds=training.rounds,
        lr=training.lr,
        participation=training.participation,
    )
    return [sample_clients(clients, settings, n) for n in range(1, training.rounds + 1)]
