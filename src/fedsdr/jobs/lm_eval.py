"""lm-eval's tasks for a run's deployed models.

fedsdr.jobs.lm_eval.evaluate_lm_eval("runs/first", ["arc_easy_local"], include_path="tasks")
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsdr.coordinator.job import Watch
from fedsdr.errors import MissingExtra, RunError, TaskError, nearest
from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.opened import reopened
from fedsdr.jobs.recorded import run_to_score
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm, PerInput, mix_weights, split_mix
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import FOLD, ClientData, Tensors

if TYPE_CHECKING:
    from fedsdr.evaluate.lm_eval import Asked, Tasks

BASE = "base"  # the model as it was, without any adapter
Wear = Callable[[], AbstractContextManager[None]]


def evaluate_lm_eval(
    directory: str | Path,
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    limit: int | None = None,
    mixes: Sequence[str] = (BASE, "global"),
    client: str | None = None,
    shots: int | None = None,
    chat: bool = False,
    batch: int = 16,
    round: int | None = None,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> dict[str, Any]:
    """Model ("base", "global", "personal/c1") -> task -> scores, at each mix's chosen round or the
    one given. `client` picks one client's personal model; by default all are scored.

    Args:
        directory: The run's folder.
        tasks: lm-eval's names.
        include_path: A folder with tasks of your own.
        limit: Items of each task, at most.
        mixes: Deployed mixes, and `"base"`.
        client: Whose personal model is meant, where each client has one.
        shots: Examples before each question, in place of the task's.
        chat: Whether questions go through the chat template.
        batch: Rows at a time.
        round: The checkpoint to score; by default each mix's chosen round.
        watch: Is told progress, every round's row and notes; nobody by default.
        base: A model that is open already, in place of the one that the recipe names.
        algorithm: An algorithm from Python, in place of the recipe's.
        clients: Clients from Python, in place of the recipe's data; a run begun with
            them needs them again.
    """
    if find_spec("lm_eval") is None:
        raise MissingExtra("lm-eval is not installed: pip install 'fedsdr[lm-eval]'")
    from fedsdr.evaluate.lm_eval import Asked, Tasks

    if limit is not None and limit < 1:
        raise TaskError(f"limit must be 1 or more (given: {limit})")
    include = None if include_path is None else Path(include_path)
    asked = Asked(tuple(tasks), include, limit, shots, chat, batch)
    index = Tasks.for_names(asked.tasks, include)
    run, _, rounds_of = run_to_score(directory, round)
    with reopened(run, "fedsdr.evaluate_lm_eval", base, algorithm, clients) as experiment:
        if run.facts()["algorithm"] != experiment.algorithm.name:
            raise RunError(f"{run.root}: its algorithm is not the one it began with")
        rounds, models = rounds_of(mix for mix in mixes if mix != BASE), dict[str, Any]()
        for mix in mixes:
            for name, wear in _models(experiment, run, mix, rounds.get(mix, 0), client):
                models[name] = _scored(experiment, asked, index, wear)
                (watch or Watch()).note(f"lm-eval: {name} scored")
    return {
        "tool": f"lm-eval {version('lm_eval')}",
        "run": run.facts()["run"],
        "base_digest": experiment.base.digest,
        "rounds": rounds,
        "settings": {"limit": limit, "shots": shots, "chat": chat},
        "models": models,
    }


def _scored(
    experiment: Experiment, asked: Asked, index: Tasks, wear: Wear | None
) -> dict[str, Any]:
    from fedsdr.evaluate.lm_eval import logit_change, score_tasks

    if wear is None:
        return {"tasks": score_tasks(experiment.base, asked, index)}
    change = logit_change(experiment.base, wear())
    with wear():
        return {"largest_logit_change": change, "tasks": score_tasks(experiment.base, asked, index)}


def _models(
    experiment: Experiment, run: RunDirectory, mix: str, round: int, client: str | None
) -> Iterator[tuple[str, Wear | None]]:
    """The models of a mix: the base, one for all, or one per client."""
    deploys = experiment.algorithm.deploys
    if mix == BASE:
        yield BASE, None
        return
    if mix not in deploys:
        known = (BASE, *deploys)
        raise TaskError(
            f"{experiment.algorithm.name} deploys no mix {mix!r}; there are {', '.join(known)}."
            f"{nearest(mix, known)}"
        )
    branches = deploys[mix]
    if isinstance(branches, PerInput):
        raise TaskError(
            f"the mix {mix!r} weighs its branches anew for every input, by the likeness to a "
            "client's own prompts; lm-eval's prompts have no client, so it cannot be scored here"
        )
    if round not in run.checkpoints():
        kept = ", ".join(map(str, run.checkpoints()))
        raise RunError(f"{run.root} keeps no checkpoint of round {round}; there are {kept}")
    shared = run.load_checkpoint(round).tensors.get("shared", {})
    if not experiment.algorithm.is_personal(branches):
        yield mix, partial(_wear, experiment, shared, {}, branches)
        return
    ids = [c.client_id for c in experiment.trained]
    if client is not None and client not in ids:
        raise TaskError(f"no client {client!r} in this run.{nearest(client, ids)}")
    for client_id in ids if client is None else [client]:
        yield (
            f"{mix}/{client_id}",
            partial(_wear, experiment, shared, run.own_tensors(client_id, round), branches),
        )


@contextmanager
def _wear(
    experiment: Experiment, shared: Tensors, private: Tensors, branches: str
) -> Generator[None]:
    flats, _ = experiment.branches.enter(shared, [private])
    worn = {b: flats[b] for b in split_mix(branches) if b != FOLD}
    with experiment.lora.folded(shared), experiment.lora.wear(worn, mix_weights(branches)):
        yield
