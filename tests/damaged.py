"""Runs to be damaged: one that nobody disturbed, one that was stopped half-way, and what has to be
equal in the end."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.coordinator.job import Watch
from fedsdr.jobs import train as experiment
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Recipe
from fedsdr.runs.directory import RunDirectory
from toy import clients, recipe

CLIENTS = tuple(clients((2, 5, 3, 1)).values())
# Wall time, the process, and drafts, which stand in the order they were drawn in.
APART = {"timings.jsonl", "run.json", "lock", "rewrites"}


class Stopped(BaseException):
    """Where a kill would come; no handler of errors may catch it."""


@dataclass(frozen=True, slots=True)
class Runs:
    """`whole`, to its end; `stopped`, after so many updates had arrived in a round."""

    recipe: Recipe
    base: BaseModel
    whole: Path
    stopped: Path

    def resume(self, root: Path, **given: Any) -> list[str]:
        """What was noted on the way."""
        notes: list[str] = []
        given = {"base": self.base, "clients": CLIENTS} | given
        experiment.resume(root, Watch(note=notes.append), **given)
        return notes


def begin(folder: Path, base: BaseModel, **sections: Mapping[str, Any]) -> Runs:
    """FedSDR with all that has state; stopped in round 3 of 4, when one group had answered."""
    options = {"selection": "resample(2)", "s_dropout": 0.3}
    tree: dict[str, Any] = {
        "algorithm": {"name": "fedsdr", "options": options},
        "training": {"rounds": 4, "participation": 0.75, "local_epochs": 1.0, "batch": 3,
                     "lr": 0.01},
        "evaluation": {"answers": 1},
        **sections,
    }  # fmt: skip
    chosen = recipe(base.path, **tree)
    experiment.train(chosen, folder / "whole", base=base, clients=CLIENTS)
    stop = _stopping(at_round=3, updates=2)
    with stop, contextlib.suppress(Stopped):
        experiment.train(chosen, folder / "stopped", base=base, clients=CLIENTS)
    return Runs(chosen, base, folder / "whole", folder / "stopped")


def remains(root: Path) -> dict[str, str]:
    """sha256 of every file that has to be the same after any resume."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in APART
    }


@contextlib.contextmanager
def _stopping(at_round: int, updates: int) -> Any:
    plain, seen = RunDirectory.save_update, 0

    def save(self: RunDirectory, client_id: str, round: int, *args: Any) -> str:
        nonlocal seen
        found = plain(self, client_id, round, *args)
        seen += round == at_round
        if seen == updates:
            raise Stopped
        return found

    RunDirectory.save_update = save
    try:
        yield
    finally:
        RunDirectory.save_update = plain
