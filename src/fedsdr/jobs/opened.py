"""A recipe, or a run, opened: everything at hand, checked, and given back at the end.

with opened(recipe) as job: ...
with reopened(run, "fedsdr.resume") as job: ...
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fedsdr.jobs.assembly import Experiment, assemble, given
from fedsdr.jobs.recorded import recorded_recipe, refuse_changed, refuse_without
from fedsdr.jobs.sources import Federation
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm
from fedsdr.recipe.settings import Recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import ClientData


@contextmanager
def opened(
    recipe: Recipe,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | Federation | None = None,
    beginning: AbstractContextManager[object] | None = None,
) -> Generator[Experiment]:
    """What is given replaces what the recipe says. `beginning`: in what the branches are made. The
    base and torch's threads are as they were afterwards."""
    threads = torch.get_num_threads()
    federation = clients if isinstance(clients, Federation) else given(clients, recipe)
    try:
        with beginning or nullcontext():
            experiment = assemble(recipe, base, algorithm, federation)
        try:
            yield experiment
        finally:
            experiment.close()
    finally:
        torch.set_num_threads(threads)


@contextmanager
def reopened(
    run: RunDirectory,
    verb: str,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Generator[Experiment]:
    """As the run began; refused where it can no longer be so."""
    refuse_without(run, verb, algorithm, clients)
    with opened(recorded_recipe(run), base, algorithm, clients) as experiment:
        refuse_changed(experiment, run)
        yield experiment
