"""What a run would do, before it does any of it.

    plan = make_plan(read_recipe("recipe.yaml"))
    plan.problems  # why it cannot work; empty where `train` may start

Nothing is written. Two optimiser steps are tried on throw-away branches, and the base is given back as it was.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

import torch
from jinja2 import TemplateError

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.atlas.scores import AtlasScorer
from fedsdr.config import Recipe
from fedsdr.data.render import Rendered, render, render_prompt
from fedsdr.distill import prompts
from fedsdr.distill.generate import Sampling, generate
from fedsdr.distill.selection import parse_selection
from fedsdr.errors import DataError, RecipeError
from fedsdr.experiment import Experiment, assemble
from fedsdr.loop import LoopSettings, sample_clients
from fedsdr.model.base import PLAIN_TEMPLATE, BaseModel, linear_layers
from fedsdr.parts.algorithm import Algorithm, Stage, Term, shared_branches, split_mix
from fedsdr.parts.objectives import CrossEntropy, Objective, Sum
from fedsdr.parts.views import Mixed, Raw, Rewritten, View
from fedsdr.tensors import derive_seed, nbytes
from fedsdr.train import LocalSettings, StageJob, train_stage
from fedsdr.types import ClientData, Example

UNCUT = 1 << 40
TRIAL_STEPS, TRIAL_ROWS, TRIAL_TOKENS = 2, 32, 9
NAMED = 8  # clients that one message names


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens."""

    median: float
    longest: int


@dataclass(frozen=True, slots=True)
class ClientRow:
    """One client's data; lengths are of its training rows, before anything is cut."""

    client_id: str
    train: int
    validation: int
    test: int
    domains: Mapping[str, int]
    prompt: Lengths
    response: Lengths
    truncated: int  # rows that lose the end of their response to max_length
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class ModelRow:
    path: str
    parameters: int
    dtype: str
    device: str
    digest: str
    template: str  # where the chat template comes from
    layers: tuple[str, ...]  # that get branches
    trainable: Mapping[str, int]  # branch -> parameters of one client


@dataclass(frozen=True, slots=True)
class AlgorithmRow:
    name: str
    stages: tuple[str, ...]  # in words
    shared: str
    stays: str
    deploys: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of tensors; `*_client` and `*_round` in one round, `total` both ways over all rounds."""

    up_client: int
    down_client: int
    up_round: int
    down_round: int
    total: int


@dataclass(frozen=True, slots=True)
class RewritingWork:
    """`drafts` is the most that can be needed: the cache and early passes of `resample` save some."""

    examples: int
    draws: int
    drafts: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. Base and branches are counted, activations are an estimate for the longest rows."""

    base: int
    branches: int
    activations: int

    @property
    def total(self) -> int:
        return self.base + self.branches + self.activations


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds, an estimate: steps were timed on the clients with the longest rows, rewriting on a few tokens
    (rewrites taken to be as long as the responses). Evaluation is not in it."""

    step: tuple[float, ...]  # per stage, one step of all clients in a group
    training: float
    rewriting: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What `fedsdr plan` shows. `example` is record text: the training tokens of one row, with whether each is
    trained; it is in no repr and not in `plan_json`."""

    clients: tuple[ClientRow, ...]
    notes: tuple[str, ...]
    model: ModelRow
    algorithm: AlgorithmRow
    rounds: int
    sampled: int  # clients per round
    stack: int
    traffic: Traffic
    steps: Mapping[str, tuple[int, ...]]  # who trains -> optimiser steps per stage of a round
    total_steps: int
    rewriting: RewritingWork
    memory: Memory
    duration: Duration | None  # None where there are problems: nothing was tried
    problems: tuple[str, ...]
    example: tuple[tuple[str, bool], ...] = field(repr=False)


def make_plan(
    recipe: Recipe, base: BaseModel | None = None, algorithm: Algorithm | None = None
) -> Plan:
    """Check everything and count everything; what cannot even be loaded raises its `FedsdrError`."""
    threads = torch.get_num_threads()
    try:
        experiment = assemble(recipe, base, algorithm)
        try:
            return _plan(experiment, custom=algorithm is not None)
        finally:
            experiment.close()
    finally:
        torch.set_num_threads(threads)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, without any record text."""
    return {name: value for name, value in asdict(plan).items() if name != "example"}


def _plan(experiment: Experiment, custom: bool) -> Plan:
    recipe, algorithm = experiment.recipe, experiment.algorithm
    local, loop = _local(recipe), _loop(recipe)
    faults = _Faults()
    read = [_read(experiment, client, faults) for client in experiment.federation.clients]
    rows = {client.client_id: own for client, own in read}
    if algorithm.pool:
        rows = {experiment.trained[0].client_id: [row for own in rows.values() for row in own]}
    _check_rewriting(experiment, faults)

    ids = list(rows)
    asked = [sample_clients(ids, loop, number + 1) for number in range(recipe.training.rounds)]
    steps = {who: tuple(_steps(s, own, local) for s in algorithm.stages) for who, own in rows.items()}
    total = [0 for _ in algorithm.stages]
    for number, clients in enumerate(asked, 1):
        for index, stage in enumerate(algorithm.stages):
            total[index] += sum(steps[c][index] for c in clients) if stage.when(number) else 0
    work, memory = _rewriting_work(experiment, asked), _memory(experiment, local, rows)

    problems = [
        *faults.told(),
        *_data_problems(read, recipe),
        *_recipe_problems(recipe, algorithm, experiment, len(asked[0])),
        *_algorithm_problems(algorithm, recipe.training.rounds),
        *([] if custom else _choice_problems(recipe, algorithm)),
    ]
    there = _memory_there(experiment)
    if there is not None and memory.base + memory.branches > there:
        problems.append(
            f"base and branches alone need {memory.base + memory.branches:,} bytes of memory, there are {there:,}; "
            "lower run.stack or the ranks"
        )
    duration = None
    if not problems:
        duration = _duration(experiment, local, rows, total, work, problems)
    size = nbytes(experiment.branches.first())
    return Plan(
        clients=tuple(client for client, _ in read),
        notes=(*experiment.notes, *_notes(experiment, asked, memory, there)),
        model=_model(experiment),
        algorithm=_describe(algorithm, recipe),
        rounds=recipe.training.rounds,
        sampled=len(asked[0]),
        stack=min(recipe.run.stack, len(asked[0])),
        traffic=Traffic(
            size, size, size * len(asked[0]), size * len(asked[0]), 2 * size * sum(map(len, asked))
        ),
        steps=steps,
        total_steps=sum(total),
        rewriting=work,
        memory=memory,
        duration=duration,
        problems=tuple(dict.fromkeys(problems)),
        example=_shown(experiment.base, rows),
    )


# --- the clients' rows ------------------------------------------------------------------------------------------------


class _Faults:
    """Rows that cannot be used, gathered by what is wrong with them; ids only, never their text."""

    def __init__(self) -> None:
        self.found = dict[str, dict[str, list[str]]]()

    def add(self, wrong: str, client: str, example: Example) -> None:
        self.found.setdefault(wrong, {}).setdefault(client, []).append(example.id)

    def told(self) -> Iterator[str]:
        for wrong, clients in self.found.items():
            places = [
                f"client {client!r}, example {ids[0]!r}"
                + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
                for client, ids in clients.items()
            ]
            rest = f"; and {len(places) - NAMED} more clients" if len(places) > NAMED else ""
            yield f"{'; '.join(places[:NAMED])}{rest}: {wrong}"


def _limit(experiment: Experiment) -> int:
    return min(experiment.recipe.model.max_length, experiment.base.max_length)


def _read(
    experiment: Experiment, client: ClientData, faults: _Faults
) -> tuple[ClientRow, list[Rendered]]:
    """One client's counts and its training rows, rendered as training will render them."""
    base, limit = experiment.base, _limit(experiment)
    whole = _rendered(base, client.client_id, client.train, limit, faults)
    scorer = experiment.federation.scorer
    for held_out in (client.validation, client.test):
        if not isinstance(scorer, AtlasScorer):
            _rendered(base, client.client_id, held_out, limit, faults)
            continue
        for example in held_out:
            length = _prompt_length(base, client.client_id, example, faults)
            if length is not None and length + scorer.max_new_tokens > base.max_length:
                wrong = (
                    f"prompt and answer ({scorer.max_new_tokens} tokens) exceed the model's {base.max_length} positions, "
                    "so it could not be scored"
                )
                faults.add(wrong, client.client_id, example)
    domains = Counter(e.domain for e in client.train if e.domain)
    cut = [Rendered(r.ids[:limit], r.weights[:limit], len(r.ids) > limit) for r in whole]
    row = ClientRow(
        client.client_id,
        len(client.train),
        len(client.validation),
        len(client.test),
        dict(sorted(domains.items())),
        _lengths([len(r.ids) - r.trained for r in whole]),
        _lengths([r.trained for r in whole]),
        sum(r.truncated for r in cut),
        sum(r.trained for r in cut),
    )
    return row, cut


def _rendered(
    base: BaseModel, client: str, examples: Sequence[Example], limit: int, faults: _Faults
) -> list[Rendered]:
    """The rows that can be trained or scored, uncut."""
    found = list[Rendered]()
    for example in examples:
        try:
            row = render(base, example, UNCUT)
        except DataError as error:
            faults.add(str(error), client, example)
            continue
        except TemplateError:
            faults.add(_REFUSED, client, example)
            continue
        if len(row.ids) - row.trained >= limit:
            wrong = (
                f"the prompt alone fills model.max_length ({limit} tokens), so no token of the response would be trained "
                "or scored; raise model.max_length"
                + (f" (the model reads up to {base.max_length})" if base.max_length < UNCUT >> 10 else "")
                + " or drop the row"
            )
            faults.add(wrong, client, example)
            continue
        found.append(row)
    return found


# A template's own message could quote what it was given.
_REFUSED = (
    "the chat template refuses the conversation (a system line, say, or an order of turns that it does not "
    "know); set model.chat_template: plain"
)


def _prompt_length(
    base: BaseModel, client: str, example: Example, faults: _Faults
) -> int | None:
    try:
        return len(render_prompt(base, example))
    except TemplateError:
        faults.add(_REFUSED, client, example)
        return None


def _lengths(counts: Sequence[int]) -> Lengths:
    return Lengths(float(median(counts)), max(counts)) if counts else Lengths(0.0, 0)


def _check_rewriting(experiment: Experiment, faults: _Faults) -> None:
    """A rewriting prompt holds instruction and response both, and the rewrite needs room behind it."""
    base, choice = experiment.base, experiment.recipe.rewriting
    for client in experiment.trained if _rewritten(experiment.algorithm) else ():
        for example in client.train:
            asked = prompts.render(prompts.choose_template(example, choice.template), example)
            length = _prompt_length(base, client.client_id, asked, faults)
            if length is None or length + choice.max_new_tokens <= base.max_length:
                continue
            wrong = f"the rewriting prompt exceeds the model's {base.max_length} positions; drop the row"
            if length < base.max_length:
                wrong = (
                    f"the rewriting prompt leaves no room for rewriting.max_new_tokens ({choice.max_new_tokens}) within "
                    f"the model's {base.max_length} positions; lower it, or drop the row"
                )
            faults.add(wrong, client.client_id, example)


# --- what cannot work -------------------------------------------------------------------------------------------------


def _data_problems(
    read: Sequence[tuple[ClientRow, Sequence[Rendered]]], recipe: Recipe
) -> Iterator[str]:
    for client, rows in read:
        if client.train == 0:
            yield f"client {client.client_id!r} has no training rows; leave it out"
        elif client.trained_tokens == 0:
            yield f"client {client.client_id!r} has no token to train on: none of its {client.train} rows can be used"
        elif client.truncated == len(rows):
            yield (
                f"client {client.client_id!r}: every response is cut by model.max_length (the longest row has "
                f"{client.prompt.longest} prompt and {client.response.longest} response tokens at most), so no "
                "answer's end would be learnt; raise it"
            )
    if recipe.evaluation.patience is not None and not any(client.validation for client, _ in read):
        yield "evaluation.patience needs validation rows, and no client has any; set data.validation"


def _recipe_problems(
    recipe: Recipe, algorithm: Algorithm, experiment: Experiment, sampled: int
) -> Iterator[str]:
    training, many = recipe.training, len(experiment.trained)
    if training.min_lr > training.lr:
        yield f"training.min_lr ({training.min_lr:g}) is above training.lr ({training.lr:g})"
    if training.micro_batch is not None and training.micro_batch > training.batch:
        yield (
            f"training.micro_batch ({training.micro_batch}) is above training.batch ({training.batch}), which it "
            "divides into smaller passes; lower it or leave it out"
        )
    there = "1 (all data pooled)" if algorithm.pool else str(many)
    if training.participation > 1:
        if training.participation != int(training.participation):
            yield f"training.participation {training.participation:g} is neither a share up to 1 nor a whole count"
        if training.participation > many:
            yield f"training.participation asks for {training.participation:g} clients, there are {there}"
    if training.quorum > sampled:
        yield (
            f"training.quorum ({training.quorum}) can never be met: {sampled} of {there} clients are asked per round"
        )
    epochs = [stage for stage in algorithm.stages if stage.epochs is not None]
    if epochs and training.local_steps is not None:
        yield "training.local_steps and epochs of a stage (smooth_epochs, rectify_epochs) contradict each other"
    if algorithm.keep == "from_R" and algorithm.personal():
        ranks = {b: layout.spec.rank for b, layout in experiment.lora.layouts.items()}
        if "R" not in ranks:
            yield "s_state from_R: this algorithm has no R to start from"
        elif odd := [b for b in algorithm.personal() if ranks[b] != ranks["R"]]:
            yield (
                f"s_state from_R copies R into {odd[0]}, so both need one rank; lora.R.rank is {ranks['R']}, "
                f"lora.{odd[0]}.rank is {ranks[odd[0]]}"
            )


def _choice_problems(recipe: Recipe, algorithm: Algorithm) -> Iterator[str]:
    """Settings of `algorithm:` that would silently do nothing."""
    choice = recipe.algorithm
    try:
        parse_selection(choice.selection)
    except RecipeError as error:
        yield f"algorithm.{error}"
    if not choice.boosted and choice.selection != "none":
        where = f", or algorithm.options.selection for {choice.name}" if _rewritten(algorithm) else ""
        yield f"algorithm.selection only counts for the booster: set algorithm.boosted: true{where}"
    if choice.boosted and make_algorithm(choice.name, choice.options).stages == algorithm.stages:
        yield f"algorithm.boosted changes nothing: {choice.name} trains on no raw answers that could be rewritten"


def _algorithm_problems(algorithm: Algorithm, rounds: int) -> Iterator[str]:
    numbers = range(1, rounds + 1)
    for index, stage in enumerate(algorithm.stages, 1):
        yield from (f"stage {index} {wrong}" for wrong in _stage_problems(stage))
        if not any(map(stage.when, numbers)):
            yield f"stage {index} never runs: {_when(stage)}, and there are {rounds} (training.rounds)"
    running = {n: [s for s in algorithm.stages if s.when(n)] for n in numbers}
    idle = [n for n, stages in running.items() if not stages]
    if idle:
        yield f"no stage runs in round {idle[0]}" + (f" and {len(idle) - 1} more" if idle[1:] else "")
    yield from _branch_problems(algorithm, running)
    yield from _view_problems(algorithm)


def _stage_problems(stage: Stage) -> Iterator[str]:
    if not any(split_mix(term.train) and term.weight for term in stage.terms):
        yield "trains nothing"
    if stage.epochs is not None and stage.epochs <= 0:
        yield f"trains for {stage.epochs:g} epochs; a number above 0 is needed"
    if stage.epochs is not None and stage.part != 1:
        yield "has epochs of its own, so match_compute, which divides the recipe's, has no meaning"
    for term in stage.terms:
        forward = split_mix(term.forward)
        for part in split_mix(term.train):
            branch, _, half = part.partition(".")
            if half not in ("", "A", "B"):
                yield f"trains {part!r}; the halves of a branch are {branch}.A and {branch}.B"
            if branch not in forward:
                yield f"trains {branch}, but runs through {term.forward or 'the base alone'}: {branch} has no gradient"
        if any("." in part for part in forward):
            yield f"runs through {term.forward!r}: a forward pass takes whole branches"
        if term.fade is not None and term.fade.branch not in forward:
            yield f"fades {term.fade.branch}, but runs through {term.forward or 'the base alone'}"


def _branch_problems(algorithm: Algorithm, running: Mapping[int, Sequence[Stage]]) -> Iterator[str]:
    trained = {n: _trained(stages) for n, stages in running.items()}
    ever = set[str]().union(*trained.values())
    for part in split_mix(algorithm.share):
        if part not in ever and not any(t.startswith(part + ".") for t in ever):
            if part.partition(".")[0] not in ever:
                yield f"shares {part}, which no stage trains in these rounds"
    if not algorithm.deploys:
        yield "deploys nothing, so nothing would be evaluated or saved"
    whole = {part.partition(".")[0] for part in ever}
    for name, mix in algorithm.deploys.items():
        if odd := [part for part in split_mix(mix) if part not in whole]:
            yield f"deploys {mix} as {name}, but {odd[0]} is a branch that no stage trains in these rounds"
    personal = set(algorithm.personal())
    if algorithm.pool and personal:
        yield "pools all data, so there are no clients that a personal branch could belong to"
    for branch in sorted(personal & whole) if algorithm.keep != "persist" else ():
        off = [n for n, parts in trained.items() if branch not in {p.partition(".")[0] for p in parts}]
        if off:
            yield (
                f"trains {branch} in some rounds only, and drops it at the start of every round (s_state "
                f"{algorithm.keep}): from round {off[0]} on nothing of it would be left; use persist"
            )


def _view_problems(algorithm: Algorithm) -> Iterator[str]:
    views = _rewritten(algorithm)
    for view in views:
        try:
            parse_selection(view.selection)
        except RecipeError as error:
            yield f"algorithm.{error}"
        if view.redistill_every < 0:
            yield f"redistill_every must not be negative, it is {view.redistill_every}"
        if view.redistill_every and view.teacher == "base":
            yield (
                "redistill_every has no meaning with teacher base, which never changes: its rewrites would be the same; "
                "set teacher: global or redistill_every: 0"
            )
        if view.teacher == "global" and not shared_branches(algorithm):
            yield "teacher global: nothing is shared, so there is no global model"
    if len({(view.teacher, view.redistill_every) for view in views}) > 1:
        yield "its terms want different teachers; a client has one"


def _trained(stages: Sequence[Stage]) -> set[str]:
    return {p for s in stages for t in s.terms if t.weight for p in split_mix(t.train)}


def _rewritten(algorithm: Algorithm) -> list[Rewritten]:
    views = [term.view for stage in algorithm.stages for term in stage.terms]
    found = [v.rewritten if isinstance(v, Mixed) else v for v in views]
    return list(dict.fromkeys(v for v in found if isinstance(v, Rewritten)))
