"""The rounds of a run as a table in the terminal: one that is going on, or one looked at later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedsdr.cli.printing import figure, plain
from fedsdr.report.glance import main_measure
from fedsdr.report.losses import loss_names, losses_of
from fedsdr.report.numbers import size

DIAGNOSTICS = "diagnostics.jsonl"
NAME_WIDTH = 14  # of a client's name


def rounds_table(
    rows: Sequence[Mapping[str, Any]], rounds: int, title: str, drift: Mapping[int, float]
) -> Table:
    """Validation stands in the rounds that were validated; drift where the run measured it. Where
    more than one thing was trained, each loss bears its name, and the caption says on what."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    made.title = plain(title) if title else None
    mixes = dict.fromkeys(
        mix for row in rows for mix, figures in row.get("validation", {}).items() if figures
    )
    measure = main_measure(
        m for row in rows for figures in row.get("validation", {}).values() for m in figures
    )
    drifts = any(row["round"] in drift for row in rows)
    scores = [f"{measure} {mix}" for mix in mixes]
    losses = loss_names(rows)
    main, *others = losses or [""]
    heads = [f"loss {word}" for word in _short(losses)] if others else ["loss"]
    if others:
        captions = (f"{head}: {name}" for head, name in zip(heads, losses, strict=True) if name)
        made.caption, made.caption_justify = plain("; ".join(captions)), "left"
    header = ("round", "clients", heads[0], "highest", "of client", *heads[1:], *scores)
    for name in (*header, *(["drift"] if drifts else []), "up", "down"):
        justify = "left" if name == "of client" else "right"
        made.add_column(plain(name), justify=justify, overflow="ellipsis", no_wrap=True)
    for row in rows:
        worst = max(row.get("losses", {}).items(), key=lambda of: of[1], default=None)
        made.add_row(
            f"{row['round']}/{rounds}" if rounds else str(row["round"]),
            _clients(row),
            _mean(row, main) if others else figure(row["loss"]),
            figure(worst[1]) if worst else "",
            plain(shortened(worst[0])) if worst else "",
            *(_mean(row, name) for name in others),
            *(_score(row, m, measure) for m in mixes),
            *([figure(drift[row["round"]]) if row["round"] in drift else ""] if drifts else []),
            size(row["bytes_up"]),
            size(row["bytes_down"]),
        )
    return made


def shortened(name: str, width: int = NAME_WIDTH) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


@dataclass(slots=True)
class DriftFile:
    """The clients' drift by round, from a file that grows: what was read is not read again."""

    directory: Path | None
    at: int = 0
    drifts: dict[int, float] = field(default_factory=lambda: dict[int, float]())

    def by_round(self) -> Mapping[int, float]:
        if self.directory is None:
            return self.drifts
        try:
            with (self.directory / DIAGNOSTICS).open("rb") as file:
                file.seek(self.at)
                fresh = file.read()
        except OSError:  # not every run writes one
            return self.drifts
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return self.drifts

    def _take(self, line: bytes) -> None:
        try:
            row: Any = json.loads(line)
            drift = row["branches"]["R"]["drift"]
        except (ValueError, KeyError, TypeError):
            return  # a damaged row is the report's to tell, not a reason to stop a run
        if isinstance(drift, int | float):
            self.drifts[cast("int", row["round"])] = float(drift)


def _clients(row: Mapping[str, Any]) -> str:
    lost = len(row["refused"])
    return f"{row.get('clients', '')}" + (f" ({lost} lost)" if lost else "")


def _short(names: Sequence[str]) -> list[str]:
    """What was trained, where that tells them apart: "R" of "R on raw"."""
    short = [name.partition(" on ")[0] for name in names]
    return short if len(set(short)) == len(short) else list(names)


def _mean(row: Mapping[str, Any], name: str) -> str:
    loss = losses_of(row).get(name)
    return "" if loss is None or loss.mean is None else figure(loss.mean)


def _score(row: Mapping[str, Any], mix: str, measure: str) -> str:
    value = row["validation"].get(mix, {}).get(measure)
    return "" if value is None else figure(value)
