"""When: the rounds in which something happens."""

from __future__ import annotations

from dataclasses import dataclass

from fedsdr.errors import RecipeError


@dataclass(frozen=True, slots=True)
class When:
    """The rounds (from 1) from `first` to `last`, every `every`-th of these."""

    first: int = 1
    last: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.first < 1 or self.every < 1:
            raise RecipeError(
                f"rounds from {self.first} on, every {self.every}: both must be at least 1"
            )

    def __call__(self, round: int) -> bool:
        past = self.last is not None and round > self.last
        return round >= self.first and not past and (round - self.first) % self.every == 0


EVERY_ROUND = When()
