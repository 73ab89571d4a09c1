"""Gathering a round: ask the clients, let through what may count, keep it on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from fedsdr.coordinator.admit import Expected, admit
from fedsdr.errors import CorruptArtifact, OutOfMemory, UpdateRefused, shown
from fedsdr.runs.digests import read_spooled, spool
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import Lost, Note, Order, Report, Update

T = TypeVar("T")
LONGEST_REASON = 300


class Cohort(Protocol):
    """Whoever holds the clients: this process, or a network."""

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterable[Update | Report | Lost]:
        """Every client's answer to its order, in any order; all orders are of one task. Who has
        `answered` before need not be asked again."""
        ...


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
            seen = _spooled(expected, run, note)
            return _admitted(cohort, orders, expected, run, seen)
        except OutOfMemory as error:
            note(f"round {expected.round}: {error}")
            run.drop_spool(expected.round)


def _admitted(
    cohort: Cohort, orders: Sequence[Order], expected: Expected, run: RunDirectory, seen: set[str]
) -> list[str]:
    refused, fresh = list[str](), set[str]()
    answers = cohort.ask(orders, seen)
    for update in passed(answers, lambda answer: admit(answer, expected, fresh), refused.append):
        fresh.add(update.client_id)
        spool(run, update)
    return refused


def passed(answers: Iterable[object], gate: Callable[[object], T], refuse: Note) -> Iterator[T]:
    """What a gate lets through; of whom it does not, and who is lost, `refuse` is told why."""
    for answer in answers:
        if isinstance(answer, Lost):
            # A stranger's words, on a terminal: cut, and without what would steer it.
            why = shown(str(answer.reason), LONGEST_REASON)[1:-1]
            refuse(f"client {shown(answer.client_id)} lost: {why}")
            continue
        try:
            admitted = gate(answer)
        except UpdateRefused as error:
            refuse(str(error))
        else:
            yield admitted


def _spooled(expected: Expected, run: RunDirectory, note: Callable[[str], None]) -> set[str]:
    """Who has answered before this process began. What lies on disk passes the gate again: it may
    have been admitted by another version, or altered since; if so, its client is asked again."""
    kept = set[str]()
    for client_id in sorted(run.spooled(expected.round)):
        try:
            admit(read_spooled(run, expected.round, client_id), expected)
        except (UpdateRefused, CorruptArtifact) as error:
            note(f"round {expected.round}: {error}; it was spooled, is dropped and asked for again")
            run.drop_update(client_id, expected.round)
        else:
            kept.add(client_id)
    return kept
