"""One cell at a time: run it, or go on with it, and write down what came out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsdr.coordinator.job import Watch
from fedsdr.errors import CorruptArtifact, FedsdrError, RecipeError, RunError, RunLocked
from fedsdr.jobs.assembly import open_base
from fedsdr.jobs.sources import load_federation
from fedsdr.jobs.sweep.cells import Cell
from fedsdr.jobs.sweep.records import (
    Record,
    failure,
    read_record,
    record_path,
    success,
    write_record,
)
from fedsdr.jobs.train import resume, train
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Model, Recipe, dump_recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import make_private, remove, unwritable
from fedsdr.runs.identity import holds_run
from fedsdr.runs.lock import run_lock


def _nothing(text: str) -> None:
    """Nobody listens."""


def _unwatched(title: str, rounds: int) -> AbstractContextManager[Watch]:
    return nullcontext(Watch())


@dataclass(frozen=True, slots=True)
class Observer:
    """Whoever follows a sweep: a line for each cell, and a watch on each run."""

    say: Callable[[str], None] = _nothing
    watching: Callable[[str, int], AbstractContextManager[Watch]] = _unwatched


@dataclass(slots=True)
class Worlds:
    """Cells of one setting and seed are pairs only if they are about the same data."""

    seen: dict[tuple[str, str, int], tuple[str, Path]] = field(
        default_factory=lambda: dict[tuple[str, str, int], tuple[str, Path]]()
    )

    def check(self, out: Path, cell: Cell, record: Record) -> None:
        if "failed" in record:
            return
        here = (record["world"], record_path(out, cell))
        first = self.seen.setdefault((cell.kind, cell.setting, cell.seed), here)
        if first[0] != here[0]:
            raise RunError(
                f"{first[1]} and {here[1]} have the same setting and seed but other data or "
                f"another partition (world {first[0][:12]} and {here[0][:12]}), so they are no "
                "pair; move what changes the data from sweep.methods to sweep.settings, or delete "
                "the one that was made with other data"
            )


@dataclass(slots=True, kw_only=True)
class Worker:
    """`todo` are the names of all cells that this process is to see to, with their methods."""

    out: Path
    observer: Observer
    todo: dict[str, str]
    keep_runs: bool = False
    retry_failed: bool = False
    total: int = 0
    base: tuple[Model, BaseModel] | None = None
    worlds: Worlds = field(default_factory=Worlds)
    took: dict[str, list[float]] = field(default_factory=lambda: dict[str, list[float]]())

    def do(self, cell: Cell) -> None:
        """Nothing where it is done, or another process is at it."""
        number = self.total - len(self.todo) + 1
        known = self._known(cell)
        if known is None:
            folder = self.out / "work" / cell.name
            try:
                make_private(folder)
            except OSError as error:
                raise unwritable(folder, error) from error
            try:
                with run_lock(folder):
                    known = self._known(cell)  # another may have finished it by now
                    if known is None:
                        left = self._left()
                        self.observer.say(f"cell {number} of {self.total}: {cell.title}{left}")
                        known = self._run(cell, folder / "run")
            except RunLocked:
                self.observer.say(f"cell {number} of {self.total}: {cell.title} is being run")
        self.todo.pop(cell.name, None)
        if known is not None:
            self.worlds.check(self.out, cell, known)

    def _known(self, cell: Cell) -> Record | None:
        record = read_record(self.out, cell)
        again = record is not None and "failed" in record and self.retry_failed
        return None if again else record

    def _run(self, cell: Cell, run: Path) -> Record:
        base, began = self._open(cell.recipe), time.monotonic()
        try:
            with self.observer.watching(cell.title, cell.recipe.training.rounds) as watch:
                record = self._trained(cell, run, base, watch)
        except (RunError, RunLocked):
            raise  # the disk, or another process: nothing that the cell's recipe is to blame for
        except FedsdrError as error:
            record = failure(cell, error)
            self.observer.say(f"{cell.title} failed: {error}")
        else:
            self.took.setdefault(cell.label, []).append(time.monotonic() - began)
        try:
            if self.keep_runs and holds_run(run):
                kept = self.out / "runs" / cell.name
                make_private(kept.parent)
                remove(kept)
                os.replace(run, kept)
            write_record(self.out, cell, record)
            remove(run)
        except OSError as error:
            raise unwritable(run, error) from error
        return record

    def _trained(self, cell: Cell, run: Path, base: BaseModel, watch: Watch) -> Record:
        recipe = self._with_cache(cell)
        results, resumed = _train(recipe, run, watch, base)
        scorer = load_federation(recipe).scorer
        record = success(cell, results, RunDirectory.open(run), scorer, resumed)
        if cell.kind == "tune" and not record["validation"]["best"]:
            raise RecipeError("there are no validation rows to tune on; raise data.validation")
        return record

    def _open(self, recipe: Recipe) -> BaseModel:
        """Loaded once for all cells in a row that want the same."""
        if self.base is None or self.base[0] != recipe.model:
            self.base = None  # before the next is loaded: there may not be room for two
            self.base = (recipe.model, open_base(recipe))
        return self.base[1]

    def _with_cache(self, cell: Cell) -> Recipe:
        """Drafts have their content as address, so all methods of a seed may share them."""
        folder = self.out.resolve() / "rewrites" / cell.setting / str(cell.seed)
        cache = cell.recipe.rewriting.cache or str(folder)
        rewriting = cell.recipe.rewriting.model_copy(update={"cache": cache})
        return cell.recipe.model_copy(update={"rewriting": rewriting})

    def _left(self) -> str:
        """From this process's finished cells; of the same method where there are any."""
        every = [seconds for times in self.took.values() for seconds in times]
        if not every:
            return ""
        seconds = sum(fmean(self.took.get(label, every)) for label in self.todo.values())
        return f" (about {in_words(seconds)} left)"


def in_words(seconds: float) -> str:
    """5 -> "5 s"; 130 -> "2 min"; 9000 -> "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _train(recipe: Recipe, run: Path, watch: Watch, base: BaseModel) -> tuple[dict[str, Any], bool]:
    """The results, and whether a run that was stopped went on."""
    if _is_of(run, recipe):
        try:
            return resume(run, watch, base), True
        except (CorruptArtifact, RunError) as error:
            watch.note(f"{error}; the cell begins anew")
    try:
        remove(run)
    except OSError as error:
        raise unwritable(run, error) from error
    return train(recipe, run, watch, base), False


def _is_of(run: Path, recipe: Recipe) -> bool:
    try:
        return holds_run(run) and RunDirectory.open(run).recipe() == dump_recipe(recipe)
    except CorruptArtifact:
        return False
