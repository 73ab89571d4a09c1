"""What the coordinator knows of a run: names, numbers and the algorithm, no record; and what it
shows of it to whoever watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedsdr.coordinator.loop import LoopSettings, Observe
from fedsdr.parts.algorithm import Algorithm
from fedsdr.types import Advance, Note, Tensors, note_nothing, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`trained`: who is asked to train. `scored`: whose held-out rows count, and `unseen`, of those
    that never train. `save` writes a mix of which there is one for all; `observe`, what a
    simulation sees of a round and a server cannot."""

    algorithm: Algorithm
    loop: LoopSettings
    base_digest: str
    first: Tensors
    trained: Sequence[str]
    scored: Sequence[str]
    unseen: Sequence[str]
    validated: bool  # whether anybody has validation rows
    best_on: str
    higher_is_better: bool
    select: Literal["best", "last"]
    answers: int  # of each client that is asked
    world: str
    save: Callable[[str, Tensors], None]
    observe: Observe | None = None


def _unseen(row: Mapping[str, Any]) -> None:
    """Nobody looks."""


@dataclass(slots=True)
class Watch:
    """How far it is, every round's row, and what is worth a line; nothing by default."""

    advance: Advance = silent
    told: Callable[[Mapping[str, Any]], None] = _unseen
    note: Note = note_nothing
