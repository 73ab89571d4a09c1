"""The head of a page, and how methods and states are spelt in it."""

from __future__ import annotations

from dataclasses import dataclass

from fedsdr.evaluate.verdicts import SPELT
from fedsdr.report.record import State


@dataclass(frozen=True, slots=True)
class Verdict:
    title: str
    state: State
    tags: tuple[str, ...]
    sentences: tuple[str, ...]
    facts: tuple[tuple[str, str, str], ...]  # (name, value, hint)


def spelt(method: str) -> str:
    """`fedsd+fedavg` -> `FedSD+FedAvg`."""
    return "+".join(SPELT.get(part, part) for part in method.split("+"))
