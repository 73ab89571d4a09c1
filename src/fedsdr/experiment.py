"""The one place where things are put together: recipe -> clients, base, algorithm, cohort, loop,
scores, adapters.

import fedsdr
recipe = fedsdr.read_recipe("recipe.yaml")
result = fedsdr.train(recipe, "runs/first")
fedsdr.resume("runs/first")
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsdr import __version__
from fedsdr.algorithms.registry import make_algorithm
from fedsdr.atlas.judge import judge
from fedsdr.atlas.scores import faithful_shares
from fedsdr.cohort.branches import Branches
from fedsdr.cohort.in_process import Advance, InProcessCohort, rewritten_views, silent
from fedsdr.config import Recipe, dump_recipe, parse_recipe
from fedsdr.data.manifest import ManifestInfo
from fedsdr.distill.audit import AuditRow, AuditSummary, summarise, write_audit
from fedsdr.distill.generate import Sampling
from fedsdr.distill.rewrite import Rewriting, rewrite
from fedsdr.distill.selection import parse_selection
from fedsdr.errors import DataError, RecipeError, RunError
from fedsdr.evaluate.scoring import HeldOutLoss, Split, Worn
from fedsdr.loop import (
    ROUNDS,
    TIMINGS,
    Judge,
    LoopSettings,
    Outcome,
    Row,
    run_rounds,
)
from fedsdr.model.adapters import load_adapter, save_adapter
from fedsdr.model.base import BaseModel, load_base, with_template
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.algorithm import Algorithm, split_mix
from fedsdr.parts.views import Rewritten
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import make_private, write_json_atomic, write_text_atomic
from fedsdr.runs.lock import run_lock
from fedsdr.sources import Federation, load_federation, pooled
from fedsdr.train import LocalSettings
from fedsdr.types import ClientData, ServerState

RESULTS = "results.json"
ATLAS_BASE = Path(__file__).parent / "atlas" / "base"
ClientScores = Mapping[str, Mapping[str, Mapping[str, float]]]  # mix -> client -> measure -> value


@dataclass(slots=True)
class Watch:
    """What a run tells whoever watches; nothing by default."""

    advance: Advance = silent
    told: Callable[[Row], None] = lambda row: None
    note: Callable[[str], None] = lambda text: None


@dataclass(slots=True)
class Experiment:
    """Everything of a run but its directory. The base wears the stacked LoRA layers until
    `close`."""

    recipe: Recipe
    base: BaseModel
    federation: Federation
    algorithm: Algorithm
    lora: StackedLora
    branches: Branches
    trained: tuple[ClientData, ...]  # who trains: the clients, or all pooled
    notes: tuple[str, ...] = ()
    threads: int = field(default=0)

    def close(self) -> None:
        self.lora.remove()


def assemble(
    recipe: Recipe,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    federation: Federation | None = None,
) -> Experiment:
    """Check and build all that a run needs; nothing is trained or written yet."""
    threads = recipe.run.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    chosen = recipe.algorithm
    boost = Rewritten(chosen.selection) if chosen.boosted else None
    algorithm = algorithm or make_algorithm(chosen.name, chosen.options, boost)
    for view in rewritten_views(algorithm):
        parse_selection(view.selection)  # now, not when a run directory is there already
    federation = federation or load_federation(recipe)
    base = base or open_base(recipe)
    if federation.atlas is not None and base.path.resolve() != ATLAS_BASE.resolve():
        notes = (
            "data.atlas is about atlas-base; another model does not know the world's public facts",
        )
    else:
        notes = ()
    specs = {b: _branch(recipe, b) for b in algorithm.branches()}
    lora = StackedLora(base, recipe.lora.targets, specs)
    try:
        start = {b: lora.fresh(b, recipe.seed, "init", b) for b in specs}
        if recipe.lora.init is not None:
            if "R" not in start:
                raise RecipeError("lora.init starts R from an adapter, but this algorithm has no R")
            start["R"] = load_adapter(recipe.lora.init, lora, "R")
    except Exception:
        lora.remove()
        raise
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    trained = pooled(federation) if algorithm.pool else federation.clients
    return Experiment(
        recipe,
        base,
        federation,
        algorithm,
        lora,
        Branches(lora, algorithm, start, wide),
        trained,
        (*federation.notes, *base.notes, *notes),
        threads,
    )


def open_base(recipe: Recipe) -> BaseModel:
    model = recipe.model
    path = ATLAS_BASE if model.path == "atlas" else Path(model.path)
    return with_template(load_base(path, model.dtype, model.device), model.chat_template)


def train(
    recipe: Recipe,
    out: str | Path,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> dict[str, Any]:
    """Start a run in a new directory; returns what `results.json` holds."""
    experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        run = RunDirectory.create(
            Path(out), dump_recipe(recipe), _facts(experiment, algorithm, clients)
        )
        with run_lock(run.root):
            return _go(experiment, run, watch or Watch())
    finally:
        experiment.close()


def resume(
    directory: str | Path,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
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
        recipe = recipe.model_copy(update={"run": running})
        experiment = assemble(recipe, base, algorithm, given(clients, recipe))
        try:
            _same(facts, experiment, run)
            return _go(experiment, run, watch or Watch())
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
) -> dict[str, Any]:
    """Score a run's deployed mixes again, from its checkpoint of a round (the chosen one by
    default)."""
    run = RunDirectory.open(Path(directory))
    run.refuse_if_purged()
    recipe = parse_recipe(run.recipe(), str(run.root / "recipe.yaml"))
    if round is None:
        results = run.root / RESULTS
        round = (
            int(json.loads(results.read_text())["chosen_round"])
            if results.is_file()
            else run.load_latest_checkpoint()[0]
        )
    if round not in run.checkpoints():
        kept = ", ".join(map(str, run.checkpoints()))
        raise RunError(f"{run.root} keeps no checkpoint of round {round}; there are {kept}")
    experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        _same(run.facts(), experiment, run)
        shared = run.load_checkpoint(round).tensors.get("shared", {})
        scores = score(experiment, shared, _personal(run, round), split, watch=watch)
    finally:
        experiment.close()
    return {"round": round, "split": split, "scores": means(scores), "clients": scores}


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
        make_private(folder)
        rows, done = list[AuditRow](), experiment.federation.clients
        for number, client in enumerate(done):
            texts, audit = rewrite(
                experiment.lora,
                client.client_id,
                client.train,
                rule,
                _rewriting(recipe),
                folder / "drafts",
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
            watch.advance("rewriting clients", number + 1, len(done))
        summary = summarise(rows)
        write_audit(folder / "audit.jsonl", rows)
        write_json_atomic(folder / "summary.json", asdict(summary))
        return summary
    finally:
        experiment.close()


def given(clients: Sequence[ClientData] | None, recipe: Recipe) -> Federation | None:
    """Clients handed over in Python, in place of the recipe's data."""
    if clients is None:
        return None
    if len({c.client_id for c in clients}) < len(clients) or not clients:
        raise DataError("clients must be given with distinct ids, and at least one")
    info = ManifestInfo({"source": "python"}, recipe.seed)
    return Federation(tuple(clients), HeldOutLoss(), info)


def score(
    experiment: Experiment,
    shared: Mapping[str, Tensor],
    personal: Callable[[str], Mapping[str, Tensor]],
    split: Split,
    mixes: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> ClientScores:
    """Every deployed mix on every client's own held-out rows; personal models K at a time."""
    clients, scorer = experiment.federation.clients, experiment.federation.scorer
    branches, watch = experiment.branches, watch or Watch()
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, mix in (mixes or experiment.algorithm.deploys).items():
        own = set(split_mix(mix)) & set(experiment.algorithm.personal())
        groups = [list(clients)]
        if own:
            k = experiment.recipe.run.stack
            groups = [list(clients[i : i + k]) for i in range(0, len(clients), k)]
        found[name] = {}
        for group in groups:
            states = [personal(c.client_id) for c in group] if own else [{}]
            flats, _ = branches.enter(shared, states)
            model = Worn(
                experiment.lora,
                {b: flats[b] for b in split_mix(mix)},
                mix,
                experiment.recipe.model.max_length,
                experiment.recipe.evaluation.batch,
            )
            scores = scorer.score(model, group, split)
            found[name].update({c.client_id: s for c, s in zip(group, scores, strict=True)})
            watch.advance(f"scoring {name}", len(found[name]), len(clients))
    return found


def means(scores: ClientScores) -> dict[str, dict[str, float]]:
    """Mix -> measure -> mean over the clients that have it."""
    out: dict[str, dict[str, float]] = {}
    for mix, clients in scores.items():
        measures = dict.fromkeys(m for c in clients.values() for m in c)
        out[mix] = {
            m: sum(c[m] for c in clients.values() if m in c) / sum(m in c for c in clients.values())
            for m in measures
        }
    return out


def _go(experiment: Experiment, run: RunDirectory, watch: Watch) -> dict[str, Any]:
    recipe, facts = experiment.recipe, run.facts()
    for note in experiment.notes:
        watch.note(note)
    if not (run.root / "partition.json").exists():
        experiment.federation.write_manifest(run.root / "partition.json")
    cohort = _cohort(experiment, run, watch)
    with _timed(run, "rewriting"):
        cohort.prepare()
        _write_audit(experiment, run, cohort)
    scorer = experiment.federation.scorer
    first = next(iter(experiment.algorithm.deploys))

    def validate(state: ServerState) -> dict[str, dict[str, float]]:
        own = _personal(run, state.round)
        return means(score(experiment, state.shared, own, "validation", watch=watch))

    validation = Judge(validate, first, scorer.best_on, scorer.higher_is_better)
    has_validation = any(c.validation for c in experiment.federation.clients)
    training = recipe.training
    with _timed(run, "rounds"):
        outcome = run_rounds(
            experiment.algorithm,
            cohort,
            [c.client_id for c in experiment.trained],
            ServerState(0, experiment.branches.first()),
            run,
            LoopSettings(
                run=facts["run"],
                seed=recipe.seed,
                rounds=training.rounds,
                lr=training.lr,
                schedule=training.schedule,
                min_lr=training.min_lr,
                participation=training.participation,
                quorum=training.quorum,
                evaluate_every=recipe.evaluation.every,
                patience=recipe.evaluation.patience,
                heaviest={c.client_id: float(max(1, len(c.train))) for c in experiment.trained},
            ),
            experiment.base.digest,
            validation if has_validation else None,
            watch.told,
            watch.note,
        )
    with _timed(run, "final scores"):
        return _finish(experiment, run, outcome, watch)


def _finish(
    experiment: Experiment, run: RunDirectory, outcome: Outcome, watch: Watch
) -> dict[str, Any]:
    """Score the chosen round on test data, save its adapters, write the results."""
    chosen = (
        outcome.best_round if experiment.recipe.evaluation.select == "best" else outcome.state.round
    )
    shared = run.load_checkpoint(chosen).tensors.get("shared", {})
    personal = _personal(run, chosen)
    scores = score(experiment, shared, personal, "test", watch=watch)
    save_adapters(experiment, run.root / "adapters", shared, personal)
    best_on = experiment.federation.scorer.best_on
    higher = experiment.federation.scorer.higher_is_better
    summary = means(scores)
    for mix, clients in scores.items():
        values = [c[best_on] for c in clients.values() if best_on in c]
        if values:
            summary[mix][f"{best_on}_worst"] = min(values) if higher else max(values)
    rows, rewriting = run.rows(ROUNDS), run.root / "rewriting.json"
    results: dict[str, Any] = {
        "method": experiment.algorithm.name,
        "seed": experiment.recipe.seed,
        "world": experiment.federation.world,
        "lr": experiment.recipe.training.lr,
        "rounds": outcome.state.round,
        "chosen_round": chosen,
        "bytes_up": sum(r["bytes_up"] for r in rows),
        "bytes_down": sum(r["bytes_down"] for r in rows),
        "steps": sum(r["steps"] for r in rows),
        "tokens": sum(r["tokens"] for r in rows),
        "scores": summary,
        "clients": scores,
    }
    if rewriting.is_file():
        results["rewriting"] = json.loads(rewriting.read_text())
    write_json_atomic(run.root / RESULTS, results)
    return results


def save_adapters(
    experiment: Experiment,
    folder: Path,
    shared: Mapping[str, Tensor],
    personal: Callable[[str], Mapping[str, Tensor]],
) -> None:
    """`global/` and, where a mix has a personal branch, `personal/<client>/`, in PEFT's format."""
    personal_branches = set(experiment.algorithm.personal())
    for name, mix in experiment.algorithm.deploys.items():
        if set(split_mix(mix)) & personal_branches:
            for client in experiment.trained:
                flats, _ = experiment.branches.enter(shared, [personal(client.client_id)])
                own = {b: flat[0] for b, flat in flats.items()}
                save_adapter(folder / name / client.client_id, experiment.lora, own, split_mix(mix))
        else:
            flats, _ = experiment.branches.enter(shared, [{}])
            save_adapter(
                folder / name, experiment.lora, {b: f[0] for b, f in flats.items()}, split_mix(mix)
            )


def _cohort(experiment: Experiment, run: RunDirectory, watch: Watch) -> InProcessCohort:
    recipe, training = experiment.recipe, experiment.recipe.training
    local = LocalSettings(
        epochs=training.local_epochs,
        steps=training.local_steps,
        batch=training.batch,
        micro_batch=training.micro_batch,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        clip=training.clip,
        loss=training.loss,
    )
    cache = recipe.rewriting.cache
    return InProcessCohort(
        lora=experiment.lora,
        algorithm=experiment.algorithm,
        clients={c.client_id: c for c in experiment.trained},
        run=run,
        branches=experiment.branches,
        training=local,
        rewriting=_rewriting(recipe),
        cache=Path(cache).expanduser() if cache else run.root / "rewrites",
        stack=recipe.run.stack,
        max_length=min(recipe.model.max_length, experiment.base.max_length),
        equal_weights=training.weights == "equal",
        include_texts=recipe.run.include_texts,
        advance=watch.advance,
    )


def _rewriting(recipe: Recipe) -> Rewriting:
    choice = recipe.rewriting
    sampling = Sampling(choice.temperature, choice.top_p, choice.top_k, choice.max_new_tokens)
    return Rewriting(sampling, choice.template, recipe.seed, choice.batch)


def _personal(run: RunDirectory, round: int) -> Callable[[str], Mapping[str, Tensor]]:
    """A client's personal tensors as they were after a round."""

    def named(client_id: str) -> Mapping[str, Tensor]:
        state = run.load_client_state(client_id, round + 1)
        return state.tensors.get("branches", {}) if state is not None else {}

    return named


def _write_audit(experiment: Experiment, run: RunDirectory, cohort: InProcessCohort) -> None:
    """What rewriting did, in counts: no text enters these files unless asked for."""
    rows = [row for client in sorted(cohort.audit) for row in cohort.audit[client]]
    if not rows:
        return
    write_audit(run.root / "rewriting_audit.jsonl", rows)
    summary: dict[str, Any] = asdict(summarise(rows))
    if (atlas := experiment.federation.atlas) is not None:
        (view, *_others) = rewritten_views(experiment.algorithm)
        texts = [e for c in cohort.clients for e in cohort.examples(c, view)]
        summary["faithful"] = faithful_shares(
            (atlas.truths[e.id].kind, judge(atlas.truths[e.id], e.response)) for e in texts
        )
    write_json_atomic(run.root / "rewriting.json", summary)


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
        "stack": recipe.run.stack,
        "threads": experiment.threads,
        "dtype": recipe.model.dtype,
        "fedsdr": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def _same(facts: Mapping[str, Any], experiment: Experiment, run: RunDirectory) -> None:
    """A resume on another base or other data would silently train something else."""
    for key, now in (
        ("base_digest", experiment.base.digest),
        ("world", experiment.federation.world),
    ):
        if facts[key] != now:
            what = "base model" if key == "base_digest" else "data"
            raise RunError(f"{run.root}: the {what} changed since this run began; start a new run")


def _branch(recipe: Recipe, name: str) -> BranchSpec:
    chosen = recipe.lora.S if name == "S" else recipe.lora.R
    return BranchSpec(chosen.rank, chosen.alpha)


@contextmanager
def _timed(run: RunDirectory, what: str) -> Iterator[None]:
    """Wall seconds go into a file of their own: they differ between runs, results may not."""
    began = time.monotonic()
    yield
    run.append_row(
        TIMINGS, {"round": 0, "phase": what, "seconds": round(time.monotonic() - began, 3)}
    )
