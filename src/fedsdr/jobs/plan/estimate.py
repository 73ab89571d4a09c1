"""How much work, memory and time a run takes: counted where it can be, else tried or estimated."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from fedsdr.cohort.in_process import smaller_work
from fedsdr.data.render import Rendered, render_prompt
from fedsdr.distill import prompts
from fedsdr.distill.generate import Sampling, generate
from fedsdr.jobs import machine
from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.plan.problems import trained_parts, whole
from fedsdr.jobs.plan.shape import Duration, Memory, RewritingWork
from fedsdr.model.base import BaseModel, held_bytes, in_out, linear_layers
from fedsdr.model.head import PIECE
from fedsdr.parts.algorithm import Stage
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.views import parse_selection
from fedsdr.tensors import derive_seed
from fedsdr.training.stage import StageJob, train_stage

Rows = Mapping[str, Sequence[Rendered]]  # who trains -> its rows
OutOfMemory = torch.OutOfMemoryError
LARGEST_STACK, ROOM = (
    16,
    0.8,
)  # clients side by side by `auto`; of the free memory, what it counts on
TRIAL_STEPS, TRIAL_ROWS, TRIAL_TOKENS = 2, 32, 9
ACTIVATIONS = 1.75  # numbers that autograd keeps per number at either end of a linear layer


def stage_steps(stage: Stage, rows: Sequence[Rendered], local: LocalSettings) -> int:
    if not stage.terms or not rows:
        return 0
    return StageJob("", (rows,) * len(stage.terms), 0).steps(stage, local)


def count_rewriting(experiment: Experiment, asked: Sequence[Sequence[str]]) -> RewritingWork:
    """The base rewrites every client's rows once; a global teacher does when a client first meets
    it, and again whenever that is due. `asked`: the clients of each round."""
    views = experiment.algorithm.rewritten_views()
    if not views:
        return RewritingWork(0, 0, 0)
    examples = {client.client_id: len(client.train) for client in experiment.trained}
    passes = sum(examples.values())
    if views[0].teacher == "global":
        every, known, passes = max(0, views[0].redistill_every), set[str](), 0
        for number, clients in enumerate(asked):
            due = number == 0 or (every > 0 and number % every == 0)
            passes += sum(examples[c] for c in clients if due or c not in known)
            known.update(clients)
    draws = max(parse_selection(view.selection).draws for view in views)
    return RewritingWork(sum(examples.values()), draws, passes * draws)


def estimate_memory(experiment: Experiment, rows: Rows) -> Memory:
    """Training holds six copies of every branch (as the round and as the stage began, both anchors,
    as trained, as finished), four more of a trained one (gradient and its sum, AdamW's moments)."""
    base, layouts, local = experiment.base, experiment.lora.layouts, experiment.local
    held = held_bytes(base.net)
    k = min(experiment.stack, len(rows))
    trained = [whole(trained_parts([stage])) for stage in experiment.algorithm.stages]
    numbers = 6 * sum(layout.size for layout in layouts.values())
    numbers += 4 * max((sum(layouts[b].size for b in t & set(layouts)) for t in trained), default=0)
    if experiment.algorithm.folds():  # P is worn by all at once, in fp32; dense at the most
        held += sum(i * o for i, o in experiment.lora.shapes.values()) * max(4, base.dtype.itemsize)
    activations = _activations(base, k * (local.micro_batch or local.batch), rows)
    return Memory(held, k * numbers * experiment.branches.dtype.itemsize, activations)


def fit(experiment: Experiment, rows: Rows) -> None:
    """Choose K by the memory that is free now that the base is loaded."""
    fit_into(experiment, rows, memory_free(experiment))


def fit_into(experiment: Experiment, rows: Rows, free: int | None) -> None:
    """Choose K, and the micro-batch where K = 1 does not fit either, by so many bytes beside the
    base."""
    k, micro = min(LARGEST_STACK, len(rows)), experiment.local.micro_batch or experiment.local.batch
    while True:
        experiment.stack = k
        experiment.local = replace(experiment.local, micro_batch=micro)
        need = estimate_memory(experiment, rows)
        smaller = smaller_work(k, micro)
        if free is None or need.branches + need.activations <= ROOM * free or smaller is None:
            return
        k, micro = smaller


def memory_free(experiment: Experiment) -> int | None:
    """Bytes that can still be had, where that can be known."""
    device = experiment.base.net.device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine.memory_free()


def memory_there(experiment: Experiment) -> int | None:
    """Bytes that the device has, where that can be known."""
    device = experiment.base.net.device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return machine.memory_there()


def estimate_duration(
    experiment: Experiment,
    rows: Rows,
    totals: Sequence[int],
    work: RewritingWork,
) -> tuple[Duration | None, list[str]]:
    """`totals`: client steps per stage, over all rounds. And problems that only trying shows."""
    step, finite = _try_steps(experiment, rows)
    if not finite:
        return None, [
            f"the loss of a trial step is no finite number in {experiment.recipe.model.dtype}; set "
            "model.dtype: float32, or lower training.lr"
        ]
    k = min(experiment.stack, len(rows))
    training = sum(seconds / k * count for seconds, count in zip(step, totals, strict=True))
    return Duration(step, training, _try_rewriting(experiment, rows, work)), []


def _activations(base: BaseModel, many: int, rows: Rows) -> int:
    """What autograd keeps of one micro-batch of `many` rows, all as long as the longest: of every
    layer, and of the logits of trained tokens (the loss makes a wide copy and a log-softmax)."""
    every = [row for client_rows in rows.values() for row in client_rows]
    longest = max((len(row.ids) for row in every), default=0)
    trained = max((row.trained for row in every), default=0)
    head = base.net.get_output_embeddings()
    ends = sum(sum(in_out(m)) for m in linear_layers(base.net).values() if m is not head)
    if base.checkpointing:  # one layer at a time, and what enters each
        config = base.net.config
        ends = ends // config.num_hidden_layers + config.num_hidden_layers * config.hidden_size
    wide = max(4, base.dtype.itemsize)
    logits = many * trained * base.net.get_input_embeddings().get_parameter("weight").shape[0]
    if base.head is not None:
        logits = min(logits, PIECE)
    return round(ACTIVATIONS * many * longest * ends * base.dtype.itemsize + logits * 3 * wide)


def _try_steps(experiment: Experiment, rows: Rows) -> tuple[tuple[float, ...], bool]:
    """Seconds per optimiser step of every stage, on throw-away branches of the K clients with the
    widest rows; and whether all losses were finite."""
    recipe, branches = experiment.recipe, experiment.branches
    widest = sorted(rows, key=lambda c: -sum(len(row.ids) for row in rows[c]) / len(rows[c]))
    group = widest[: experiment.stack]
    flats, start = branches.begin([branches.first()] * len(group), [{} for _ in group])
    seconds, losses = list[float](), list[float]()
    for stage in experiment.algorithm.stages:
        jobs = [
            StageJob(c, (rows[c],) * len(stage.terms), derive_seed(recipe.seed, "plan", c))
            for c in group
        ]
        for steps in (1, TRIAL_STEPS):  # the first also pays for what is set up only once
            settings, began = replace(experiment.local, steps=steps), time.perf_counter()
            result = train_stage(
                experiment.lora,
                replace(stage, part=1.0),
                flats=flats,
                jobs=jobs,
                settings=settings,
                lr=recipe.training.lr,
                start=start,
            )
            losses += [loss for of in (result.losses, *result.other_losses) for loss in of]
            if steps == TRIAL_STEPS:
                seconds.append((time.perf_counter() - began) / steps)
    return tuple(seconds), all(map(math.isfinite, losses))


def _try_rewriting(experiment: Experiment, rows: Rows, work: RewritingWork) -> float:
    """Seconds for all drafts; a batch goes on until its longest response is there."""
    if not work.drafts or experiment.recipe.rewriting.engine is not None:
        return 0.0  # an endpoint's time is its own; nothing is sent there before the run
    choice = experiment.recipe.rewriting
    examples = [example for client in experiment.trained for example in client.train]
    many = min(TRIAL_ROWS, choice.batch, len(examples))
    some = examples[:: len(examples) // many][:many]
    asked = [
        render_prompt(
            experiment.base, prompts.render(prompts.choose_template(e, choice.template), e)
        )
        for e in some
    ]

    def draw(tokens: int) -> float:
        began = time.perf_counter()
        sampling = Sampling(choice.temperature, choice.top_p, choice.top_k, tokens)
        generate(experiment.base, asked, sampling, list(range(many)), many)
        return time.perf_counter() - began

    draw(1)
    tokens = min(TRIAL_TOKENS, choice.max_new_tokens)
    first = draw(1)
    each = max(0.0, draw(tokens) - first) / max(1, tokens - 1)
    lengths = sorted(
        min(r.trained, choice.max_new_tokens) for client_rows in rows.values() for r in client_rows
    )
    batches = [lengths[i : i + choice.batch] for i in range(0, len(lengths), choice.batch)]
    drawn = sum(len(batch) * batch[-1] for batch in batches)
    return work.drafts / work.examples * (first * len(lengths) + each * drawn) / many
