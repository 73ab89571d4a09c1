"""What algorithms there are, read off their code: nothing about one is written down twice."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsdr.algorithms.registry import Factory, factories, make_algorithm, options
from fedsdr.coordinator.loop import LoopSettings, sample_clients
from fedsdr.jobs.assembly import client_ranks, open_base
from fedsdr.jobs.plan.shape import describe_algorithm
from fedsdr.jobs.plan.traffic import Wire, numbers
from fedsdr.jobs.sources import hold_back, load_federation
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Algorithm, split_mix
from fedsdr.recipe.settings import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One registered algorithm with its defaults. `up` and `down`: bytes of one client in a round,
    as a multiple of one LoRA's and the mean over the recipe's rounds; None where data are pooled.
    `grows`: what goes down includes P, and is the most that it can be."""

    name: str
    about: str
    sends: str
    keeps: str
    deploys: Mapping[str, str]
    up: float | None
    down: float | None
    grows: bool
    any_rank: bool
    options: Mapping[str, Any]
    stages: tuple[str, ...]
    documentation: str


def catalogue(recipe: Recipe | None = None, name: str | None = None) -> list[Entry]:
    """All registered algorithms, or the one by that name, on a recipe's model, ranks, clients and
    rounds: the default recipe's, where none is given."""
    recipe = recipe or Recipe()
    chosen = [name] if name is not None else sorted(factories())
    made = {key: make_algorithm(key) for key in chosen}  # an unknown name shows before any loading
    lora = StackedLora(open_base(recipe), recipe.lora.targets, {})
    try:
        return [_entry(key, algorithm, lora, recipe) for key, algorithm in made.items()]
    finally:
        lora.remove()


def _entry(name: str, algorithm: Algorithm, lora: StackedLora, recipe: Recipe) -> Entry:
    ranks = {"S": recipe.lora.S.rank}
    full = {b: ranks.get(b, recipe.lora.R.rank) for b in ("R", *algorithm.branches())}
    up, down = _bytes(Wire(algorithm, lora.shapes, full), recipe)
    row, paper = describe_algorithm(algorithm, recipe), _documentation(factories()[name])
    return Entry(
        name=name,
        about=_first_sentence(paper),
        sends="all data" if algorithm.pool else _parts(split_mix(algorithm.share)),
        keeps=_parts(_kept(algorithm)),
        deploys=row.deploys,
        up=None if algorithm.pool else up,
        down=None if algorithm.pool else down,
        grows=algorithm.folds(),
        any_rank=algorithm.any_rank,
        options=options(name),
        stages=row.stages,
        documentation=paper,
    )


def _bytes(wire: Wire, recipe: Recipe) -> tuple[float, float]:
    training, one_lora = recipe.training, wire.one_lora()
    trained, _ = hold_back(load_federation(recipe), recipe.data.unseen)
    clients = [c.client_id for c in trained.clients]
    settings = LoopSettings(
        run="", seed=0, rounds=training.rounds, lr=training.lr, participation=training.participation
    )
    asked = len(sample_clients(clients, settings, 1))
    rounds = range(1, training.rounds + 1)
    ranks = client_ranks(recipe, wire.algorithm, clients) if wire.algorithm.any_rank else {}
    each = list(ranks.values()) or [None]
    up = sum(numbers(wire.up(n, rank).values()) for n in rounds for rank in each) / len(each)
    # Each round merges its clients' products, and may take the product of their means out again.
    of_p = sum(wire.folded((n - 1) * (asked + 1) * wire.ranks["R"]) for n in rounds)
    down = len(rounds) * sum(numbers(wire.down(rank).values()) for rank in each) / len(each) + of_p
    return up / len(rounds) / one_lora, down / len(rounds) / one_lora


def _kept(algorithm: Algorithm) -> list[str]:
    """What stays at home: of a branch that is shared in part, the rest."""
    shared, parts = split_mix(algorithm.share), list[str]()
    for branch in algorithm.personal():
        if branch in shared:
            parts.append(f"{branch} of the last {_blocks(algorithm.local_blocks)}")
        else:
            halves = [f"{branch}.{half}" for half in "AB"]
            rest = [half for half in halves if half not in shared]
            parts += rest if len(rest) < len(halves) else [branch]
    return parts


def _blocks(count: int) -> str:
    return "block" if count == 1 else f"{count} blocks"


def _parts(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"


def _documentation(factory: Factory) -> str:
    """Of the module, where the paper is named, then of the factory, where the rule stands."""
    module = inspect.getmodule(factory)
    texts = (inspect.getdoc(module) if module else None, inspect.getdoc(factory))
    return "\n\n".join(text for text in texts if text)


def _first_sentence(text: str) -> str:
    """Not ending at "et al."."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<!\bal)(?<=\.) (?=[A-ZÀ-Þ])", paragraph)[0]
