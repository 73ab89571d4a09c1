"""Cohorts for tests: one whose answers are written down, and one that dies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fedsdr.coordinator.loop import Cohort
from fedsdr.types import Lost, Order, Update


@dataclass(frozen=True, slots=True)
class Overheard:
    cohort: Cohort
    updates: list[Update] = field(default_factory=lambda: list[Update]())

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterator[Update | Lost]:
        for answer in self.cohort.ask(orders, answered):
            if isinstance(answer, Update):
                self.updates.append(answer)
            yield answer

    def of_round(self, number: int) -> dict[str, Update]:
        return {u.client_id: u for u in self.updates if u.round == number}


class Died(BaseException):
    """What no handler of errors may catch."""


@dataclass(frozen=True, slots=True)
class Mortal:
    """Dies in one round after so many answers, of which the last is lost."""

    cohort: Cohort
    round: int
    answers: int

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterable[Update | Lost]:
        for number, answer in enumerate(self.cohort.ask(orders, answered), 1):
            if orders[0].round == self.round and number == self.answers:
                raise Died
            yield answer
