"""The spool: a round's admitted updates, on disk until the round is committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedsdr.errors import CorruptArtifact
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import Update

FACTS = ("run", "round", "base", "weight", "metrics")


def spool(run: RunDirectory, update: Update) -> None:
    meta = {
        "run": update.run,
        "round": update.round,
        "base": update.base_digest,
        "weight": update.weight,
        "metrics": dict(update.metrics),
    }
    run.save_update(update.client_id, update.round, {"shared": update.shared}, meta)


@dataclass(frozen=True, slots=True)
class SpooledUpdates:
    """In client-id order, read one at a time, as often as a rule likes."""

    run: RunDirectory
    round: int
    clients: Sequence[str]

    def __iter__(self) -> Iterator[Update]:
        for client_id in self.clients:
            yield read_spooled(self.run, self.round, client_id)


def read_spooled(run: RunDirectory, round: int, client_id: str) -> Update:
    stored = run.load_update(client_id, round)
    try:
        run_id, number, base, weight, metrics = (stored.meta[name] for name in FACTS)
    except (KeyError, TypeError) as error:
        raise CorruptArtifact(f"the update of client {client_id!r} lacks {error}") from error
    shared = stored.tensors.get("shared", {})
    return Update(
        run=run_id,
        round=number,
        client_id=client_id,
        base_digest=base,
        weight=weight,
        shared=shared,
        metrics=metrics,
    )
