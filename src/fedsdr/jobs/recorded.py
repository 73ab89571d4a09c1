"""What a run directory says of the run: its recipe with the K it really had, the rounds that are
deployed, and whether algorithm, base and data are still the same."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from fedsdr import __version__
from fedsdr.data.manifest import read_manifest, row_digest
from fedsdr.errors import FedsdrError, RunError
from fedsdr.evaluate.finished import RESULTS, load_results, sealed
from fedsdr.jobs.assembly import Experiment
from fedsdr.model.classifier import classifier_digest
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.description import described, difference
from fedsdr.parts.views import parse_selection
from fedsdr.recipe.settings import Recipe, parse_recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import digest
from fedsdr.types import ClientData

# In run.json:
CLASSIFIER, ADAPTER, ROWS = "classifier_digest", "adapter_digest", "rows_sha256"
ALGORITHM, WRAP, LATER = "algorithm_value", "wrap", "resumed_under"
SOURCES = "partition_sha256"
PARTITION = "partition.json"


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


def facts_of(experiment: Experiment, wrap: object = None) -> dict[str, Any]:
    """What decides a run beside its recipe: `run.json` keeps it, a resume must find it again."""
    init = experiment.recipe.lora.init
    everybody = (*experiment.federation.clients, *experiment.unseen)
    partition = replace(experiment.federation, clients=everybody).manifest()
    return {
        "base_digest": experiment.base.digest,
        "world": experiment.federation.world,
        ROWS: rows_digest(everybody),
        SOURCES: sealed(partition.encode()),
        **judge_facts(experiment.algorithm),
        **({ADAPTER: digest({"R": experiment.branches.start["R"]})} if init is not None else {}),
        ALGORITHM: described(experiment.algorithm, "algorithm"),
        WRAP: {} if wrap is None else described(wrap, "wrap"),
    }


def refuse_changed(experiment: Experiment, run: RunDirectory) -> None:
    """A resume by another algorithm, on another base or other data, or with another classifier to
    select rewrites by, would silently train something else."""
    facts, now = run.facts(), facts_of(experiment)
    for key, what in (
        ("base_digest", "base model, its tokenizer or its chat template"),
        (ADAPTER, "adapter that lora.init names"),
        ("world", "set of rows"),
        (ROWS, "set of rows, their ids and labels, or the set of unseen clients,"),
        (CLASSIFIER, "classifier that selects rewrites"),
    ):
        if key in facts and facts[key] != now.get(key):
            where = _changed_row(experiment, run) if key in ("world", ROWS) else ""
            raise RunError(
                f"{run.root}: the {what} is not the one this run began with{where}; bring that one "
                "back, or start a new run"
            )
    if ALGORITHM in facts and (where := difference(facts[ALGORITHM], now[ALGORITHM])):
        raise RunError(
            f"{run.root}: the algorithm is not the one this run began with: {where}; bring that "
            "one back, or start a new run"
        )


def refuse_other_wrap(run: RunDirectory, wrap: object) -> None:
    """What stands between the server and its clients is part of the run too."""
    facts = run.facts()
    now = {} if wrap is None else described(wrap, "wrap")
    if WRAP in facts and (where := difference(facts[WRAP], now)):
        raise RunError(
            f"{run.root}: wrap= is not the one this run began with: {where}; pass that one, or "
            "start a new run"
        )


def refuse_without(run: RunDirectory, verb: str, algorithm: object, clients: object) -> None:
    """What a run was given from Python is in no recipe, and has to be given again."""
    from_python = run.facts()["from_python"]
    for what, now in (("algorithm", algorithm), ("clients", clients)):
        if from_python.get(what) and now is None:
            raise RunError(
                f"{run.root} was started from Python with its own {what}: pass them to {verb}"
            )
    if clients is not None and not from_python.get("clients"):
        raise RunError(
            f"{run.root} was started with the clients of its recipe, which are scored as the "
            f"recipe says: pass no clients to {verb}"
        )


def versions() -> dict[str, str]:
    return {
        "fedsdr": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def other_versions(run: RunDirectory) -> list[str]:
    """What the run goes on with that it did not begin with, in words; kept in `run.json` too."""
    facts, now = run.facts(), versions()
    notes = list[str]()
    if ALGORITHM not in facts:
        notes = [
            "an older version began this run: whether its algorithm is the same is not checked"
        ]
    other = {name: version for name, version in now.items() if facts.get(name, version) != version}
    if other and other not in facts.get(LATER, []):
        run.amend({LATER: [*facts.get(LATER, []), other]})
    return notes + [
        f"{name} is {version}, this run began with {facts[name]}: it may end with other bytes"
        for name, version in other.items()
    ]


def rows_digest(clients: Iterable[ClientData]) -> str:
    """sha256 over all that clients are made of: `world` knows neither ids nor labels, which decide
    too, nor clients that never train."""
    sha = hashlib.sha256()
    for client in clients:
        sha.update(f"client {client.client_id}\n".encode())
        for part in (client.train, client.validation, client.test):
            sha.update(b"part\n")
            for example in part:
                sha.update(repr(example).encode("utf-8", "surrogatepass") + b"\n")
    return sha.hexdigest()


def _changed_row(experiment: Experiment, run: RunDirectory) -> str:
    """The first client whose rows are others, as far as the run's own manifest can tell."""
    try:
        kept = {c.client_id: c for c in read_manifest(run.root / PARTITION).clients}
    except FedsdrError:
        return ""
    clients = (*experiment.federation.clients, *experiment.unseen)
    for missing in sorted(kept.keys() - {c.client_id for c in clients}):
        return f" (client {missing!r} is missing)"
    for client in clients:
        if (recorded := kept.get(client.client_id)) is None:
            return f" (client {client.client_id!r} is new)"
        for part in ("train", "validation", "test"):
            now, then = map(row_digest, getattr(client, part)), getattr(recorded, part)
            for number, (row, was) in enumerate(zip_longest(now, then), start=1):
                if row != was:
                    return f" (client {client.client_id!r}, {part} row {number})"
    return ""


def judge_facts(algorithm: Algorithm) -> dict[str, str]:
    """The digest of the classifier that rewrites are selected by, where there is one."""
    rules = [parse_selection(view.selection) for view in algorithm.rewritten_views()]
    folders = sorted({rule.classifier for rule in rules if rule.classifier is not None})
    return {CLASSIFIER: "+".join(map(classifier_digest, folders))} if folders else {}
