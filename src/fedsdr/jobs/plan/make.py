"""From a recipe to its plan. Nothing is written, and the base is given back as it was.

A plan without the model's weights, for a machine that is not this one: everything that needs
none is counted as ever; steps are not tried but counted in floating-point operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch

from fedsdr.coordinator.loop import LoopSettings, sample_clients
from fedsdr.errors import RecipeError
from fedsdr.jobs.assembly import Experiment, open_base
from fedsdr.jobs.opened import opened
from fedsdr.jobs.plan.estimate import (
    OutOfMemory,
    Rows,
    count_rewriting,
    estimate_duration,
    estimate_memory,
    fit,
    fit_into,
    memory_there,
    stage_steps,
)
from fedsdr.jobs.plan.problems import whole
from fedsdr.jobs.plan.questions import ask, memory_problems, shown
from fedsdr.jobs.plan.shape import (
    Duration,
    Plan,
    RewritingWork,
    describe_algorithm,
    describe_model,
    notes,
)
from fedsdr.jobs.plan.traffic import count_traffic
from fedsdr.jobs.sources import load_federation
from fedsdr.model.base import BaseModel, in_out, linear_layers
from fedsdr.model.outline import outline_base
from fedsdr.parts.algorithm import Algorithm, Stage, split_mix
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


def plan_on_paper(recipe: Recipe, memory: int | None = None, tflops: float | None = None) -> Plan:
    """`memory`: bytes that the device has; `tflops`: 10^12 operations that it does in a second,
    without which there is no time.

    Args:
        recipe: What to do, from `read_recipe`, `parse_recipe` or `build_recipe`.
        memory: Bytes that the device has.
        tflops: 10^12 operations that it does in a second; without it there is no time.
    """
    if recipe.run.stack == "auto" and memory is None:
        raise RecipeError(
            "run.stack is auto: on paper it takes the device's memory to choose; say --memory GB, "
            "or set run.stack"
        )
    federation, base = load_federation(recipe), open_base(recipe, outline_base)
    ground = Ground(memory, partial(_fit, memory or 0), partial(_duration, tflops))
    # Branches have no numbers either: one of a 7B model can take a gigabyte.
    with opened(recipe, base, None, federation, torch.device("meta")) as experiment:
        plan = build_plan(experiment, ground, custom=False)
    notes = ["on paper: no weights were read, and no step was tried"]
    if tflops is not None:
        notes.append(f"time is of training alone, at {tflops:g} TFLOPS")
    model = replace(plan.model, device=recipe.model.device, digest="")
    return replace(plan, model=model, notes=(*plan.notes, *notes))


def _fit(memory: int, experiment: Experiment, rows: Rows) -> None:
    fit_into(experiment, rows, memory - estimate_memory(experiment, rows).base)


def _duration(
    tflops: float | None,
    experiment: Experiment,
    rows: Rows,
    totals: Sequence[int],
    work: RewritingWork,
) -> tuple[Duration | None, list[str]]:
    if tflops is None:
        return None, []
    stages, rate = experiment.algorithm.stages, tflops * 1e12
    step_times = [_step(experiment, stage, rows) / rate for stage in stages]
    k = min(experiment.stack, len(rows))
    training = sum(seconds * count for seconds, count in zip(step_times, totals, strict=True))
    return Duration(tuple(k * seconds for seconds in step_times), training, None), []


def _step(experiment: Experiment, stage: Stage, rows: Rows) -> float:
    """Operations of one client's optimiser step over rows of mean length. A weight takes two for a
    token forward and two for the gradient through it; a trained one two more, for its own. Where
    layers are computed again, forward counts twice. Attention's own products, one pass more that
    an objective may want, and padding are not in it."""
    base, lora = experiment.base, experiment.lora
    batch = min(experiment.local.batch, max(map(len, rows.values())))
    tokens = batch * fmean(
        fmean(len(row.ids) for row in client_rows) for client_rows in rows.values()
    )
    trained = batch * fmean(
        fmean(row.trained for row in client_rows) for client_rows in rows.values()
    )
    head = base.net.get_output_embeddings()
    through = 6 if base.checkpointing else 4
    layers = linear_layers(base.net).values()
    frozen = sum(math.prod(in_out(m)) for m in layers if m is not head)
    frozen_head = math.prod(in_out(head)) if head is not None else 0
    # Packed, the branches of all K clients meet every token (StackedLinear).
    beside = min(experiment.stack, len(rows)) if base.packs else 1
    operations = 0.0
    for term in stage.terms:
        worn = sum(lora.layouts[b].size for b in split_mix(term.forward) if b in lora.layouts)
        learned = sum(lora.layouts[b].size for b in whole(split_mix(term.train)))
        operations += tokens * (through * (frozen + beside * worn) + 2 * beside * learned)
        operations += trained * 4 * frozen_head
    return operations
