"""What a plan holds: everything that `fedsdr plan` shows.

A run in words: its model, its algorithm, and what works though perhaps not as meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.machine import cores
from fedsdr.jobs.sources import NAMED
from fedsdr.model.base import count_parameters
from fedsdr.model.speech import is_plain
from fedsdr.parts.algorithm import Algorithm, PerInput, Stage, Term
from fedsdr.parts.objectives import ControlVariate, CrossEntropy, Objective, Sum
from fedsdr.parts.views import Mixed, Raw, View
from fedsdr.recipe.settings import Recipe


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens."""

    median: float
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
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
    left_out: int  # rows of any part that do not fit, where data.overlong is drop


@dataclass(frozen=True, slots=True, kw_only=True)
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
    """Bytes of tensors: `*_client` and `*_round` in the round with the most, `total` both ways over
    all."""

    up_client: int
    down_client: int
    up_round: int
    down_round: int
    total: int


@dataclass(frozen=True, slots=True)
class RewritingWork:
    """`drafts` is the most that can be needed: a cache, or `resample` passing early, saves some."""

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
    """Seconds, an estimate: steps are timed on the clients with the longest rows, rewriting on a
    few tokens, the rewrites taken to be as long as the responses. Evaluation is not in it.

    On paper, steps are counted in FLOPs at the rate that was given, over rows of mean length."""

    step: tuple[float, ...]  # per stage: one step of the K clients of a group
    training: float
    rewriting: float | None  # None where it was not estimated


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`example` is record text, the tokens of one training row with whether each is trained: it is
    in no repr and not in `plan_json`."""

    clients: tuple[ClientRow, ...]
    notes: tuple[str, ...]
    model: ModelRow
    algorithm: AlgorithmRow
    rounds: int
    sampled: int  # clients per round
    stack: int  # of these, trained side by side
    traffic: Traffic
    steps: Mapping[str, tuple[int, ...]]  # who trains -> optimiser steps per stage of a round
    total_steps: int
    rewriting: RewritingWork
    memory: Memory
    duration: Duration | None  # None where nothing was tried: there are problems, or no rate
    problems: tuple[str, ...]
    example: tuple[tuple[str, bool], ...] = field(repr=False)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, without any record text."""
    return {name: value for name, value in asdict(plan).items() if name != "example"}


KEEP = {
    "persist": "from round to round",
    "reset": "for one round: each begins afresh",
    "from_R": "for one round: each begins as a copy of R",
}


def describe_model(experiment: Experiment) -> ModelRow:
    base, lora = experiment.base, experiment.lora
    choice = experiment.recipe.model.chat_template
    if choice != "auto":
        name = "fedsdr's plain one" if choice == "plain" else choice
        template = f"{name}, as model.chat_template asks"
    elif is_plain(base.template):
        template = "fedsdr's plain one, the tokenizer has none"
    else:
        template = "the tokenizer's own"
    if base.train_on == "all":
        template += "; trained on every answer of a conversation"
    return ModelRow(
        path=str(base.path),
        parameters=count_parameters(base.net),
        dtype=base.precision,
        device=str(base.net.device),
        digest=base.digest,
        template=template,
        layers=tuple(lora.layers),
        trainable={branch: layout.size for branch, layout in lora.layouts.items()},
    )


def describe_algorithm(algorithm: Algorithm, recipe: Recipe) -> AlgorithmRow:
    shared, personal = algorithm.share, ", ".join(algorithm.personal())
    return AlgorithmRow(
        algorithm.name,
        tuple(_stage(stage, recipe) for stage in algorithm.stages),
        f"{shared}: its change goes up, the combined one comes down" if shared else "nothing",
        f"{personal} stays with its client, {KEEP[algorithm.keep]}" if personal else "nothing",
        {name: _mix(mix) for name, mix in algorithm.deploys.items()},
    )


def _mix(mix: str | PerInput) -> str:
    if isinstance(mix, PerInput):
        return f"W0+{mix.mix}, {mix.gated} counting up to {mix.highest:g} by the input"
    return f"W0+{mix}" if mix else "W0"


def rounds_words(stage: Stage) -> str:
    first, last, every = stage.when.first, stage.when.last, stage.when.every
    which = "every round" if every == 1 else f"every {every} rounds"
    if last is not None:
        return f"{which} from {first} to {last}"
    return which if first == 1 else f"{which} from {first} on"


def notes(
    experiment: Experiment, asked: Sequence[Sequence[str]], memory: Memory, there: int | None
) -> Iterator[str]:
    recipe = experiment.recipe
    if recipe.run.threads and recipe.run.threads > (there_are := cores()):
        yield f"run.threads is {recipe.run.threads}, but this process may use {there_are} cores"
    if recipe.model.max_length > experiment.base.max_length:
        yield f"model.max_length is cut to what the model reads, {experiment.base.max_length}"
    micro = experiment.local.micro_batch
    if recipe.training.micro_batch is None and micro is not None and micro < recipe.training.batch:
        yield f"a step takes {micro} of its {recipe.training.batch} rows at a time, to fit"
    if recipe.training.optimizer == "adamw" and _corrects(experiment.algorithm):
        yield (
            f"{experiment.algorithm.name} corrects gradients by averages of past changes: with "
            "training.optimizer adamw these are no gradients; the paper's optimizer is sgd"
        )
    if recipe.rewriting.engine is not None:
        yield (
            "clients' rows go to the endpoint of rewriting.engine, and how long it takes is not "
            "known here"
        )
    if recipe.training.schedule == "constant" and recipe.training.min_lr:
        yield "training.min_lr has no effect with schedule constant"
    if not any(client.validation for client in experiment.federation.clients):
        yield "no client has validation rows: the last round is deployed"
    if never := sorted({c.client_id for c in experiment.trained}.difference(*asked)):
        more = f" and {len(never) - NAMED} more" if len(never) > NAMED else ""
        yield f"never asked in these rounds: {', '.join(never[:NAMED])}{more}"
    if there is not None and memory.total > there:
        yield f"about {memory.total:,} bytes of memory are needed, there are {there:,}"


def _stage(stage: Stage, recipe: Recipe) -> str:
    training = recipe.training
    if training.local_steps is not None:
        amount = f"{max(1, round(training.local_steps * stage.part))} steps"
    else:
        epochs = stage.epochs if stage.epochs is not None else training.local_epochs * stage.part
        amount = f"{epochs:g} epochs"
    return f"{rounds_words(stage)}, {amount}: {' and '.join(map(_term, stage.terms)) or 'nothing'}"


def _term(term: Term) -> str:
    weight = f"{term.weight:g} × " if term.weight != 1 else ""
    through, fade = f"W0+{term.forward}" if term.forward else "W0", ""
    if term.fade is not None:
        fade = (
            f", {term.fade.branch} × {term.fade.scale:g}, off at {term.fade.dropout:.0%} of steps"
        )
    if term.blend is not None:
        b = term.blend
        fade += f", where {b.into} is {b.old} + ({b.into} − {b.old}) ⊙ {b.weights}"
    loss = f"{weight}{_objective(term.objective)}"
    return f"train {term.train or 'nothing'} on {_view(term.view)} through {through}{fade} ({loss})"


def _view(view: View) -> str:
    if isinstance(view, Raw):
        return "the raw answers"
    if isinstance(view, Mixed):
        return f"the raw answers, {view.share:.0%} of them replaced by {_view(view.rewritten)}"
    who = "the base" if view.teacher == "base" else "the global model"
    again = f", anew every {view.redistill_every} rounds" if view.redistill_every else ""
    return f"the answers as {who} rewrites them (selection {view.selection}{again})"


def _objective(objective: Objective) -> str:
    if isinstance(objective, Sum):
        return " + ".join(map(_objective, objective.terms))
    return "cross-entropy" if isinstance(objective, CrossEntropy) else repr(objective)


def _corrects(algorithm: Algorithm) -> bool:
    every = [term.objective for stage in algorithm.stages for term in stage.terms]
    parts = [p for o in every for p in (o.terms if isinstance(o, Sum) else (o,))]
    return any(isinstance(part, ControlVariate) for part in parts)
