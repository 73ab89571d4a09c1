"""Assembly: from a recipe to everything a run needs but its directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.algorithms.server import with_objectives, with_server_rule
from fedsdr.data.manifest import CLIENT_ID_RULE, ManifestInfo
from fedsdr.data.partition import check_distinct, is_client_id
from fedsdr.data.render import Rendered
from fedsdr.distill.generate import Sampling
from fedsdr.distill.rewrite import Rewriting
from fedsdr.distill.selection import refuse_unready
from fedsdr.errors import DataError, RecipeError
from fedsdr.evaluate.scoring import HeldOutLoss
from fedsdr.jobs.machine import cores
from fedsdr.jobs.sources import Federation, LeftOut, hold_back, leave_out, load_federation, pooled
from fedsdr.model.adapters import adapter_notes, load_adapter
from fedsdr.model.base import BaseModel, with_template
from fedsdr.model.checkpointing import with_checkpointing
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.model.sealed import TRUSTED
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.views import Rewritten, parse_selection
from fedsdr.recipe.limits import ASKED, STEPS
from fedsdr.recipe.settings import Recipe
from fedsdr.site.branches import Branches
from fedsdr.types import ClientData

SMALL = 256  # a rank that is never in the way
ATLAS_BASE = Path(__file__).parents[1] / "atlas" / "base"


@dataclass(slots=True, kw_only=True)
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
    unseen: tuple[ClientData, ...] = ()  # who never does, and is scored at the end
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default_factory=LeftOut)  # rows that do not fit
    threads: int = field(default=0)
    stack: int = 1  # K
    local: LocalSettings = field(default_factory=LocalSettings)
    raw: dict[str, list[Rendered]] = field(default_factory=lambda: dict[str, list[Rendered]]())

    @property
    def max_length(self) -> int:
        return min(self.recipe.model.max_length, self.base.max_length)

    def close(self) -> None:
        self.lora.remove()


def assemble(
    recipe: Recipe,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    federation: Federation | None = None,
) -> Experiment:
    """Check and build all that a run needs; nothing is trained or written yet.

    Args:
        recipe: What to do, from `read_recipe`, `parse_recipe` or `build_recipe`.
        base: A model that is open already, in place of the one that the recipe names.
        algorithm: An algorithm from Python, in place of the recipe's.
        federation: Clients and how they are scored, in place of the recipe's data.
    """
    threads = recipe.run.threads or cores()
    torch.set_num_threads(threads)
    algorithm = chosen_algorithm(recipe, algorithm)
    federation = federation or load_federation(recipe)
    federation, unseen = hold_back(federation, recipe.data.unseen)
    _refuse_endless(recipe, federation.clients)
    base = base or open_base(recipe)
    left_out = LeftOut()
    if recipe.data.overlong == "drop" and federation.atlas is None:
        limit, many = min(recipe.model.max_length, base.max_length), len(federation.clients)
        every, left_out = leave_out(recipe, base, (*federation.clients, *unseen), limit)
        federation, unseen = replace(federation, clients=every[:many]), every[many:]
    if federation.atlas is not None and base.path.resolve() != ATLAS_BASE.resolve():
        notes = (
            "data.atlas is about atlas-base; another model does not know the world's public facts",
        )
    else:
        notes = ()
    specs = {b: _branch(recipe, b) for b in algorithm.branches()}
    lora = StackedLora(base, recipe.lora.targets, specs)
    with ExitStack() as undo:
        undo.callback(lora.remove)  # the base is given back as it was if anything below fails
        _refuse_ranks(lora)
        start = {b: lora.fresh(b, recipe.seed, "init", b) for b in specs}
        if recipe.lora.init is not None:
            if "R" not in start:
                raise RecipeError("lora.init starts R from an adapter, but this algorithm has no R")
            start["R"] = load_adapter(recipe.lora.init, lora, "R")
            notes = (*notes, *adapter_notes(recipe.lora.init, lora))
        start |= {b: _begin(start[b], how, start) for b, how in algorithm.starts.items()}
        wide = torch.float64 if base.dtype == torch.float64 else torch.float32
        ranks = client_ranks(recipe, algorithm, [c.client_id for c in federation.clients])
        branches = Branches(lora, algorithm, start, wide, ranks)
        trained = pooled(federation) if algorithm.pool else federation.clients
        undo.pop_all()
    notes = (*federation.notes, *left_out.notes, *base.notes, *lora.notes, *notes)
    return Experiment(
        recipe=recipe,
        base=base,
        federation=federation,
        algorithm=algorithm,
        lora=lora,
        branches=branches,
        trained=trained,
        unseen=unseen,
        notes=notes,
        left_out=left_out,
        threads=threads,
        stack=1 if recipe.run.stack == "auto" else recipe.run.stack,
        local=local_settings(recipe),
    )


def chosen_algorithm(recipe: Recipe, algorithm: Algorithm | None = None) -> Algorithm:
    """The recipe's algorithm (or the one given from Python) under the recipe's server rule."""
    chosen = recipe.algorithm
    if algorithm is not None and (chosen.boosted or chosen.objectives):
        raise RecipeError(
            "algorithm.boosted and algorithm.objectives belong to the recipe's own algorithm; over "
            "one from Python, call fedsdr.boosted and with_objectives yourself"
        )
    if algorithm is None:
        boost = Rewritten(chosen.selection) if chosen.boosted else None
        algorithm = make_algorithm(chosen.name, chosen.options, boost)
        algorithm = with_objectives(algorithm, chosen.objectives)
    algorithm = with_server_rule(algorithm, recipe.server.combine, recipe.server.filters)
    for view in algorithm.rewritten_views():
        refuse_unready(
            parse_selection(view.selection)
        )  # now, not when a run directory is there already
    return algorithm


def open_base(recipe: Recipe, load: Callable[..., BaseModel] = load_base) -> BaseModel:
    """The recipe's base; the code that a model brings runs only if the user trusts it by name."""
    model = recipe.model
    path = str(ATLAS_BASE) if model.path == "atlas" else model.path
    base = load(
        path, model.dtype, model.device, model.revision, model.quantize, model.path in TRUSTED.get()
    )
    base = replace(with_template(base, model.chat_template, model.train_on), packing=model.packing)
    return with_checkpointing(base) if model.checkpointing else base


def given(clients: Sequence[ClientData] | None, recipe: Recipe) -> Federation | None:
    """Clients handed over in Python, in place of the recipe's data."""
    if clients is None:
        return None
    if len({c.client_id for c in clients}) < len(clients) or not clients:
        raise DataError("clients must be given with distinct ids, and at least one")
    for client in clients:
        if not is_client_id(client.client_id):
            raise DataError(f"client id {client.client_id!r}: must be {CLIENT_ID_RULE}")
    check_distinct(c.client_id for c in clients)
    info = ManifestInfo({"source": "python"}, recipe.seed)
    return Federation(tuple(clients), HeldOutLoss(), info)


def local_settings(recipe: Recipe) -> LocalSettings:
    training = recipe.training
    return LocalSettings(
        epochs=training.local_epochs,
        steps=training.local_steps,
        batch=training.batch,
        micro_batch=training.micro_batch,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        clip=training.clip,
        loss=training.loss,
    )


def rewriting_settings(recipe: Recipe) -> Rewriting:
    choice = recipe.rewriting
    sampling = Sampling(choice.temperature, choice.top_p, choice.top_k, choice.max_new_tokens)
    return Rewriting(sampling, choice.template, recipe.seed, choice.batch, choice.engine)


def _branch(recipe: Recipe, name: str) -> BranchSpec:
    chosen = recipe.lora.S if name == "S" else recipe.lora.R
    return BranchSpec(chosen.rank, chosen.alpha)


def _refuse_endless(recipe: Recipe, clients: Sequence[ClientData]) -> None:
    """Work without end, of which a plan would count every part."""
    training, many = recipe.training, len(clients)
    wish = training.participation
    asked = training.rounds * (many * wish if wish <= 1 else min(many, wish))
    if asked > ASKED:
        raise RecipeError(
            f"training.rounds: {training.rounds:,} rounds of {many:,} clients ask for "
            f"{asked:,.0f} answers, more than the {ASKED:,} of a run; lower training.rounds or "
            "training.participation"
        )
    rows, batch = max(len(client.train) for client in clients), training.batch
    steps = training.local_epochs * rows / batch
    if training.local_steps is None and steps > STEPS:
        raise RecipeError(
            f"training.local_epochs: {training.local_epochs:g} passes over {rows:,} rows are "
            f"{steps:,.0f} steps in a round, more than {STEPS:,}; lower it, or raise training.batch"
        )


def _refuse_ranks(lora: StackedLora) -> None:
    """A pair A, B of more than a layer's own rank can say nothing more, and fills the memory."""
    full = max(min(shape) for shape in lora.shapes.values())
    for branch, layout in lora.layouts.items():
        if layout.spec.rank > max(full, SMALL):
            raise RecipeError(
                f"lora.{branch}.rank: {layout.spec.rank:,} is above the full rank of every adapted "
                f"layer, {full:,}; lower it"
            )


def _begin(like: Tensor, how: str, start: Mapping[str, Tensor]) -> Tensor:
    """As an algorithm's `starts` has it: "zero", "one", or as another branch."""
    if how in ("zero", "one"):
        return torch.full_like(like, float(how == "one"))
    return start[how].clone()


def client_ranks(recipe: Recipe, algorithm: Algorithm, clients: Sequence[str]) -> dict[str, int]:
    """Client -> rank of R where ranks differ: given by client, or a list dealt out in turn."""
    given, full = recipe.lora.R.ranks, recipe.lora.R.rank
    if given is None:
        return {}
    if not algorithm.any_rank:
        raise RecipeError(
            f"lora.R.ranks: {algorithm.name} needs the same rank on all clients; `fedsdr "
            "algorithms` says which take different ones"
        )
    if not given:
        raise RecipeError("lora.R.ranks is empty; leave it out, or give every client its rank")
    ordered = sorted(clients)
    if isinstance(given, dict):
        for name in (*given.keys(), *ordered):
            if name not in given or name not in ordered:
                what = "has no rank there" if name in ordered else "is not one that trains"
                raise RecipeError(f"lora.R.ranks: client {name!r} {what}")
        ranks = dict(given)
    else:
        ranks = {c: given[i % len(given)] for i, c in enumerate(ordered)}
    if (most := max(ranks.values())) > full:
        raise RecipeError(f"lora.R.ranks: {most} is above lora.R.rank ({full}), the server's rank")
    return ranks
