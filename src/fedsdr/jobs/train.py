"""A run: begun from a recipe, or gone on with.

import fedsdr
recipe = fedsdr.read_recipe("recipe.yaml")
result = fedsdr.run(recipe, "runs/first")
fedsdr.resume("runs/first")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedsdr.cohort.in_process import InProcessCohort
from fedsdr.coordinator.gather import Cohort
from fedsdr.coordinator.job import Watch
from fedsdr.coordinator.run import conduct
from fedsdr.errors import CorruptArtifact
from fedsdr.evaluate.finished import sealed
from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.opened import job_of, opened, reopened, site_of
from fedsdr.jobs.plan.questions import refuse_what_cannot_work
from fedsdr.jobs.recorded import (
    PARTITION,
    SOURCES,
    facts_of,
    other_versions,
    refuse_other_wrap,
    versions,
)
from fedsdr.model.base import BaseModel
from fedsdr.model.sealed import TRUSTED
from fedsdr.parts.algorithm import Algorithm
from fedsdr.recipe.settings import Recipe, dump_recipe
from fedsdr.runs.again import write_again
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.lock import run_lock
from fedsdr.runs.places import refuse_inside_a_run
from fedsdr.types import ClientData

Wrap = Callable[[Cohort], Cohort]


def unchanged(cohort: Cohort) -> Cohort:
    """Nothing stands between the server and its clients."""
    return cohort


def train(
    recipe: Recipe,
    out: str | Path,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
    wrap: Wrap = unchanged,
) -> dict[str, Any]:
    """Start a run in a new directory; returns what `results.json` holds. `wrap` may put something
    between the server and its clients: an attacker, dropouts, a delay.

    Args:
        recipe: What to do, from `read_recipe`, `parse_recipe` or `build_recipe`.
        out: A new folder for the run.
        watch: Is told progress, every round's row and notes; nobody by default.
        base: A model that is open already, in place of the one that the recipe names.
        algorithm: An algorithm from Python, in place of the recipe's.
        clients: Clients from Python, in place of the recipe's data; a run begun with
            them needs them again.
        wrap: What stands between the server and its clients (an attacker, dropouts), as
            a function of what answers orders.
    """
    refuse_inside_a_run(Path(out), itself=False)
    with opened(recipe, base, algorithm, clients) as experiment:
        refuse_what_cannot_work(experiment, custom=algorithm is not None)
        facts = _facts(experiment, algorithm, clients, wrap)
        run = RunDirectory.create(Path(out), dump_recipe(recipe), facts)
        with run_lock(run.root):
            return _both_sides(experiment, run, watch or Watch(), wrap)


def resume(
    directory: str | Path,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
    wrap: Wrap = unchanged,
) -> dict[str, Any]:
    """Go on with a run that was stopped, with the K, threads and dtype recorded in it.

    Args:
        directory: The run's folder.
        watch: Is told progress, every round's row and notes; nobody by default.
        base: A model that is open already, in place of the one that the recipe names.
        algorithm: An algorithm from Python, in place of the recipe's.
        clients: Clients from Python, in place of the recipe's data; a run begun with
            them needs them again.
        wrap: As the run began with it.
    """
    run = RunDirectory.open(Path(directory))
    with run_lock(run.root):
        run.refuse_if_purged()
        run.recover()
        refuse_other_wrap(run, _own(wrap))
        with reopened(run, "fedsdr.resume", base, algorithm, clients) as experiment:
            refuse_what_cannot_work(experiment, custom=algorithm is not None)
            watch = watch or Watch()
            for note in other_versions(run):
                watch.note(note)
            return _both_sides(experiment, run, watch, wrap)


def _both_sides(
    experiment: Experiment, run: RunDirectory, watch: Watch, wrap: Wrap
) -> dict[str, Any]:
    for note in experiment.notes:
        watch.note(note)
    _write_partition(experiment, run, watch)
    cohort = InProcessCohort(site_of(experiment, run, watch))
    return conduct(job_of(experiment, run), wrap(cohort), run, watch)


def _write_partition(experiment: Experiment, run: RunDirectory, watch: Watch) -> None:
    """Who has which rows. A data file that was written anew with the same rows has another digest:
    then the one that the run began with stays."""
    everybody = (*experiment.federation.clients, *experiment.unseen)
    text = replace(experiment.federation, clients=everybody).manifest()
    path, facts = run.root / PARTITION, run.facts()
    if facts.get(SOURCES, now := sealed(text.encode())) == now:
        write_again(path, text, watch.note)
    elif not path.is_file() or sealed(path.read_bytes()) != facts[SOURCES]:
        raise CorruptArtifact(
            f"{path} is not what this run wrote, and the data files are not those it was made from "
            "(though their rows are the same); put it back as it was"
        )


def _facts(
    experiment: Experiment, algorithm: object, clients: object, wrap: Wrap
) -> dict[str, Any]:
    recipe = experiment.recipe
    decisive = {
        **facts_of(experiment, _own(wrap)),
        "stack": experiment.stack,
        "threads": experiment.threads,
        "dtype": experiment.base.precision,
        **versions(),
    }
    identity = json.dumps([dump_recipe(recipe), decisive], sort_keys=True)
    return {
        # Derived, not drawn: the same recipe on the same data is the same run, byte by byte.
        "run": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "algorithm": experiment.algorithm.name,
        "from_python": {"algorithm": algorithm is not None, "clients": clients is not None},
        **decisive,
        **({"left_out": experiment.left_out.rows} if experiment.left_out.rows else {}),
        **({"trusted": True} if recipe.model.path in TRUSTED.get() else {}),
        "seed": recipe.seed,
        "micro_batch": experiment.local.micro_batch,
    }


def _own(wrap: Wrap) -> Wrap | None:
    return None if wrap is unchanged else wrap


run = train  # as `fedsdr` has it, where a verb would be a room's name
