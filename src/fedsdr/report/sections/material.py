"""What the sections draw on: all runs, the groups they form, and the few shown one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedsdr.evaluate.verdicts import Contrast
from fedsdr.report.compared import Group, grouped
from fedsdr.report.record import RunRecord
from fedsdr.report.section import Panel
from fedsdr.report.texts import IncludeTexts

DETAILED = 6  # runs that are shown one by one


@dataclass(frozen=True)
class Material:
    records: Sequence[RunRecord]
    include_texts: IncludeTexts = False
    contrasts: Sequence[Contrast] | None = None  # what to test; every method against FedAvg

    @cached_property
    def groups(self) -> list[Group]:
        return grouped(self.records, self.contrasts)

    @property
    def single(self) -> RunRecord | None:
        return self.records[0] if len(self.records) == 1 else None

    @cached_property
    def detailed(self) -> list[tuple[str, RunRecord]]:
        """All of a few runs; of many, the first run of each of the first methods."""
        labelled = [
            (label, record)
            for group in self.groups
            for label, of in group.runs.items()
            for record in of
        ]
        if len(labelled) > DETAILED:
            firsts = dict[str, tuple[str, RunRecord]]()
            for label, record in labelled:
                if record.rounds:
                    firsts.setdefault(label, (label, record))
            labelled = list(firsts.values())[:DETAILED]
        names = [label for label, _ in labelled]
        return [
            (label if names.count(label) == 1 else f"{label}, seed {record.seed}", record)
            for label, record in labelled
        ]

    @property
    def summarised(self) -> str:
        """Said wherever not every run is shown."""
        left = len(self.records) - len(self.detailed)
        if left <= 0:
            return ""
        if not self.detailed:
            return "A sweep keeps each cell's results only, so there is nothing by round or client."
        return (
            f"Of {len(self.records)} runs, {len(self.detailed)} are shown one by one: the first "
            "of each method. For another, `fedsdr report` that run."
        )

    def panels(self, make: Callable[[str, RunRecord], Panel | None]) -> tuple[Panel, ...]:
        """One panel for each run that has something to show."""
        return tuple(p for label, record in self.detailed if (p := make(label, record)) is not None)


def missing_file(material: Material, file: str, otherwise: str) -> str:
    """Why a section that needs this file is not there."""
    states = {record.state for record in material.records}
    if not material.detailed:
        return material.summarised
    if "running" in states:
        return f"The run has not written {file} yet."
    return otherwise
