"""Run a sweep, cell by cell. All that counts is on the disk: stopped anywhere, the same call goes
on, and several processes may work on one folder at once.

    cells/<setting>/<method>/<seed>.json     results      tune/…  tuning cells     tuning.json
    rewrites/<setting>/<seed>/               drafts, shared by all methods (private)
    work/…                                   cells under way, with a lock each     runs/…  if kept
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

from fedsdr.errors import RecipeError, nearest
from fedsdr.jobs.sweep.cells import Cell, Changes, Sweep, main_cell, tuning_cells
from fedsdr.jobs.sweep.records import (
    Record,
    Tuned,
    read_record,
    record_path,
    tune_all,
    write_tuning,
)
from fedsdr.jobs.sweep.work import Observer, Worker, Worlds
from fedsdr.runs.identity import holds_run
from fedsdr.runs.places import sweep_folder

T = TypeVar("T")
Place = tuple[str, str, int]  # setting, method, seed


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What is there now, from this process and any other."""

    records: tuple[tuple[Cell, Record], ...]  # finished main cells, in the order of the file
    tuned: tuple[Tuned, ...]
    failed: tuple[str, ...]
    waiting: tuple[str, ...]  # tuning cells that main cells wait for
    open: tuple[str, ...]  # main cells that were not this process's to run, or are being run


def run_sweep(
    sweep: Sweep,
    out: Path,
    observer: Observer | None = None,
    only: Sequence[str] = (),
    shard: tuple[int, int] = (0, 1),
    tune_only: bool = False,
    retry_failed: bool = False,
) -> SweepResult:
    """Run what is open: the tuning cells, then at the picked points the main ones. A cell that
    fails is recorded and does not stop the others."""
    labels, out = _chosen(sweep, only), sweep_folder(out)
    if tune_only and sweep.tune is None:
        raise RecipeError(f"{sweep.name}: there is no sweep.tune, so there is nothing to tune")
    tuning = _mine(_tuning(sweep, labels), shard, 1)
    places = [] if tune_only else _mine(_places(sweep, labels), shard, len(labels))
    todo = {cell.name: cell.label for cell in tuning}
    todo |= {main_cell(sweep, *place, {}).name: place[1] for place in places}
    worker = Worker(
        out=out,
        observer=observer or Observer(),
        todo=todo,
        keep_runs=sweep.keep_runs,
        retry_failed=retry_failed,
        total=len(todo),
    )
    for cell in tuning:
        worker.do(cell)
    if sweep.tune is not None:
        write_tuning(sweep, out, tune_all(sweep, out))
    while ready := _ready(sweep, out, places):  # other processes may finish tuning meanwhile
        for cell in ready:
            worker.do(cell)
        begun = {(cell.setting, cell.label, cell.seed) for cell in ready}
        places = [place for place in places if place not in begun]
    result = gather(sweep, out, labels)
    finished = not (result.open or result.waiting or result.failed)  # what failed may be retried
    if finished and not tune_only and not only:
        _tidy(out, [cell.name for cell in _tuning(sweep, labels)])
        _tidy(out, [cell.name for cell, _ in result.records])
    return result


def _tidy(out: Path, done: Iterable[str]) -> None:
    """What finished cells left in `work`, where nobody looks for their locks any more. The rest may
    be another sweep's, which shares this folder and has more seeds, say."""
    work = out / "work"
    for name in done:
        shutil.rmtree(work / name, ignore_errors=True)
    folders = sorted((p for p in work.rglob("*") if p.is_dir()), reverse=True)
    for folder in [*folders, work]:  # the deepest first; one that holds something stays
        with suppress(OSError):
            folder.rmdir()


def survey(sweep: Sweep, out: Path, only: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Every cell's name and how it stands: done, failed, interrupted, open, or waiting for
    tuning."""
    labels = _chosen(sweep, only)
    rows = [(cell.name, _state(out, cell)) for cell in _tuning(sweep, labels)]
    picks = _picks(sweep, tune_all(sweep, out, labels), labels)
    for setting, label, seed in _places(sweep, labels):
        pick = picks[setting, label]
        cell = main_cell(sweep, setting, label, seed, pick or {})
        rows.append((cell.name, "waiting for tuning" if pick is None else _state(out, cell)))
    return rows


def gather(sweep: Sweep, out: Path, labels: Sequence[str]) -> SweepResult:
    records, failed = list[tuple[Cell, Record]](), list[str]()
    still, worlds = list[str](), Worlds()
    tuned = tune_all(sweep, out, labels)
    for t in tuned:
        if t.pick is None and not t.missing:
            failed.append(f"{t.name}: no point of the tuning grid finished")
    picks = _picks(sweep, tuned, labels)
    for setting, label, seed in _places(sweep, labels):
        if (pick := picks[setting, label]) is None:
            continue
        cell = main_cell(sweep, setting, label, seed, pick)
        record = read_record(out, cell)
        if record is None:
            still.append(cell.name)
        elif "failed" in record:
            failed.append(f"{record_path(out, cell)}: {record['failed']}")
        else:
            worlds.check(out, cell, record)
            records.append((cell, record))
    missing = tuple(name for t in tuned for name in t.missing)
    return SweepResult(tuple(records), tuple(tuned), tuple(failed), missing, tuple(still))


def _ready(sweep: Sweep, out: Path, places: Sequence[Place]) -> list[Cell]:
    labels = list(dict.fromkeys(label for _, label, _ in places))
    picks = _picks(sweep, tune_all(sweep, out, labels), labels)
    return [
        main_cell(sweep, setting, label, seed, pick)
        for setting, label, seed in places
        if (pick := picks[setting, label]) is not None
    ]


def _picks(
    sweep: Sweep, tuned: Iterable[Tuned], labels: Iterable[str]
) -> dict[tuple[str, str], Changes | None]:
    """None where tuning is not finished, or found nothing."""
    if sweep.tune is not None:
        return {(t.setting, t.label): t.pick for t in tuned}
    return {which: {} for which in product(sweep.settings, labels)}


def _tuning(sweep: Sweep, labels: Iterable[str]) -> list[Cell]:
    return [
        c for s, label in product(sweep.settings, labels) for c in tuning_cells(sweep, s, label)
    ]


def _places(sweep: Sweep, labels: Iterable[str]) -> list[Place]:
    """Seed by seed, so that the first pairs are there early."""
    combinations = product(sweep.settings, sweep.seeds, labels)
    return [(setting, label, seed) for setting, seed, label in combinations]


def _mine(every: Sequence[T], shard: tuple[int, int], row: int) -> list[T]:
    """Dealt out in turn. Where rows would all begin with the same shard, each begins with the next,
    or one shard would get every cell of a slow method."""
    mine, of = shard
    shift = 1 if row % of == 0 else 0
    return [item for i, item in enumerate(every) if (i + shift * (i // row)) % of == mine]


def _chosen(sweep: Sweep, only: Sequence[str]) -> list[str]:
    for label in only:
        if label not in sweep.methods:
            known = list(sweep.methods)
            raise RecipeError(
                f"{sweep.name} has no method {label!r}; it has {', '.join(known)}."
                f"{nearest(label, known)}"
            )
    return [label for label in sweep.methods if not only or label in only]


def _state(out: Path, cell: Cell) -> str:
    record = read_record(out, cell)
    if record is None:
        return "interrupted" if holds_run(out / "work" / cell.name / "run") else "open"
    return "failed" if "failed" in record else "done"
