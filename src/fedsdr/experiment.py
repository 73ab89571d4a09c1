"""The one place where things are put together: recipe -> clients, base, algorithm, cohort, loop,
scores, adapters.

    import fedsdr
    recipe = fedsdr.read_recipe("recipe.yaml")
    result = fedsdr.run(recipe, "runs/first")
    fedsdr.resume("runs/first")
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsdr import __version__, sandbox
from fedsdr.assembly import (
    Experiment,
    Watch,
    assemble,
    chosen_algorithm,
    given,
    rewriting_settings,
)
from fedsdr.cohort.in_process import rewritten_views
from fedsdr.conduct import RESULTS, Wrap, conduct, unchanged
from fedsdr.config import Recipe, dump_recipe, parse_recipe
from fedsdr.deployed import means, personal_states, score
from fedsdr.distill.audit import AuditRow, AuditSummary, summarise, write_audit
from fedsdr.distill.rewrite import rewrite
from fedsdr.distill.selection import parse_selection
from fedsdr.errors import RecipeError, RunError, SandboxError
from fedsdr.evaluate.benchmarks.answerer import Answerer, ModelAnswerer
from fedsdr.evaluate.benchmarks.candidates import candidates, fixed_mixes
from fedsdr.evaluate.benchmarks.results import Results, merge_files
from fedsdr.evaluate.benchmarks.run import Setting, evaluate_benchmarks
from fedsdr.evaluate.benchmarks.tasks import chosen_benchmarks
from fedsdr.evaluate.scoring import Split
from fedsdr.evaluate.text_scores import WithAnswers
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm, mix_weights, split_mix
from fedsdr.plan.estimate import fit
from fedsdr.plan.problems import refuse_senseless
from fedsdr.results import load_results
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import write_json_atomic, write_text_atomic
from fedsdr.runs.lock import run_lock
from fedsdr.standalone import private_folder, tally
from fedsdr.types import FOLD, ClientData


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
    between the server and its clients: an attacker, dropouts, a delay."""
    experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        refuse_senseless(experiment, custom=algorithm is not None)
        experiment.tokenise()
        if recipe.run.stack == "auto":
            fit(experiment, experiment.raw)
        run = RunDirectory.create(
            Path(out), dump_recipe(recipe), _facts(experiment, algorithm, clients)
        )
        with run_lock(run.root):
            return conduct(experiment, run, watch or Watch(), wrap)
    finally:
        experiment.close()


def resume(
    directory: str | Path,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
    wrap: Wrap = unchanged,
) -> dict[str, Any]:
    """Go on with a run that was stopped, with the K, threads and dtype recorded in it."""
    run = RunDirectory.open(Path(directory))
    with run_lock(run.root):
        run.refuse_if_purged()
        run.recover()
        facts = run.facts()
        for what, now in (("algorithm", algorithm), ("clients", clients)):
            if facts["from_python"].get(what) and now is None:
                raise RunError(
                    f"{run.root} was started from Python with its own {what}: pass them to "
                    f"fedsdr.resume"
                )
        recipe = parse_recipe(run.recipe(), str(run.root / "recipe.yaml"))
        running = recipe.run.model_copy(
            update={"stack": facts["stack"], "threads": facts["threads"]}
        )
        training = recipe.training.model_copy(update={"micro_batch": facts.get("micro_batch")})
        recipe = recipe.model_copy(update={"run": running, "training": training})
        experiment = assemble(recipe, base, algorithm, given(clients, recipe))
        try:
            _same(facts, experiment, run)
            return conduct(experiment, run, watch or Watch(), wrap)
        finally:
            experiment.close()


def evaluate(
    directory: str | Path,
    split: Split = "test",
    round: int | None = None,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
    answers: bool = False,
) -> dict[str, Any]:
    """Score a run's deployed mixes again, from its checkpoint of a round (by default, of each
    mix's chosen one). With `answers`, the models also answer the rows: ROUGE-L and exact match."""
    run, recipe, rounds_of = _to_score(directory, round)
    experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        _same(run.facts(), experiment, run)
        federation = experiment.federation
        if answers:
            scorer = WithAnswers(federation.scorer, recipe.rewriting.max_new_tokens)
            experiment = replace(experiment, federation=replace(federation, scorer=scorer))
        scores: dict[str, Mapping[str, Mapping[str, float]]] = {}
        rounds = rounds_of(experiment.algorithm.deploys)
        for name, at in rounds.items():
            shared = run.load_checkpoint(at).tensors.get("shared", {})
            mixes = {name: experiment.algorithm.deploys[name]}
            scores |= score(experiment, shared, personal_states(run, at), split, mixes, watch)
    finally:
        experiment.close()
    return {"rounds": rounds, "split": split, "scores": means(scores), "clients": scores}


def evaluate_tasks(
    directory: str | Path,
    tasks: Sequence[str],
    data: str | Path,
    mixes: Sequence[str] = (),
    round: int | None = None,
    limit: int | None = None,
    rescore: bool = False,
    run_code: bool = False,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Results:
    """Benchmarks by the papers' protocol: of the base, and of the mixes named or else every one
    that the clients have in common. Answers and figures go to `evaluation/` in the run; with
    `rescore` those kept there are scored again, and no model is loaded."""
    benchmarks = chosen_benchmarks(tasks)
    if limit is not None and limit < 1:
        raise RecipeError("--limit must be at least 1: it is how many items of each task are asked")
    if run_code and (refusal := sandbox.available()) is not None:
        raise SandboxError(str(refusal))
    run, recipe, rounds_of = _to_score(directory, round)
    method, watch, facts = chosen_algorithm(recipe, algorithm), watch or Watch(), run.facts()
    chosen = fixed_mixes(method, mixes)
    setting = Setting(
        run.root / "evaluation",
        Path(data).expanduser(),
        facts["base_digest"],
        facts["dtype"],
        recipe.seed,
        recipe.evaluation.batch,
        limit,
        (lambda code: sandbox.run_python(code, timeout=3.0).passed) if run_code else None,
        watch.advance,
    )
    experiment = None
    if not rescore:
        experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        if experiment is not None:
            _same(facts, experiment, run)
        wear = partial(_worn, experiment) if experiment is not None else None
        models = candidates(run, method, chosen, rounds_of(chosen), wear)
        return evaluate_benchmarks(setting, benchmarks, models)
    finally:
        if experiment is not None:
            experiment.close()


def merge_evaluations(directory: str | Path, files: Sequence[str | Path]) -> Results:
    """Take the figures of other machines' results files into this run's own."""
    run = RunDirectory.open(Path(directory))
    return merge_files(run.root / "evaluation", run.facts()["base_digest"], list(map(Path, files)))


def distill(
    recipe: Recipe,
    out: str | Path,
    watch: Watch | None = None,
    selection: str | None = None,
    base: BaseModel | None = None,
    clients: Sequence[ClientData] | None = None,
) -> AuditSummary:
    """Rewrite every client's training rows, without any federation: rows, audit and summary into
    `out` (private).

    Stopped and started again, it goes on: drafts are kept in `out/drafts`.
    """
    watch, folder = watch or Watch(), Path(out)
    experiment = assemble(recipe, base, None, given(clients, recipe))
    try:
        views = rewritten_views(experiment.algorithm)
        rule = parse_selection(
            selection or (views[0].selection if views else recipe.algorithm.selection)
        )
        private_folder(folder)
        clients = experiment.federation.clients
        told = tally(watch.advance, sum(len(client.train) for client in clients))
        rows = list[AuditRow]()
        with run_lock(folder):
            for client in clients:
                texts, audit = rewrite(
                    experiment.lora,
                    client.client_id,
                    client.train,
                    rule,
                    rewriting_settings(recipe),
                    folder / "drafts",
                    tell=told,
                    include_texts=recipe.run.include_texts,
                )
                lines = [
                    {
                        "id": e.id,
                        "system": e.system,
                        "prompt": e.prompt,
                        "response": e.response,
                        "kept": a.kept,
                    }
                    for e, a in zip(texts, audit, strict=True)
                ]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                write_text_atomic(folder / f"{client.client_id}.jsonl", text)
                rows += audit
            summary = summarise(rows)
            write_audit(folder / "audit.jsonl", rows)
            write_json_atomic(folder / "summary.json", asdict(summary))
        return summary
    finally:
        experiment.close()


def _facts(experiment: Experiment, algorithm: object, clients: object) -> dict[str, Any]:
    recipe = experiment.recipe
    identity = json.dumps(
        [dump_recipe(recipe), experiment.federation.world, experiment.base.digest]
    )
    return {
        # Derived, not drawn: the same recipe on the same data is the same run, byte by byte.
        "run": hashlib.sha256(identity.encode()).hexdigest()[:16],
        "algorithm": experiment.algorithm.name,
        "from_python": {"algorithm": algorithm is not None, "clients": clients is not None},
        "base_digest": experiment.base.digest,
        "world": experiment.federation.world,
        "seed": recipe.seed,
        "stack": experiment.stack,
        "micro_batch": experiment.local.micro_batch,
        "threads": experiment.threads,
        "dtype": experiment.base.precision,
        "fedsdr": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _to_score(
    directory: str | Path, round: int | None
) -> tuple[RunDirectory, Recipe, Callable[[Iterable[str]], dict[str, int]]]:
    """The run, its recipe, and which round of each mix is scored: the one asked for, or chosen."""
    run = RunDirectory.open(Path(directory))
    run.refuse_if_purged()
    recipe = parse_recipe(run.recipe(), str(run.root / "recipe.yaml"))
    chosen: Mapping[str, int] = {}
    if round is None and (run.root / RESULTS).is_file():
        chosen = load_results(run.root)["chosen_rounds"]
    other = round if round is not None else run.load_latest_checkpoint()[0]
    for wanted in {other, *chosen.values()} - set(run.checkpoints()):
        kept = ", ".join(map(str, run.checkpoints()))
        raise RunError(f"{run.root} keeps no checkpoint of round {wanted}; there are {kept}")
    return run, recipe, lambda mixes: {name: chosen.get(name, other) for name in mixes}


@contextmanager
def _worn(
    experiment: Experiment, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], mix: str
) -> Generator[Answerer]:
    flats = experiment.branches.enter(shared, [own])[0] if mix else {}
    with experiment.lora.folded(shared):
        worn = {b: flats[b] for b in split_mix(mix) if b != FOLD}
        yield ModelAnswerer(experiment.lora, worn, mix_weights(mix))


def _same(facts: Mapping[str, Any], experiment: Experiment, run: RunDirectory) -> None:
    """A resume on another base or other data would silently train something else."""
    for key, now in (
        ("base_digest", experiment.base.digest),
        ("world", experiment.federation.world),
    ):
        if facts[key] != now:
            what = "base model" if key == "base_digest" else "data"
            raise RunError(f"{run.root}: the {what} changed since this run began; start a new run")
