"""What a run shows to whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedsdr.types import Advance, Note, note_nothing, silent


def _unseen(row: Mapping[str, Any]) -> None:
    """Nobody looks."""


@dataclass(slots=True)
class Watch:
    """How far it is, every round's row, and what is worth a line; nothing by default."""

    advance: Advance = silent
    told: Callable[[Mapping[str, Any]], None] = _unseen
    note: Note = note_nothing
