"""What a sweep asks for, and its cells: one recipe for every (setting, method, seed), and for every
tuning (setting, method, seed, point of the grid).

Changes go onto the recipe in this order: setting, method, what holds while tuning, point, seed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from fedsdr.errors import RecipeError
from fedsdr.evaluate.verdicts import Contrast
from fedsdr.jobs.assembly import chosen_algorithm
from fedsdr.recipe.settings import Recipe, build_recipe, dump_recipe
from fedsdr.recipe.yaml import set_key

Changes = Mapping[str, Any]  # dotted key of the recipe -> its value
Grid = Mapping[str, Sequence[Any]]  # dotted key -> the values to try
READABLE = re.compile(r"[A-Za-z0-9_.,=+-]{1,100}")


@dataclass(frozen=True, slots=True)
class Tune:
    """The grid that every method is tuned on; `also` has further keys for single methods."""

    seeds: tuple[int, ...]
    grid: Grid
    also: Mapping[str, Grid]
    changes: Changes

    def keys(self, label: str) -> Grid:
        return {**self.grid, **self.also.get(label, {})}

    def points(self, label: str) -> list[Changes]:
        grid = self.keys(label)
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep file, read and checked. `tree` is the recipe without its key `sweep`."""

    name: str
    tree: Mapping[str, Any]
    methods: Mapping[str, Changes]
    settings: Mapping[str, Changes]
    seeds: tuple[int, ...]
    tune: Tune | None
    contrasts: tuple[Contrast, ...]
    keep_runs: bool
    digest: str  # of the file with the changes from the command line


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    kind: Literal["cells", "tune"]
    setting: str
    label: str
    seed: int
    point: Changes  # of the grid: the one tried, or the one picked
    changes: Changes  # all changes but the seed
    recipe: Recipe

    @property
    def name(self) -> str:
        """Where its JSON file is, below the sweep's folder and without the ending."""
        point = f"-{point_name(self.point)}" if self.kind == "tune" else ""
        return f"{self.kind}/{self.setting}/{self.label}/{self.seed}{point}"

    @property
    def title(self) -> str:
        setting = "" if self.setting == "all" else f"{self.setting}, "
        point = f", {point_words(self.point)}" if self.kind == "tune" else ""
        return f"{'tuning ' if point else ''}{setting}{self.label} seed {self.seed}{point}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(dump_recipe(self.recipe).encode()).hexdigest()


def main_cell(sweep: Sweep, setting: str, label: str, seed: int, point: Changes) -> Cell:
    changes = {**sweep.settings[setting], **sweep.methods[label], **point}
    recipe = _recipe(sweep, changes, seed, _where(sweep, setting, label))
    return Cell(
        kind="cells",
        setting=setting,
        label=label,
        seed=seed,
        point=point,
        changes=changes,
        recipe=recipe,
    )


def tuning_cells(sweep: Sweep, setting: str, label: str, every_seed: bool = True) -> list[Cell]:
    """Point by point of the grid, each on all tuning seeds."""
    if (tune := sweep.tune) is None:
        return []
    changes = {**sweep.settings[setting], **sweep.methods[label], **tune.changes}
    where = f"{_where(sweep, setting, label)}, tuning"
    return [
        Cell(
            kind="tune",
            setting=setting,
            label=label,
            seed=seed,
            point=point,
            changes=changes | point,
            recipe=recipe,
        )
        for point in map(dict[str, Any], tune.points(label))
        for seed in (tune.seeds if every_seed else tune.seeds[:1])
        for recipe in [_recipe(sweep, changes | point, seed, where)]
    ]


def check_cells(sweep: Sweep) -> None:
    """Build every recipe and every algorithm now, so that no mistake waits for its cell's turn; of
    one seed, since all are alike in what is checked."""
    mixes = dict[str, set[str]]()
    for setting, label in product(sweep.settings, sweep.methods):
        first = sweep.tune.points(label)[0] if sweep.tune else {}
        main = main_cell(sweep, setting, label, sweep.seeds[0], first)
        for cell in (main, *tuning_cells(sweep, setting, label, every_seed=False)):
            try:
                algorithm = chosen_algorithm(cell.recipe)
            except RecipeError as error:
                raise RecipeError(f"{_where(sweep, setting, label)}: {error}") from None
            mixes.setdefault(label, set()).update(algorithm.deploys)
            data = cell.recipe.data
            if cell.kind == "tune" and not (data.atlas or data.manifest or data.validation):
                raise RecipeError(
                    f"{sweep.name}: sweep.tune picks by validation scores, but data.validation is 0"
                )
            if cell.kind == "tune" and not (data.atlas or data.manifest or data.test_files):
                raise RecipeError(
                    f"{sweep.name}: sweep.tune: with data.files or data.file every seed draws test "
                    "rows of its own, so the tuning seeds would train on the others' test rows; "
                    "give data.manifest (one split for all seeds) or data.test_files"
                )
    for contrast in sweep.contrasts:
        for side in (contrast.left, contrast.right):
            label, mix = side.split(":")
            if mix not in mixes.get(label, ()):
                known = ", ".join(
                    f"{m}:{x}" for m, deployed in mixes.items() for x in sorted(deployed)
                )
                raise RecipeError(
                    f"{sweep.name}: sweep.contrasts: {side!r} in '{contrast}' is no model of this "
                    f"sweep; there are {known}"
                )


def point_words(point: Changes) -> str:
    return ", ".join(_settled(point)) or "the recipe's own"


def point_name(point: Changes) -> str:
    """One part of a path, readable where it can be."""
    text = ",".join(_settled(point))
    return text if READABLE.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:16]


def _settled(point: Changes) -> list[str]:
    return [f"{key}={json.dumps(value, default=str)}" for key, value in point.items()]


def _recipe(sweep: Sweep, changes: Changes, seed: int, where: str) -> Recipe:
    tree = deepcopy(dict(sweep.tree))
    for key, value in changes.items():
        set_key(tree, key, deepcopy(value), f"{where}: {key!r}")
    return build_recipe({**tree, "seed": seed}, where)


def _where(sweep: Sweep, setting: str, label: str) -> str:
    within = "" if setting == "all" else f" in setting {setting!r}"
    return f"{sweep.name}: method {label!r}{within}"
