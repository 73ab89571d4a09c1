"""A plan without the model's weights, for a machine that is not this one: everything that needs
none is counted as ever; steps are not tried but counted in floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import torch

from fedsdr.errors import RecipeError
from fedsdr.jobs.assembly import Experiment, open_base
from fedsdr.jobs.opened import opened
from fedsdr.jobs.plan.estimate import Rows, estimate_memory, fit_into
from fedsdr.jobs.plan.make import Ground, build_plan
from fedsdr.jobs.plan.problems import whole
from fedsdr.jobs.plan.shape import Duration, Plan, RewritingWork
from fedsdr.jobs.sources import load_federation
from fedsdr.model.base import in_out, linear_layers
from fedsdr.model.outline import outline_base
from fedsdr.parts.algorithm import Stage, split_mix
from fedsdr.recipe.settings import Recipe


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
