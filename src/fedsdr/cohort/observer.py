"""What a simulation sees of a round, and nobody else could: a row of `diagnostics.jsonl`.

A server knows what was sent. What a client keeps (S) never leaves it; only because all clients of
this cohort live on one machine can their own branches be compared with each other, by reading their
private states in the run directory. Nothing but figures leaves this file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedsdr.evaluate.diagnostics.rounds import (
    Beside,
    ClientRound,
    Layers,
    Place,
    Term,
    aggregation_error,
    compare,
)
from fedsdr.model.lora import Layout
from fedsdr.parts.algorithm import split_mix
from fedsdr.parts.lora_rules import pairs
from fedsdr.parts.lowrank import Pair
from fedsdr.runs.digests import SpooledUpdates
from fedsdr.runs.directory import RunDirectory
from fedsdr.site.branches import Branches, filled
from fedsdr.tensors import rng_sample
from fedsdr.types import FOLD, ServerState, Tensors, Update

FEWEST, MOST = 8, 64  # clients compared with each other …
WORK = 10**12  # … as many as so many operations a round allow


@dataclass(frozen=True, slots=True)
class RoundObserver:
    branches: Branches
    run: RunDirectory
    seed: int

    def __call__(
        self,
        before: ServerState,
        admitted: SpooledUpdates,
        counted: Iterable[Update],
        after: ServerState,
    ) -> Mapping[str, Any]:
        """`counted` is what filters left of what was admitted: what the server's rule saw."""
        branches, start, everybody = self.branches, _start(self.branches), list(admitted.clients)
        compared, known = _layers(branches)
        many = most_compared(branches.lora.layouts[branch] for branch in compared)
        chosen = sorted(rng_sample(everybody, many, self.seed, admitted.round, "diagnostics"))
        server = _Server(branches, before.shared, {**start, **after.shared})
        sent = _sent(branches, start, before, everybody)
        clients = _Clients(branches, start, sent, replace(admitted, clients=chosen), self.run)
        row = compare(clients, len(chosen), compared, _beside(compared, known, server))
        by_branch = row["branches"]
        if len(set(branches.ranks.values())) > 1:  # such clients' numbers have no common mean
            for figures in by_branch.values():
                figures.pop("drift", None)
        if len(chosen) < len(everybody):  # the mean product is everybody's, too many to hold
            return {**row, "sampled_of": len(everybody)}
        clients = _Clients(branches, start, sent, counted)
        for branch in (b for b in known if b in by_branch):
            error = aggregation_error(clients, len(chosen), branch, known[branch], server.terms)
            by_branch[branch]["aggregation_error"] = error
        return row


def most_compared(layouts: Iterable[Layout]) -> int:
    """All inner products of K clients' changes, which have twice a branch's rank r, are about
    8 K² Σ r (in + out) operations."""
    each = 8 * sum(layout.spec.rank * layout.size for layout in layouts)
    return min(MOST, max(FEWEST, math.isqrt(WORK // max(1, each))))


@dataclass(frozen=True, slots=True)
class _Clients:
    """The clients of these updates, read one at a time and as often as it takes; with their private
    states where a run directory is given."""

    branches: Branches
    start: Tensors
    sent: Mapping[int | None, Tensors]  # by rank
    updates: Iterable[Update]
    run: RunDirectory | None = None

    def __iter__(self) -> Iterator[ClientRound]:
        for update in self.updates:
            client = update.client_id
            relative = self.branches.scales(client)
            yield ClientRound(
                client,
                update.weight,
                self._begun(client, update.round),
                _at_full_rank(update.shared, self.start),
                self._private(client, update.round),
                {b: _scale(self.branches, b) * relative.get(b, 1.0) for b in self.branches.start},
            )

    def _begun(self, client: str, round: int) -> Tensors:
        """As `Branches.begin` has it, on the CPU."""
        algorithm, sent = self.branches.algorithm, self.sent[self.branches.rank(client)]
        private = self._private(client, round - 1) if algorithm.keep == "persist" else {}
        begun = {**self.start, **private, **sent}
        if algorithm.keep == "from_R":
            of_r = [(n.partition("/")[2], t) for n, t in begun.items() if n.startswith("R/")]
            begun |= {f"{branch}/{n}": t for branch in algorithm.personal() for n, t in of_r}
        return begun

    def _private(self, client: str, after: int) -> Tensors:
        return self.run.own_tensors(client, after) if self.run is not None else {}


@dataclass(frozen=True, slots=True)
class _Server:
    """What the server had before a round, and all that is known after it."""

    branches: Branches
    before: Tensors
    after: Tensors

    def pair(self, place: Place) -> Pair:
        """(α/r) B A after the round."""
        branch, layer = place
        pair = Pair(self.after[f"{branch}/{layer}.A"], self.after[f"{branch}/{layer}.B"])
        return pair.to(torch.float64).scaled(_scale(self.branches, branch))

    def terms(self, place: Place) -> list[Term]:
        """The same, and by how much the base has changed with it."""
        terms: list[Term] = [self.pair(place)]
        if place[0] == "R":  # P is in units of R's scale
            scale = _scale(self.branches, "R")
            for tensors, sign in ((self.after, scale), (self.before, -scale)):
                if (dense := tensors.get(f"{FOLD}/{place[1]}.W")) is not None:
                    terms.append(dense.double() * sign)
                elif (pair := pairs(tensors, FOLD).get(place[1])) is not None:
                    terms.append(pair.scaled(sign))
        return terms


def _layers(branches: Branches) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Of every branch that a model wears, the layers to compare; and of what is shared, those of
    which the server knows both factors. Where it knows some of a branch, only these are
    compared."""
    algorithm = branches.algorithm
    mixes = [t.forward for s in algorithm.stages for t in s.terms]
    worn = {b for mix in (*mixes, *algorithm.deploys.values()) for b in split_mix(mix)} - {FOLD}
    personal, compared, known = algorithm.personal(), dict[str, list[str]](), dict[str, list[str]]()
    for branch in (b for b in algorithm.branches() if b in worn):
        names = [f"{branch}/{piece.name}" for piece in branches.lora.layouts[branch].pieces]
        shared = {n for n in names if branches.is_shared(n)}
        kept = set(names) - shared if branch in personal else set[str]()
        layers = dict.fromkeys(n.partition("/")[2][:-2] for n in names)
        opened = [x for x in layers if not {f"{branch}/{x}.A", f"{branch}/{x}.B"} & kept]
        if shared and opened:
            known[branch] = opened
        if shared or kept:
            compared[branch] = known.get(branch, list(layers))
    return compared, known


def _beside(compared: Layers, known: Layers, server: _Server) -> Beside | None:
    """The first deployed mix of two branches of which a client has one to itself; not where the
    base changes too."""
    algorithm = server.branches.algorithm
    for mix in () if algorithm.folds() else algorithm.deploys.values():
        worn = split_mix(mix)
        alike = len({tuple(compared.get(branch, ())) for branch in worn}) == 1
        if len(worn) == 2 and alike and any(branch not in known for branch in worn):
            return Beside(*worn, lambda place: server.pair(place) if place[0] in known else None)
    return None


def _start(branches: Branches) -> Tensors:
    """How everybody begins where nothing else is known."""
    flats = {b: flat.to("cpu", branches.dtype) for b, flat in branches.start.items()}
    return {n: t for b, flat in flats.items() for n, t in branches.names(b, flat).items()}


def _scale(branches: Branches, branch: str) -> float:
    return branches.lora.layouts[branch].spec.scale


def _sent(
    branches: Branches, start: Tensors, before: ServerState, clients: Iterable[str]
) -> dict[int | None, Tensors]:
    """What a round began with, of clients of each rank."""
    ranks = {branches.rank(client) for client in clients}
    sent = {rank: branches.algorithm.downlink(before, rank) for rank in ranks}
    return {rank: _at_full_rank(tensors, start) for rank, tensors in sent.items()}


def _at_full_rank(tensors: Tensors, start: Tensors) -> Tensors:
    return {n: filled(t, start[n].shape) for n, t in tensors.items() if n in start}
