"""A run directory, read for the report: whatever is there, and notes on what is damaged.

Nothing here writes or locks, so a run that is under way is not disturbed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from fedsdr.errors import CorruptArtifact, FedsdrError, RecipeError, RunError
from fedsdr.evaluate.finished import RESULTS, SEAL, sealed
from fedsdr.recipe.yaml import load_yaml
from fedsdr.report.record import Row, RunRecord, State, natural
from fedsdr.report.safe_text import LONGEST_SENTENCE, short
from fedsdr.report.shapes import RESULTS as SCORED
from fedsdr.report.shapes import amount, each, fields
from fedsdr.report.stored import json_object, shaped, shaped_object, shaped_rows
from fedsdr.runs import identity
from fedsdr.runs.lock import LOCK, signed_by

__all__ = ["RunRecord", "read_record", "read_records"]

DETAILED = 12  # of so many runs everything is read; of more, what a comparison shows
SECONDS = fields({"seconds": each(amount)})


def read_records(paths: Sequence[Path]) -> list[RunRecord]:
    """Runs, folders of runs (a demo's) and folders of sweeps, as records in the order given."""
    # A page that stands among the runs is named too by `runs/*`.
    places = [path for path in paths if path.suffix != ".html" or path.is_dir()] or paths
    runs = [(run, path) for path in places for run in _runs_at(path)]
    many, seen, read = len(runs) > DETAILED, set[str](), list[RunRecord]()
    for run, path in runs:
        record = read_cell(run, path) if run.is_file() else read_record(run, brief=many)
        # Of each method one run is shown in full.
        if many and run.is_dir() and record.method not in seen and len(seen) < DETAILED:
            seen.add(record.method)
            record = read_record(run)
        read.append(record)
    return _named(read)


def read_record(path: Path, brief: bool = False) -> RunRecord:
    """A run directory; `brief` leaves out what only a page about few runs shows."""
    identity.find(path, deep=not brief)
    notes = list[str]()
    facts = _facts(path, notes)
    recipe_text, recipe = _recipe(path, notes)
    changed = bool(notes)
    results = _results(path / RESULTS, facts, notes)
    record = RunRecord(
        path=path,
        name=path.name or str(path),
        state=_state(path, facts, results),
        facts=facts,
        recipe_text=recipe_text,
        recipe=recipe,
        rounds=shaped_rows(path / "rounds.jsonl", notes),
        timings=shaped_rows(path / "timings.jsonl", notes),
        rewriting=shaped_object(path / "rewriting.json", notes),
        results=results,
        changed=changed,
    )
    if not brief:
        record = replace(
            record,
            validation=shaped_rows(path / "validation.jsonl", notes),
            diagnostics=shaped_rows(path / "diagnostics.jsonl", notes),
            audit=shaped_rows(path / "rewriting_audit.jsonl", notes),
            profile=shaped_object(path / "profile.json", notes),
            diagnosis=shaped_object(path / "diagnosis.json", notes),
        )
    return replace(record, notes=tuple(dict.fromkeys(notes)))


def _runs_at(path: Path) -> list[Path]:
    """The run itself, the runs in a folder, or the files of a sweep's cells."""
    if identity.holds_run(path):
        return [path]
    inside = sorted(path.iterdir(), key=lambda p: natural(p.name)) if path.is_dir() else []
    if runs := [folder for folder in inside if identity.holds_run(folder)]:
        return runs
    if cells := sorted(path.glob("cells/*/*/*.json"), key=lambda p: natural(str(p))):
        return cells
    nested = [run for folder in inside if folder.is_dir() for run in sorted(folder.iterdir())]
    if runs := [run for run in nested if identity.holds_run(run)]:
        return runs
    identity.find(path)  # says what is wrong, and where a run is
    raise RunError(f"{path} holds no run")


def read_cell(file: Path, sweep: Path) -> RunRecord:
    """One cell of a sweep: results without rounds, since a sweep keeps only these."""
    notes = list[str]()
    cell = json_object(file, notes) or {}
    changes = cell.get("changes")
    tree: dict[str, Any] = {}
    for key, value in (cast(Row, changes) if isinstance(changes, dict) else {}).items():
        branch, (*parents, leaf) = tree, key.split(".")
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    failed = cell.get("failed")
    if failed:
        notes.append(f"The cell failed: {short(failed, LONGEST_SENTENCE)}")
    scored = {**cell, "method": cell.get("label")}
    results = None if failed else shaped(file, scored, SCORED, notes)
    seconds = shaped(file, {"seconds": cell.get("seconds")}, SECONDS, notes) or {}
    return RunRecord(
        path=file,
        name="/".join(file.relative_to(sweep / "cells").with_suffix("").parts),
        state="finished" if results else "failed",
        facts={
            "algorithm": cell.get("label"),
            "seed": cell.get("seed"),
            "fedsdr": cell.get("fedsdr"),
            "torch": cell.get("torch"),
            "recipe_sha256": cell.get("recipe_sha256"),
        },
        recipe_text="",
        recipe=tree,
        timings=[
            {"round": 0, "phase": phase, "seconds": value}
            for phase, value in seconds.get("seconds", {}).items()
        ],
        results=results,
        setting=short(cell.get("setting") or ""),
        notes=tuple(notes),
    )


def _named(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Folders of the same name are told apart by those above them."""
    names = [record.name for record in records]
    return [
        record
        if names.count(record.name) == 1
        else replace(record, name="/".join(record.path.parts[-2:]))
        for record in records
    ]


def _facts(path: Path, notes: list[str]) -> Row:
    try:
        return identity.read_facts(path)
    except CorruptArtifact as error:
        notes.append(_sentence(error))
        return json_object(path / identity.RUN, []) or {}


def _recipe(path: Path, notes: list[str]) -> tuple[str, Row]:
    text = ""
    try:
        text = (path / identity.RECIPE).read_text(encoding="utf-8")
        identity.read_recipe(path)
    except OSError as error:
        notes.append(f"{identity.RECIPE} cannot be read ({error.strerror}).")
    except (UnicodeDecodeError, KeyError):
        notes.append(f"{identity.RECIPE} is damaged.")
    except FedsdrError as error:
        notes.append(_sentence(error))
    try:
        tree: Any = load_yaml(text, identity.RECIPE)
    except RecipeError:
        notes.append(f"{identity.RECIPE} is no YAML; it is shown as it stands.")
        tree = None
    return text, cast(Row, tree) if isinstance(tree, dict) else {}


def _results(file: Path, facts: Row, notes: list[str]) -> Row | None:
    results = shaped_object(file, notes)
    if results is not None and facts.get(SEAL) not in (None, sealed(file.read_bytes())):
        notes.append(f"{file.name} is not what this run wrote: do not rely on its scores.")
    return results


def _state(path: Path, facts: Row, results: Row | None) -> State:
    if facts.get("purged"):
        return "purged"
    if results is not None:
        return "finished"
    return "running" if alive(path / LOCK) else "stopped"


def alive(lock: Path) -> bool:
    """Whether the process that signed the lock last still lives. The lock is not tried: a `resume`
    that began at that moment would be refused."""
    if (signed := signed_by(lock)) is None or signed[1] != socket.gethostname():
        return False
    try:
        os.kill(signed[0], 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _sentence(error: FedsdrError) -> str:
    text = str(error)
    return text if text.endswith(".") else f"{text}."
