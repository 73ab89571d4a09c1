"""Removing what is private in a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsdr.errors import RunError
from fedsdr.runs import files
from fedsdr.runs.artifact import recover
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.identity import WITH_TEXTS
from fedsdr.runs.lock import run_lock

REWRITES = "rewrites.jsonl"  # a client's, beside its states


@dataclass(frozen=True, slots=True)
class Purged:
    """How much a purge removed."""

    files: int
    bytes: int


def purge(run: RunDirectory, private: bool = True, rewrites: bool = True) -> Purged:
    """Remove what is private; results stay, and a resume is refused from then on.

    Takes the run's lock itself.
    """
    written = [run.root / "rewrites", *sorted(run.root.glob(f"clients/*/{REWRITES}"))]
    pages = sorted(run.root.glob(f"{WITH_TEXTS}*.html"))
    folders = [run.root / name for name in private_folders(run)] * private + written * rewrites
    folders += pages
    chosen = ["private state"] * private + ["rewrites"] * rewrites
    with run_lock(run.root):
        # Marked first: a purge that is killed half-way must not be resumed from either.
        run.amend({"purged": sorted({*run.facts().get("purged", []), *chosen})})
        recover(run.root)
        removed = [_remove(folder) for folder in folders]
    return Purged(sum(count for count, _ in removed), sum(size for _, size in removed))


def private_folders(run: RunDirectory) -> list[str]:
    """The clients' own: states and texts, waiting updates, and the adapters of every mix of which
    each client has one (a folder of folders)."""
    mixes = [mix for mix in sorted(run.root.glob("adapters/*")) if mix.is_dir()]
    personal = [mix.name for mix in mixes if any(part.is_dir() for part in mix.iterdir())]
    theirs = [f"{room}/{name}" for room in ("adapters", "evaluation") for name in personal]
    return ["clients", "updates", *theirs]


def _remove(path: Path) -> tuple[int, int]:
    try:
        removed = files.measure(path)
        files.remove(path)
    except OSError as error:
        raise RunError(f"{path} cannot be removed: {error.strerror}; purge again") from error
    return removed
