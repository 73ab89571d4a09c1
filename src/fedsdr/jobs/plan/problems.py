"""Settings and algorithms that cannot work, or that would silently do nothing: each with why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.coordinator.loop import LoopSettings, sample_clients
from fedsdr.errors import RecipeError
from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.plan.shape import rounds_words
from fedsdr.jobs.plan.traffic import shared_shapes
from fedsdr.parts.algorithm import Algorithm, PerInput, Stage, shared_branches, split_mix
from fedsdr.parts.moves import Copy
from fedsdr.parts.robust import Krum, TrimmedMean
from fedsdr.parts.views import parse_selection
from fedsdr.recipe.settings import Recipe
from fedsdr.types import FOLD


def setting_problems(experiment: Experiment, custom: bool) -> Iterator[str]:
    """Of recipe and algorithm, whatever the data; `custom`: the algorithm came from Python."""
    recipe, algorithm = experiment.recipe, experiment.algorithm
    clients = len(experiment.trained)
    settings = LoopSettings(
        run="", seed=0, rounds=1, lr=1.0, participation=recipe.training.participation
    )
    sampled = len(sample_clients([str(i) for i in range(clients)], settings, 1))
    yield from recipe_problems(recipe, algorithm, clients, sampled)
    yield from algorithm_problems(algorithm, recipe.training.rounds)
    if not custom:
        yield from choice_problems(recipe, algorithm)
    if algorithm.local_blocks and not shared_shapes(experiment):
        yield (
            f"{algorithm.name} keeps the adapters of {algorithm.local_blocks} blocks at home, and "
            "the model has no more: nothing would be shared; keep fewer"
        )
    yield from _server_problems(experiment, sampled)
    for stage in algorithm.stages:
        once = [m for m in stage.before if isinstance(m, Copy) and m.rounds.first == m.rounds.last]
        if once and sampled < clients:
            yield (
                f"{algorithm.name} starts {once[0].into} from {once[0].source} in round "
                f"{once[0].rounds.first} alone, and only {sampled} of {clients} clients are asked "
                "then; set training.participation: 1.0"
            )
    by_global = any(view.teacher == "global" for view in algorithm.rewritten_views())
    if experiment.branches.ranks and by_global:
        yield "teacher global: ranks differ, and a teacher has the full one; set teacher: base"
    if recipe.rewriting.engine is not None and by_global:
        yield (
            "teacher global: an endpoint does not wear the global adapter; set teacher: base, or "
            "rewriting.engine: builtin"
        )
    personal = set(algorithm.personal())
    mixes = algorithm.deploys.values()
    if experiment.unseen and all(
        isinstance(m, PerInput) or set(split_mix(m)) & personal for m in mixes
    ):
        yield (
            f"data.unseen: {algorithm.name} deploys no model that a new client could take; set it "
            "to 0, or take an algorithm with a global model"
        )


def _server_problems(experiment: Experiment, sampled: int) -> Iterator[str]:
    """Of robust rules, with as many clients as are asked in a round."""
    algorithm = experiment.algorithm
    for sift in algorithm.filters:
        if isinstance(sift, Krum) and sampled < 2 * sift.byzantine + 3:
            yield (
                f"server.filters: krum against f = {sift.byzantine} liars needs 2f + 3 = "
                f"{2 * sift.byzantine + 3} clients in a round, {sampled} are asked; lower f, or "
                "raise training.participation"
            )
        elif isinstance(sift, Krum) and sift.keep > sampled - sift.byzantine:
            yield (
                f"server.filters: multi_krum is to keep {sift.keep} of {sampled} clients, of which "
                f"{sift.byzantine} may lie; keep at most {sampled - sift.byzantine}"
            )
        if isinstance(sift, Krum) and experiment.branches.ranks:
            yield (
                "server.filters: krum measures distances, and changes of different ranks have "
                "none; leave out krum, or lora.R.ranks"
            )
    rule = algorithm.combine
    if isinstance(rule, TrimmedMean) and rule.share > 0 and int(rule.share * sampled + 1e-9) == 0:
        least = f"{math.ceil(1000 / sampled) / 1000:g} is the least that does"
        yield (
            f"server.combine: trimmed_mean({rule.share:g}) of {sampled} clients drops nobody; "
            f"{least if sampled > 2 else 'of fewer than three nobody can be dropped'}"
        )


def recipe_problems(
    recipe: Recipe, algorithm: Algorithm, clients: int, sampled: int
) -> Iterator[str]:
    """`clients` is how many train, `sampled` how many of them in one round."""
    training = recipe.training
    if training.min_lr > training.lr:
        yield f"training.min_lr ({training.min_lr:g}) is above training.lr ({training.lr:g})"
    if training.micro_batch is not None and training.micro_batch > training.batch:
        yield (
            f"training.micro_batch ({training.micro_batch}) is a part of training.batch "
            f"({training.batch}) and cannot be above it"
        )
    there = "1 client (all data are pooled)" if algorithm.pool else f"{clients} clients"
    wish = training.participation
    if wish > 1 and not wish.is_integer():
        yield f"training.participation {wish:g} is neither a share up to 1 nor a whole count"
    if wish > clients:
        yield f"training.participation asks for {wish:g} clients of {there}"
    if training.quorum > sampled:
        yield (
            f"training.quorum ({training.quorum}) can never be met: {sampled} of {there} "
            "are asked in a round"
        )
    if training.local_steps is not None and any(s.epochs is not None for s in algorithm.stages):
        yield (
            "training.local_steps contradicts the epochs that a stage of "
            f"{algorithm.name} has of its own; leave it out, or the options that set these epochs"
        )


def choice_problems(recipe: Recipe, algorithm: Algorithm) -> Iterator[str]:
    """Of the keys under `algorithm:`."""
    choice = recipe.algorithm
    try:
        parse_selection(choice.selection)
    except RecipeError as error:
        yield f"algorithm.{error}"
    if not choice.boosted and choice.selection != "none":
        alternative = ", or algorithm.options.selection" if algorithm.rewritten_views() else ""
        yield f"algorithm.selection is the booster's: set algorithm.boosted: true{alternative}"
    if choice.boosted and make_algorithm(choice.name, choice.options).stages == algorithm.stages:
        yield f"algorithm.boosted changes nothing: {choice.name} trains on no raw answers"


def algorithm_problems(algorithm: Algorithm, rounds: int) -> Iterator[str]:
    """Of the algorithm's parts, over the rounds of the run."""
    numbers = range(1, rounds + 1)
    ever = trained_parts(s for s in algorithm.stages if any(map(s.when, numbers)))
    for index, stage in enumerate(algorithm.stages, 1):
        yield from (f"stage {index} {wrong}" for wrong in _stage_problems(stage))
        if not any(map(stage.when, numbers)) and not trained_parts([stage]) <= ever:
            yield (
                f"stage {index} never runs: it is for {rounds_words(stage)}, and training.rounds "
                f"is {rounds}"
            )
    running = {n: [s for s in algorithm.stages if s.when(n)] for n in numbers}
    idle = [n for n, stages in running.items() if not stages]
    if idle:
        yield f"no stage runs in {len(idle)} rounds, the first of which is round {idle[0]}"
    trained = {n: algorithm.trained(n) for n in numbers}
    yield from _branch_problems(algorithm, trained)
    yield from _teacher_problems(algorithm)


def trained_parts(stages: Iterable[Stage]) -> set[str]:
    """`{"R", "S.B"}`"""
    return set[str]().union(*(stage.trains() for stage in stages))


def whole(parts: Iterable[str]) -> set[str]:
    """The branches of these parts."""
    return {part.partition(".")[0] for part in parts}


def _stage_problems(stage: Stage) -> Iterator[str]:
    if not trained_parts([stage]):
        yield "trains nothing"
    if stage.epochs is not None and not 0 < stage.epochs < math.inf:
        yield f"trains for {stage.epochs:g} epochs; a number above 0 is needed"
    if stage.epochs is not None and stage.part != 1:
        yield "has epochs of its own, which match_compute (a part of the recipe's) does not change"
    for term in stage.terms:
        forward, through = split_mix(term.forward), term.forward or "the base alone"
        for part in split_mix(term.train):
            branch, _, half = part.partition(".")
            if half not in ("", "A", "B"):
                yield f"trains {part!r}; the halves of a branch are {branch}.A and {branch}.B"
            blended = (term.blend.old, term.blend.weights) if term.blend else ()
            if branch not in forward and branch not in blended:
                yield f"trains {branch}, but runs through {through}, so {branch} has no gradient"
        if any("." in part for part in forward):
            yield f"runs through {through!r}; a forward pass takes whole branches"
        if term.fade is not None and term.fade.branch not in forward:
            yield f"fades {term.fade.branch}, but runs through {through}"


def _branch_problems(algorithm: Algorithm, trained: Mapping[int, set[str]]) -> Iterator[str]:
    """`trained`: round -> parts."""
    ever = set[str]().union(*trained.values())
    for part in split_mix(algorithm.share):
        if not {part, part.partition(".")[0], f"{part}.A", f"{part}.B"} & ever:
            yield f"{algorithm.name} shares {part}, which no stage trains in these rounds"
    if not algorithm.deploys:
        yield f"{algorithm.name} deploys nothing: nothing would be evaluated or saved"
    for name, mix in algorithm.deploys.items():
        text = mix.mix if isinstance(mix, PerInput) else mix
        for branch in split_mix(mix):
            if branch != FOLD and branch not in whole(ever):
                yield (
                    f"{algorithm.name} deploys {text} as {name!r}, but no stage trains {branch} "
                    "in these rounds"
                )
    personal = algorithm.personal()
    if algorithm.pool and personal:
        yield f"{algorithm.name} pools all data: no client is left for {personal[0]} to belong to"
    if algorithm.keep != "persist":
        yield from _forgotten(algorithm, personal, trained)


def _forgotten(
    algorithm: Algorithm, personal: Sequence[str], trained: Mapping[int, set[str]]
) -> Iterator[str]:
    for branch in personal:
        off = [n for n, parts in trained.items() if branch not in whole(parts)]
        if off and len(off) < len(trained):
            yield (
                f"s_state {algorithm.keep} begins {branch} anew in every round, but round {off[0]} "
                f"does not train it, so what it learnt would be lost there; set s_state: persist"
            )


def _teacher_problems(algorithm: Algorithm) -> Iterator[str]:
    views = algorithm.rewritten_views()
    for view in views:
        if view.redistill_every < 0:
            yield f"redistill_every must not be negative, it is {view.redistill_every}"
        elif view.redistill_every and view.teacher == "base":
            yield (
                "redistill_every has no meaning with teacher base, which never changes; set "
                "teacher: global, or redistill_every: 0"
            )
        if view.teacher == "global" and not shared_branches(algorithm):
            yield f"teacher global: {algorithm.name} shares nothing, so there is no global model"
        if view.teacher == "global" and algorithm.folds():
            yield (
                f"teacher global: {algorithm.name} changes the base (P), which a teacher does not "
                "wear; set teacher: base"
            )
    if len({(view.teacher, view.redistill_every) for view in views}) > 1:
        yield f"{algorithm.name} asks for several teachers; a client has one"
