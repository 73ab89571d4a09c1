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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedsdr.assembly import (
    Experiment,
    Watch,
    assemble,
    given,
    rewriting_settings,
)
from fedsdr.cohort.in_process import rewritten_views
from fedsdr.conduct import Wrap, conduct, unchanged
from fedsdr.config import Recipe, dump_recipe
from fedsdr.distill.audit import AuditRow, AuditSummary, summarise, write_audit
from fedsdr.distill.rewrite import once, rewrite
from fedsdr.distill.selection import parse_selection
from fedsdr.model.base import BaseModel
from fedsdr.model.source import TRUSTED
from fedsdr.parts.algorithm import Algorithm
from fedsdr.plan.estimate import fit
from fedsdr.plan.problems import refuse_senseless
from fedsdr.plan.rows import refuse_unusable
from fedsdr.recorded import (
    facts_of,
    other_versions,
    recorded_recipe,
    refuse_changed,
    refuse_other_wrap,
    refuse_without,
    versions,
)
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import write_json_atomic, write_text_atomic
from fedsdr.runs.lock import run_lock
from fedsdr.runs.places import refuse_inside_a_run, work_folder
from fedsdr.standalone import private_folder, tally
from fedsdr.types import ClientData


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
    refuse_inside_a_run(Path(out), itself=False)
    experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        refuse_senseless(experiment, custom=algorithm is not None)
        experiment.tokenise()
        refuse_unusable(experiment)
        if recipe.run.stack == "auto":
            fit(experiment, experiment.raw)
        run = RunDirectory.create(
            Path(out), dump_recipe(recipe), _facts(experiment, algorithm, clients, wrap)
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
        refuse_without(run, "fedsdr.resume", algorithm, clients)
        refuse_other_wrap(run, _own(wrap))
        recipe = recorded_recipe(run)
        experiment = assemble(recipe, base, algorithm, given(clients, recipe))
        try:
            refuse_changed(experiment, run)
            watch = watch or Watch()
            for note in other_versions(run):
                watch.note(note)
            return conduct(experiment, run, watch, wrap)
        finally:
            experiment.close()


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
    watch, folder = watch or Watch(), work_folder(Path(out))
    experiment = assemble(recipe, base, None, given(clients, recipe))
    try:
        for note in experiment.left_out.notes:
            watch.note(note)
        views = rewritten_views(experiment.algorithm)
        rule = parse_selection(
            selection or (views[0].selection if views else recipe.algorithm.selection)
        )
        private_folder(folder)
        clients = experiment.federation.clients
        told = tally(watch.advance, sum(len(client.train) for client in clients))
        rows, note = list[AuditRow](), once(watch.note)
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
                    note=note,
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
