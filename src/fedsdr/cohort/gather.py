"""Gathering a round: ask the clients, let through what may count, keep it on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from fedsdr.cohort.admit import Expected, admit
from fedsdr.errors import OutOfMemory, UpdateRefused
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.spool import spool
from fedsdr.types import Lost, Order, Update


class Cohort(Protocol):
    """Whoever holds the clients: this process, or a network."""

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterable[Update | Lost]: ...


def gather(
    cohort: Cohort,
    orders: Sequence[Order],
    expected: Expected,
    run: RunDirectory,
    note: Callable[[str], None],
) -> list[str]:
    """Ask, admit, spool; returns why clients were refused or lost. Where memory ran out, the round
    begins again: its clients stand in other groups now."""
    while True:
        try:
            return _admitted(cohort, orders, expected, run)
        except OutOfMemory as told:
            note(f"round {expected.round}: {told}")
            run.drop_spool(expected.round)


def _admitted(
    cohort: Cohort, orders: Sequence[Order], expected: Expected, run: RunDirectory
) -> list[str]:
    seen, refused = run.spooled(expected.round), list[str]()
    fresh = set[str]()
    for answer in cohort.ask(orders, seen):
        if isinstance(answer, Lost):
            refused.append(f"client {answer.client_id!r} lost: {answer.reason}")
            continue
        try:
            admit(answer, expected, fresh)
        except UpdateRefused as error:
            refused.append(str(error))
            continue
        fresh.add(answer.client_id)
        spool(run, answer)
    return refused
