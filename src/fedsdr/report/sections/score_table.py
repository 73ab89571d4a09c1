"""A table of scores: cells with a number to sort by and a remark below."""

from __future__ import annotations

from dataclasses import dataclass

from fedsdr.report.figures.svg import Figure
from fedsdr.report.numbers import NONE


@dataclass(frozen=True, slots=True)
class Cell:
    main: str
    sub: str = ""
    value: float | None = None  # to sort by
    best: bool = False


@dataclass(frozen=True, slots=True)
class ScoreTable:
    caption: str
    header: tuple[str, ...]
    hints: tuple[str, ...]  # under each head
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def wordy(self) -> list[bool]:
        columns = zip(*self.rows, strict=True)
        return [all(cell.value is None and cell.main != NONE for cell in of) for of in columns]


@dataclass(frozen=True, slots=True)
class Block:
    """One group of runs: its table, what its figures show, and what came out of each contrast."""

    setting: str
    table: ScoreTable
    figures: tuple[Figure, ...]
    sentences: tuple[str, ...]
    contrasts: ScoreTable | None
    notes: tuple[str, ...]
