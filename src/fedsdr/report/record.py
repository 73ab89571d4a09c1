"""One run as its directory tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedsdr.report.safe_text import short

Row = Mapping[str, Any]
State = Literal["finished", "running", "stopped", "failed", "purged"]

STATES: Mapping[State, str] = {
    "finished": "finished",
    "running": "under way",
    "stopped": "stopped before its end",
    "failed": "failed",
    "purged": "purged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is missing is None, or has no rows; what is damaged is a sentence in `notes`."""

    path: Path
    name: str  # what the page calls it
    state: State
    facts: Row  # run.json
    recipe_text: str
    recipe: Row
    rounds: Sequence[Row] = ()
    validation: Sequence[Row] = ()
    diagnostics: Sequence[Row] = ()
    timings: Sequence[Row] = ()
    audit: Sequence[Row] = ()  # rewriting_audit.jsonl
    profile: Row | None = None
    rewriting: Row | None = None
    diagnosis: Row | None = None
    results: Row | None = None
    setting: str = ""  # of a sweep's cell
    notes: Sequence[str] = ()
    changed: bool = False  # run.json or the recipe is not what was written

    @property
    def method(self) -> str:
        name = (self.results or {}).get("method") or self.facts.get("algorithm")
        return short(name or "unknown method")

    @property
    def seed(self) -> int | None:
        seed = (self.results or {}).get("seed", self.facts.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def world(self) -> str:
        return short((self.results or {}).get("world") or self.facts.get("world") or "")

    @property
    def base(self) -> str:
        """A digest of the base model, where it is known."""
        return short(self.facts.get("base_digest") or "")

    @property
    def synthetic(self) -> bool:
        """Atlas made every text of this run: nothing in it is private. What was changed by hand is
        not believed."""
        data, from_python = self.recipe.get("data"), self.facts.get("from_python")
        if self.changed or not isinstance(data, Mapping) or not isinstance(from_python, Mapping):
            return False
        rows = any(data.get(source) for source in ("file", "files", "test_files"))
        return bool(data.get("atlas")) and not rows and from_python.get("clients") is False

    @property
    def unscored(self) -> str:
        """Why there are no final scores."""
        return {
            "finished": "There were no test rows to score on.",
            "running": "There are no final scores yet: the run is under way.",
            "stopped": f"There are no final scores yet: `fedsdr resume {self.path}` goes on.",
            "failed": "There are no scores: the run failed.",
            "purged": "There will be no final scores: the run was purged before its end.",
        }[self.state]

    @property
    def clients(self) -> list[str]:
        """Everyone who appears anywhere in the run, in order."""
        scored = [c for of in (self.results or {}).get("clients", {}).values() for c in of]
        trained = [c for row in self.rounds for c in row.get("losses", {})]
        profiled = list((self.profile or {}).get("clients", {}))
        return sorted({*scored, *trained, *profiled}, key=natural)


def natural(name: str) -> list[tuple[int, int | str]]:
    """c2 before c10."""
    parts, digits = list[tuple[int, int | str]](), ""
    for character in f"{name}\0":
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits)))
            digits = ""
        parts.append((1, character))
    return parts
