"""The training losses of a round, by what was trained on what: FedSDR's of S and of R, say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from fedsdr.report.record import number


@dataclass(frozen=True, slots=True)
class Loss:
    mean: float | None
    clients: Mapping[str, float]


def losses_of(row: Mapping[str, Any]) -> dict[str, Loss]:
    """The round's main loss first. Runs of older versions name none: theirs is ""."""
    losses = {str(row.get("loss_of") or ""): _loss(row.get("loss"), row.get("losses"))}
    for name, other in _mapping(row.get("other_losses")).items():
        losses[str(name)] = _loss(_mapping(other).get("mean"), _mapping(other).get("clients"))
    return losses


def loss_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All there are, the main one of the last round first."""
    every = list(rows)
    last = list(losses_of(every[-1])) if every else []
    return list(dict.fromkeys([*last, *(name for row in every for name in losses_of(row))]))


def _loss(mean: object, clients: object) -> Loss:
    values = {str(c): v for c, x in _mapping(clients).items() if (v := number(x)) is not None}
    return Loss(number(mean), values)


def _mapping(value: object) -> Mapping[Any, Any]:
    return cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else {}
