"""How different the clients of a recipe or a run are, raw against rewritten, and what rewriting did
to their answers: `fedsdr diagnose`. Figures only; no record text enters them.

    diagnose(fedsdr.read_recipe("recipe.yaml"), "diagnosis/first")
    diagnose_run("runs/first")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedsdr.coordinator.job import Watch
from fedsdr.data.render import Rendered
from fedsdr.distill.selection import refuse_unready
from fedsdr.errors import DataError, RecipeError, RunError, nearest
from fedsdr.evaluate.diagnostics.faithfulness import audit, paired, read_pairs
from fedsdr.evaluate.diagnostics.measures import (
    OF_MODEL,
    OF_TEXTS,
    Bench,
    Clients,
    Figures,
    measure_model,
    measure_texts,
)
from fedsdr.evaluate.diagnostics.representations import TERMS
from fedsdr.evaluate.diagnostics.tables import write_tables
from fedsdr.jobs.assembly import Experiment, chosen_algorithm, given
from fedsdr.jobs.distill import private_folder
from fedsdr.jobs.known_rewrites import Rewrites, make_rewrites, run_rewrites
from fedsdr.jobs.opened import opened, reopened
from fedsdr.jobs.plan.estimate import fit
from fedsdr.jobs.plan.questions import refuse_empty, refuse_unmeasurable
from fedsdr.jobs.sources import hold_back, load_federation
from fedsdr.model.base import BaseModel
from fedsdr.model.classifier import entailment_class, load_classifier
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.views import Selection, parse_selection
from fedsdr.recipe.settings import Recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import write_json_atomic
from fedsdr.runs.lock import run_lock
from fedsdr.runs.places import work_folder
from fedsdr.runs.plain import read_plain, user_path
from fedsdr.tensors import rng_sample
from fedsdr.types import ClientData

FORMAT, FILE, TABLES = "fedsdr-diagnosis", "diagnosis.json", "diagnosis"
MEASURES = (*OF_TEXTS, *OF_MODEL, "audit")
MOST_CLIENTS = 64  # of more, a seeded sample
LARGEST = 10**9  # bytes of diagnosis.json
FEW = 10  # training rows, below which a client's figures say little


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which measures, of how many rows of each client, after how many local steps. `rewritten`
    None: where the algorithm rewrites. `pairs`: rewrites from files instead. `nli`: a classifier's
    folder, which judges entailment."""

    measures: tuple[str, ...] = MEASURES
    rewritten: bool | None = None
    pairs: Path | None = None
    nli: Path | None = None
    examples: int = 64
    steps: int = 20

    def __post_init__(self) -> None:
        for name in self.measures:
            if name not in MEASURES:
                raise RecipeError(
                    f"{name!r} is no measure; there are {', '.join(MEASURES)}."
                    f"{nearest(name, MEASURES)}"
                )
        if self.pairs is not None and self.rewritten is not None:
            raise RecipeError("--pairs names the rewrites: leave out --rewritten, --no-rewritten")
        if self.nli is not None:
            entailment_class(self.nli)  # now, not after hours


def diagnose(
    recipe: Recipe,
    out: str | Path,
    wanted: Wanted | None = None,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> dict[str, Any]:
    """Measure a recipe's clients; returns what `out/diagnosis.json` holds. Answers are rewritten
    where that is asked for, with drafts in `out/drafts` (private) or in the recipe's cache. A model
    is loaded only if a measure or rewriting needs one."""
    wanted, watch, folder = wanted or Wanted(), watch or Watch(), work_folder(Path(out))
    federation = given(clients, recipe) or load_federation(recipe)
    trained, _ = hold_back(federation, recipe.data.unseen)
    rule = _rule(recipe, wanted, chosen_algorithm(recipe, algorithm))
    private_folder(folder)
    with run_lock(folder):
        if rule is None and not set(OF_MODEL) & set(wanted.measures):
            refuse_empty(trained.clients)
            diagnosis = _measure(recipe, trained.clients, None, {}, wanted, watch)
            return _written(folder, diagnosis)
        with opened(recipe, base, algorithm, federation) as experiment:
            refuse_unmeasurable(experiment, rewriting=rule is not None)
            cache = recipe.rewriting.cache
            drafts = user_path(cache, RunError) if cache else folder / "drafts"
            rewrites = make_rewrites(experiment, rule, drafts, watch) if rule else {}
            everybody = experiment.federation.clients
            diagnosis = _measure(recipe, everybody, experiment, rewrites, wanted, watch)
            return _written(folder, diagnosis)


def diagnose_run(
    directory: str | Path,
    wanted: Wanted | None = None,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> dict[str, Any]:
    """Measure a run's clients, with the rewrites that it trained on; `diagnosis.json` goes into the
    run."""
    wanted, watch = wanted or Wanted(), watch or Watch()
    run = RunDirectory.open(Path(directory))
    with (
        run_lock(run.root),
        reopened(run, "fedsdr.jobs.diagnose.diagnose_run", base, algorithm, clients) as experiment,
    ):
        recipe = experiment.recipe
        refuse_unmeasurable(experiment, rewriting=False)
        asked = wanted.rewritten is not False and wanted.pairs is None
        rewrites = run_rewrites(experiment, run) if asked else {}
        if wanted.rewritten and not rewrites:
            raise RunError(f"{run.root}: {experiment.algorithm.name} rewrites nothing")
        trained = experiment.federation.clients
        diagnosis = _measure(recipe, trained, experiment, rewrites, wanted, watch)
        return _written(run.root, diagnosis)


def _rule(recipe: Recipe, wanted: Wanted, algorithm: Algorithm) -> Selection | None:
    """By which rewrites are selected, if there are to be any."""
    if wanted.pairs is not None or wanted.rewritten is False:
        return None
    views = algorithm.rewritten_views()
    if not views and not wanted.rewritten:
        return None
    rule = parse_selection(views[0].selection if views else recipe.algorithm.selection)
    refuse_unready(rule)
    return rule


def _measure(
    recipe: Recipe,
    clients: Sequence[ClientData],
    experiment: Experiment | None,
    rewrites: Rewrites,
    wanted: Wanted,
    watch: Watch,
) -> dict[str, Any]:
    by_id = {c.client_id: c for c in clients}
    if not any(c.train for c in clients):
        raise DataError("there are no training rows to measure")
    ids = sorted(rng_sample(sorted(by_id), MOST_CLIENTS, recipe.seed, "diagnosis", "clients"))
    raw = {i: list(by_id[i].train) for i in ids}
    if wanted.pairs is not None:
        rewrites = paired(raw, read_pairs(wanted.pairs))
    rewrites = {i: rewrites[i] for i in ids if rewrites.get(i)}
    views: dict[str, Clients] = {"raw": raw}
    if rewrites:
        views["rewritten"] = _as_trained(raw, rewrites)
    notes = _notes(raw, rewrites, wanted)
    texts = measure_texts(wanted.measures, views)
    settings: dict[str, Any] = {}
    figures: Figures = {view: {} for view in views}
    if experiment is not None:
        held_out = {i: by_id[i].validation or by_id[i].test for i in ids}
        notes += [f"{i} has no held-out rows" for i in ids if not held_out[i]]
        settings, figures = _by_model(experiment, views, held_out, wanted, watch)
    diagnosis: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "clients": ids,
        "settings": {
            "measures": list(wanted.measures),
            "seed": recipe.seed,
            "words": TERMS,
            "smoothing": "none",
            "pairs": wanted.pairs is not None,
            **settings,
        },
        "notes": notes,
        "views": {view: texts[view] | figures[view] for view in views},
    }
    if len(ids) < len(clients):
        diagnosis["sampled_of"] = len(clients)
    if "audit" in wanted.measures and rewrites:
        judge = load_classifier(wanted.nli) if wanted.nli is not None else None
        diagnosis["audit"] = dict[str, Any]()
        for number, (i, pairs) in enumerate(rewrites.items(), 1):
            diagnosis["audit"][i] = audit(pairs, judge, wanted.examples, recipe.seed)
            watch.advance("auditing clients", number, len(rewrites))
    return diagnosis


def _as_trained(raw: Clients, rewrites: Rewrites) -> Clients:
    """The rows with the answers that are trained on: a row without a rewrite, or whose rewrite
    selection refused, keeps its own."""
    texts = {
        (i, pair.example.id): pair.text
        for i, pairs in rewrites.items()
        for pair in pairs
        if pair.kept
    }
    return {
        i: [replace(e, response=texts.get((i, e.id), e.response)) for e in rows]
        for i, rows in raw.items()
    }


def _by_model(
    experiment: Experiment,
    views: Mapping[str, Clients],
    held_out: Clients,
    wanted: Wanted,
    watch: Watch,
) -> tuple[dict[str, Any], Figures]:
    asked = set(OF_MODEL) & set(wanted.measures)
    if not asked:
        return {}, {view: {} for view in views}
    recipe, lora = experiment.recipe, experiment.lora
    branch = "R" if "R" in lora.layouts else next(iter(lora.layouts))
    start = lora.fresh(branch, recipe.seed, "init", branch)  # as training begins: B is zero
    bench = Bench(
        lora=lora,
        branch=branch,
        start=start.to(experiment.branches.device, experiment.branches.dtype),
        settings=experiment.local,
        lr=recipe.training.lr,
        stack=experiment.stack,
        batch=max(1, recipe.evaluation.batch // 4),
        max_length=experiment.max_length,
        seed=recipe.seed,
        examples=wanted.examples,
        steps=wanted.steps,
    )
    rows = dict[str, Mapping[str, list[Rendered]]]()
    for number, (view, clients) in enumerate(views.items(), 1):
        rows[view] = bench.render(clients)
        watch.advance("tokenising views", number, len(views))
    if recipe.run.stack == "auto":
        fit(experiment, rows["raw"])
        bench = replace(bench, settings=experiment.local, stack=experiment.stack)
    figures = measure_model(bench, asked, rows, bench.render(held_out), watch.advance)
    settings = {
        "base_digest": experiment.base.digest,
        "branch": branch,
        "rank": lora.layouts[branch].spec.rank,
        "examples": wanted.examples,
        "steps": wanted.steps,
        "lr": recipe.training.lr,
        "batch": experiment.local.batch,
        "optimizer": experiment.local.optimizer,
    }
    return settings, figures


def _notes(raw: Clients, rewrites: Rewrites, wanted: Wanted) -> list[str]:
    notes = list[str]()
    if len(raw) == 1:
        notes.append("there is one client only, so nothing between clients can be measured")
    if few := [f"{i} ({len(rows)})" for i, rows in raw.items() if len(rows) < FEW]:
        notes.append(f"few training rows, so their figures say little: {', '.join(few)}")
    alone = {i: len(rows) - len(rewrites.get(i, ())) for i, rows in raw.items()}
    if wanted.pairs is not None and any(alone.values()):
        places = ", ".join(f"{i} ({n} of {len(raw[i])})" for i, n in alone.items() if n)
        notes.append(f"rows without a pair, which keep their own answers as rewritten: {places}")
    if not rewrites:
        notes.append("there are no rewrites: only the raw answers were measured")
    return notes


def _written(folder: Path, diagnosis: dict[str, Any]) -> dict[str, Any]:
    """On disk with what an earlier call measured; returns what this one did."""
    kept = _added_to(_earlier(folder / FILE), diagnosis)
    if not write_tables(folder / TABLES, kept):
        diagnosis["notes"].append("no Parquet tables were written: pip install 'fedsdr[parquet]'")
    write_json_atomic(folder / FILE, kept)
    return diagnosis


def _earlier(file: Path) -> dict[str, Any]:
    """What an earlier call measured; nothing where that cannot be read."""
    try:
        earlier = json.loads(read_plain(file, LARGEST, RunError))
        return earlier if earlier["format"] == FORMAT and earlier["views"] else {}
    except (OSError, RunError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _added_to(earlier: dict[str, Any], diagnosis: dict[str, Any]) -> dict[str, Any]:
    """With what an earlier call by the same settings measured and this one left out."""
    if not earlier:
        return diagnosis
    then, now = earlier["settings"], diagnosis["settings"]
    shared = (then.keys() & now.keys()) - {"measures"}
    alike = earlier["clients"] == diagnosis["clients"] and all(then[k] == now[k] for k in shared)
    if not alike or diagnosis["views"].keys() - earlier["views"].keys():
        return diagnosis
    every = {*then["measures"], *now["measures"]}
    settings = {**then, **now, "measures": [m for m in MEASURES if m in every]}
    views = {
        view: {**figures, **diagnosis["views"].get(view, {})}
        for view, figures in earlier["views"].items()
    }
    notes = list(dict.fromkeys([*earlier["notes"], *diagnosis["notes"]]))
    return {**earlier, **diagnosis, "settings": settings, "views": views, "notes": notes}
