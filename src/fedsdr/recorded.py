"""What a run directory says of the run: its recipe with the K it really had, the rounds that are
deployed, and whether base and data are still the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fedsdr.assembly import Experiment
from fedsdr.cohort.in_process import rewritten_views
from fedsdr.config import Recipe, parse_recipe
from fedsdr.distill.selection import parse_selection
from fedsdr.errors import RunError
from fedsdr.model.classifier import classifier_digest
from fedsdr.parts.algorithm import Algorithm
from fedsdr.results import RESULTS, load_results
from fedsdr.runs.directory import RunDirectory

CLASSIFIER = "classifier_digest"  # in run.json


def recorded_recipe(run: RunDirectory) -> Recipe:
    """The recipe, with the K, threads and batches that the run began with or came down to."""
    recipe, facts = parse_recipe(run.recipe(), str(run.root / "recipe.yaml")), run.facts()
    running = recipe.run.model_copy(update={"stack": facts["stack"], "threads": facts["threads"]})
    training = recipe.training.model_copy(update={"micro_batch": facts.get("micro_batch")})
    less = {
        name: getattr(recipe, name).model_copy(update={"batch": facts[f"{name}_batch"]})
        for name in ("rewriting", "evaluation")
        if f"{name}_batch" in facts
    }
    return recipe.model_copy(update={"run": running, "training": training, **less})


def run_to_score(
    directory: str | Path, round: int | None
) -> tuple[RunDirectory, Recipe, Callable[[Iterable[str]], dict[str, int]]]:
    """The run, its recipe, and which round of each mix is scored: the one asked for, or chosen."""
    run = RunDirectory.open(Path(directory))
    run.refuse_if_purged()
    chosen: Mapping[str, int] = {}
    if round is None and (run.root / RESULTS).is_file():
        chosen = load_results(run.root)["chosen_rounds"]
    other = round if round is not None else run.load_latest_checkpoint()[0]
    for wanted in {other, *chosen.values()} - set(run.checkpoints()):
        kept = ", ".join(map(str, run.checkpoints()))
        raise RunError(f"{run.root} keeps no checkpoint of round {wanted}; there are {kept}")
    return (
        run,
        recorded_recipe(run),
        lambda mixes: {name: chosen.get(name, other) for name in mixes},
    )


def refuse_changed(experiment: Experiment, run: RunDirectory) -> None:
    """A resume on another base or other data, or with another classifier to select rewrites by,
    would silently train something else."""
    facts, judge = run.facts(), judge_facts(experiment.algorithm)
    for key, now, what in (
        ("base_digest", experiment.base.digest, "base model, its tokenizer or its chat template"),
        ("world", experiment.federation.world, "set of rows"),
        (CLASSIFIER, judge.get(CLASSIFIER), "classifier that selects rewrites"),
    ):
        if facts.get(key, now) != now:
            raise RunError(
                f"{run.root}: the {what} is not the one this run began with; bring that one back, "
                "or start a new run"
            )


def refuse_without(run: RunDirectory, verb: str, algorithm: object, clients: object) -> None:
    """What a run was given from Python is in no recipe, and has to be given again."""
    told = run.facts()["from_python"]
    for what, now in (("algorithm", algorithm), ("clients", clients)):
        if told.get(what) and now is None:
            raise RunError(
                f"{run.root} was started from Python with its own {what}: pass them to {verb}"
            )


def judge_facts(algorithm: Algorithm) -> dict[str, str]:
    """The digest of the classifier that rewrites are selected by, where there is one."""
    rules = [parse_selection(view.selection) for view in rewritten_views(algorithm)]
    folders = sorted({rule.classifier for rule in rules if rule.classifier is not None})
    return {CLASSIFIER: "+".join(map(classifier_digest, folders))} if folders else {}
