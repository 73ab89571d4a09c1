"""The sweep file: a normal recipe with one more key, `sweep`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError

from fedsdr.errors import RecipeError, nearest
from fedsdr.evaluate.verdicts import Contrast
from fedsdr.jobs.sweep.cells import Changes, Sweep, Tune, check_cells
from fedsdr.recipe.limits import Free, Seed, Text, Words, told
from fedsdr.recipe.settings import Section
from fedsdr.recipe.yaml import apply_change, read_yaml

LABEL = re.compile(r"[A-Za-z0-9_+~()-][A-Za-z0-9_.+~()-]{0,63}")  # one part of a path, too
MOST = 5_000  # cells, tuning and all
Values = Annotated[list[Any], Field(min_length=1, max_length=1000)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=1000)]
Grids = Annotated[dict[Text, Values], Field(max_length=100)]
Changed = Annotated[dict[Text, Free], Field(max_length=1000)]  # by label


class TuneChoice(Section):
    seeds: Seeds
    grid: Annotated[Grids, Field(min_length=1)]
    also: Annotated[dict[Text, Grids], Field(default_factory=dict)]
    changes: Annotated[Free, Field(default_factory=dict)]


class SweepChoice(Section):
    methods: Annotated[Changed, Field(min_length=1)]
    boosted: Annotated[Words, Field(default_factory=list)]
    settings: Annotated[Changed, Field(default_factory=dict)]
    seeds: Seeds
    tune: TuneChoice | None = None
    contrasts: Annotated[list[Text], Field(default_factory=list, max_length=1000)]
    keep_runs: bool = False


def read_sweep(path: str | Path, changes: Sequence[str] = ()) -> Sweep:
    """A sweep file with `key.path=value` changes on top, every cell's recipe checked."""
    values = read_yaml(path, "name a recipe with a key `sweep`")
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys with `sweep` among them")
    tree = cast("dict[str, Any]", values)
    for change in changes:
        apply_change(tree, change)
    return parse_sweep(tree, str(path))


def parse_sweep(tree: Mapping[str, Any], name: str = "sweep") -> Sweep:
    if "sweep" not in tree:
        near = [key for key in map(str, tree) if nearest(key, ["sweep"])]
        meant = f" Is {near[0]!r} meant to be `sweep`?" if near else ""
        raise RecipeError(
            f"{name} has no key `sweep`, so it is one run: `fedsdr train {name}`.{meant}"
        )
    chosen = _choice(tree["sweep"], name)
    problem = _first_problem(chosen)
    if problem is not None:
        raise RecipeError(f"{name}: {problem}")
    methods = {label: _named(label, changes) for label, changes in chosen.methods.items()}
    methods |= {
        f"fedsd+{label}": {**methods[label], "algorithm.boosted": True} for label in chosen.boosted
    }
    text = json.dumps(tree, sort_keys=True, default=str)
    sweep = Sweep(
        name=name,
        tree={key: value for key, value in tree.items() if key != "sweep"},
        methods=methods,
        settings=chosen.settings or {"all": {}},
        seeds=tuple(chosen.seeds),
        tune=_tune(chosen),
        contrasts=_contrasts(chosen.contrasts, name),
        keep_runs=chosen.keep_runs,
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )
    check_cells(sweep)
    return sweep


def _named(label: str, changes: Changes) -> Changes:
    given = "algorithm.name" in changes or "algorithm" in changes
    return changes if given else {"algorithm.name": label, **changes}


def _tune(chosen: SweepChoice) -> Tune | None:
    if (tune := chosen.tune) is None:
        return None
    # What is boosted is the same method, so it is tuned on the same keys.
    boosted = {f"fedsd+{b}": tune.also[b] for b in chosen.boosted if b in tune.also}
    return Tune(tuple(tune.seeds), tune.grid, {**boosted, **tune.also}, tune.changes)


def _first_problem(chosen: SweepChoice) -> str | None:
    """What no type can refuse."""
    return next((problem for check in CHECKS for problem in check(chosen)), None)


def _label_problems(chosen: SweepChoice) -> Iterable[str]:
    for key, labels in (("methods", chosen.methods), ("settings", chosen.settings)):
        for label in labels:
            if not LABEL.fullmatch(label):
                yield (
                    f"sweep.{key}: {label!r} cannot be a label: use up to 64 of the characters "
                    "A-Z a-z 0-9 _ . + ~ ( ) - and no dot at the start"
                )
    for label in chosen.boosted:
        if label not in chosen.methods:
            yield f"sweep.boosted: there is no method {label!r}.{nearest(label, chosen.methods)}"
        elif f"fedsd+{label}" in chosen.methods:
            yield f"sweep.boosted: 'fedsd+{label}' is in sweep.methods already"
        elif chosen.methods[label].get("algorithm.boosted"):
            yield f"sweep.boosted: {label!r} is boosted already"
    if len(set(chosen.boosted)) < len(chosen.boosted):
        yield "sweep.boosted names a method twice"


def _seed_problems(chosen: SweepChoice) -> Iterable[str]:
    tuning = chosen.tune.seeds if chosen.tune else []
    for key, seeds in (("seeds", chosen.seeds), ("tune.seeds", tuning)):
        if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
            yield f"sweep.{key}: {twice[0]} is given twice"
    if both := sorted(set(chosen.seeds) & set(tuning)):
        yield (
            f"sweep.tune.seeds: {both[0]} is also in sweep.seeds; tune on seeds of their own, or "
            "what is picked is picked for the very data it is tested on"
        )


def _grid_problems(chosen: SweepChoice) -> Iterable[str]:
    if (tune := chosen.tune) is None:
        return
    labels = [*chosen.methods, *(f"fedsd+{label}" for label in chosen.boosted)]
    for label in tune.also:
        if label not in labels:
            yield f"sweep.tune.also: there is no method {label!r}.{nearest(label, labels)}"
    for key, values in tune.grid.items():
        everywhere = {**chosen.methods, **chosen.settings, "tune.changes": tune.changes}
        yield from _varied("grid", key, values, everywhere)
    for label, grid in tune.also.items():
        plain = chosen.methods.get(label, chosen.methods.get(label.removeprefix("fedsd+"), {}))
        for key, values in grid.items():
            if key in tune.grid:
                yield f"sweep.tune.also.{label}: {key!r} is in sweep.tune.grid already"
            fixed = {label: plain, **chosen.settings, "tune.changes": tune.changes}
            yield from _varied(f"also.{label}", key, values, fixed)


def _varied(
    grid: str, key: str, values: Sequence[Any], fixed: Mapping[str, Changes]
) -> Iterable[str]:
    if any(value in values[:i] for i, value in enumerate(values)):
        yield f"sweep.tune.{grid}: {key!r} tries a value twice"
    for where, changes in fixed.items():
        if key in changes:
            yield f"sweep: {where} sets {key!r}, which sweep.tune.{grid} varies"


def _key_problems(chosen: SweepChoice) -> Iterable[str]:
    places: dict[str, Iterable[str]] = {
        f"methods.{k}": changes for k, changes in chosen.methods.items()
    }
    places |= {f"settings.{k}": changes for k, changes in chosen.settings.items()}
    if chosen.tune:
        places |= {"tune.changes": chosen.tune.changes, "tune.grid": chosen.tune.grid}
        places |= {f"tune.also.{k}": grid for k, grid in chosen.tune.also.items()}
    for place, keys in places.items():
        for key in keys:
            if key in ("seed", "sweep") or key.startswith("sweep."):
                yield f"sweep.{place} cannot change {key!r}; seeds are given in sweep.seeds"


def _too_many(chosen: SweepChoice) -> Iterable[str]:
    """Every cell's recipe is built before the first runs."""
    tune = chosen.tune
    boosted = {f"fedsd+{label}": label for label in chosen.boosted}
    cells = 0
    for label in (*chosen.methods, *boosted):
        cells += len(chosen.seeds)
        if tune is not None:
            extra = tune.also.get(label, tune.also.get(boosted.get(label, ""), {}))
            grid = (*tune.grid.values(), *extra.values())
            cells += len(tune.seeds) * math.prod(map(len, grid))
    cells *= max(1, len(chosen.settings))
    if cells > MOST:
        yield f"sweep has {cells:,} cells; at most {MOST:,} are run, so make it several sweeps"


CHECKS: Sequence[Callable[[SweepChoice], Iterable[str]]] = (
    _too_many,
    _label_problems,
    _seed_problems,
    _grid_problems,
    _key_problems,
)


def _choice(given: Any, name: str) -> SweepChoice:
    try:
        return SweepChoice.model_validate(given)
    except ValidationError as error:
        raise RecipeError(told(error, SweepChoice, name, "sweep")) from None


def _contrasts(texts: Sequence[str], name: str) -> tuple[Contrast, ...]:
    contrasts = dict[tuple[frozenset[str], str], Contrast]()
    for text in texts:
        try:
            contrast = Contrast.parse(text)
        except RecipeError as error:
            raise RecipeError(f"{name}: sweep.contrasts: {error}") from None
        test = (frozenset((contrast.left, contrast.right)), contrast.measure)
        if contrasts.setdefault(test, contrast) is not contrast:
            raise RecipeError(
                f"{name}: sweep.contrasts: '{contrast}' is named twice, perhaps the other way round"
            )
    return tuple(contrasts.values())
