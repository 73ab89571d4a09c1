"""Views: which examples a term trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsdr.errors import RecipeError
from fedsdr.parts.selection import parse_selection

Teacher = Literal["base", "global"]


@dataclass(frozen=True, slots=True)
class Raw:
    """The client's own answers."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The answers as the teacher rewrote them (FedSD), by the selection rule of `selection`.

    The teacher is the base, once; or the global model of the round, again every `redistill_every`
    rounds.
    """

    selection: str = "none"
    teacher: Teacher = "base"
    redistill_every: int = 0

    def __post_init__(self) -> None:
        parse_selection(self.selection)  # a typing error shows here, not after hours of training


@dataclass(frozen=True, slots=True)
class Mixed:
    """Each example rewritten with probability `share`, else raw; the draw is fixed per example, by
    the run's seed."""

    share: float
    rewritten: Rewritten = Rewritten()

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise RecipeError(f"Mixed: share must lie between 0 and 1, it is {self.share}")


View = Raw | Rewritten | Mixed
