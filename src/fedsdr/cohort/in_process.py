"""The in-process cohort: all clients on this machine, K at a time, the base loaded once.

What is a client's own stays apart: its data, its rewrites and its personal branches are read and
written under `clients/<id>` and `rewrites/` of the run directory, and only what the algorithm
shares enters an `Update`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fedsdr.cohort.branches import Branches
from fedsdr.cohort.used import check_used
from fedsdr.data.render import Rendered, render
from fedsdr.distill.audit import AuditRow
from fedsdr.distill.rewrite import Note, Rewriting, Teacher, note_nothing, rewrite
from fedsdr.distill.selection import parse_selection
from fedsdr.errors import OutOfMemory, RoundFailed
from fedsdr.model.lora import StackedLora
from fedsdr.optimizer import LocalSettings
from fedsdr.parts.algorithm import Algorithm, Stage
from fedsdr.parts.losses import of_stage, of_term
from fedsdr.parts.views import Mixed, Raw, Rewritten, View
from fedsdr.runs.artifact import Artifact
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import derive_seed, digest, ran_out_of_memory
from fedsdr.train import StageJob, train_stage
from fedsdr.types import ClientData, Example, Lost, Order, Update

RAW = "raw"
Advance = Callable[[str, int, int], None]  # what, done, of how many


def silent(what: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(slots=True)
class InProcessCohort:
    lora: StackedLora
    algorithm: Algorithm
    clients: Mapping[str, ClientData]
    run: RunDirectory
    branches: Branches
    training: LocalSettings
    rewriting: Rewriting
    cache: Path
    stack: int = 8
    max_length: int = 1024
    equal_weights: bool = False
    include_texts: bool = False
    advance: Advance = silent
    note: Note = note_nothing
    audit: dict[str, list[AuditRow]] = field(default_factory=lambda: dict[str, list[AuditRow]]())
    tokens: dict[tuple[str, str], list[Rendered]] = field(
        default_factory=lambda: dict[tuple[str, str], list[Rendered]]()
    )
    # Client and view -> the teacher's digest: the rows of the one before are dropped.
    taught: dict[tuple[str, str], str] = field(default_factory=lambda: dict[tuple[str, str], str]())

    def groups(self, orders: Sequence[Order]) -> list[list[Order]]:
        """Fixed groups of K: by number of examples, most first; it depends on who was asked and K
        alone."""
        ranked = sorted(orders, key=lambda o: (-len(self.clients[o.client_id].train), o.client_id))
        return [ranked[i : i + self.stack] for i in range(0, len(ranked), self.stack)]

    def ask(
        self, orders: Sequence[Order], answered: Collection[str] = ()
    ) -> Iterator[Update | Lost]:
        """Train group by group; a group whose members have all `answered` before is not trained
        again."""
        finished = 0
        for group in self.groups(orders):
            if not all(o.client_id in answered for o in group):
                yield from self._within_memory(group)
            finished += len(group)
            self.advance("clients", finished, len(orders))

    def prepare(self) -> None:
        """Rewrite and tokenise before round 1, where the base is the teacher; the cost does not
        grow with rounds."""
        views = rewritten_views(self.algorithm)
        if any(view.teacher == "global" for view in views):
            return
        for number, client_id in enumerate(sorted(self.clients) if views else ()):
            for view in views:
                self._tokens(client_id, view, Teacher())
            self.advance("rewriting clients", number + 1, len(self.clients))

    def _within_memory(self, group: Sequence[Order]) -> Iterator[Update | Lost]:
        try:
            yield from self._train(group)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        else:
            return
        # Out here, where the error no longer holds the tensors of the failed step.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        less = smaller_work(self.stack, self.training.micro_batch or self.training.batch)
        if less is None:
            raise RoundFailed(
                "memory ran out with one client and one row at a time; lower model.max_length or "
                "the ranks, or set model.checkpointing: true"
            )
        self.stack, micro_batch = less
        self.training = replace(self.training, micro_batch=micro_batch)
        # Kept, so that a resume forms the same groups.
        self.run.amend({"stack": self.stack, "micro_batch": micro_batch})
        raise OutOfMemory(
            f"memory ran out; from now on {self.stack} clients side by side, {micro_batch} rows "
            "each at a time"
        )

    def _rewrite_less(self, batch: int) -> None:
        """Kept, so that a resume draws the same rows together."""
        self.rewriting = replace(self.rewriting, batch=batch)
        self.run.amend({"rewriting_batch": batch})
        self.note(f"memory ran out; from now on {batch} rows are rewritten at a time")

    def _train(self, group: Sequence[Order]) -> Iterator[Update | Lost]:
        with self.lora.folded(group[0].shared):  # P is the same for all
            yield from self._trained(group)

    def _trained(self, group: Sequence[Order]) -> Iterator[Update | Lost]:
        first = group[0]
        states = [self.run.load_client_state(o.client_id, o.round) for o in group]
        flats, start = self.branches.begin([o.shared for o in group], [_named(s) for s in states])
        began = {branch: flat.clone() for branch, flat in flats.items()}
        teachers = [self._teacher(order, state) for order, state in zip(group, states, strict=True)]
        metrics: list[dict[str, float]] = [{} for _ in group]
        for number, stage in enumerate(self.algorithm.stages):
            if not stage.when(first.round):
                continue
            jobs = [self._job(o, number, stage, t) for o, t in zip(group, teachers, strict=True)]
            lr, now = first.settings["lr"], first.round
            result = train_stage(self.lora, stage, flats, jobs, self.training, lr, start, now)
            flats = {**flats, **result.flats}
            for k, found in enumerate(metrics):
                for term, losses in enumerate((result.losses, *result.other_losses)):
                    found[of_term(number, term)] = losses[k]
                found[of_stage("steps", number)] = result.steps[k]
                found[of_stage("tokens", number)] = result.tokens[k]
        for k, order in enumerate(group):
            own = {branch: flat[k] for branch, flat in flats.items()}
            change = {branch: flat[k] - began[branch][k] for branch, flat in flats.items()}
            if not all(bool(torch.isfinite(flat).all()) for flat in own.values()):
                yield Lost(order.client_id, "its training diverged; lower training.lr")
                continue  # and its state of the round before stays
            private = self.branches.private(own)
            meta = {"teacher": teachers[k].digest, "facts": {}}
            tensors = {"teacher": self._teacher_tensors(teachers[k]), "branches": private}
            # On disk before the update is handed out: a lost acknowledgement cannot lose S.
            self.run.save_client_state(order.client_id, order.round, tensors, meta)
            examples = len(self.clients[order.client_id].train)
            yield Update(
                order.run,
                order.round,
                order.client_id,
                self.lora.base.digest,
                1.0 if self.equal_weights else float(examples),
                self.branches.up(change, order.client_id, order.round),
                {**metrics[k], "examples": float(examples)},
            )

    def _job(self, order: Order, number: int, stage: Stage, teacher: Teacher) -> StageJob:
        rows = tuple(self._tokens(order.client_id, term.view, teacher) for term in stage.terms)
        seed = derive_seed(order.seed, order.round, order.client_id, "stage", number)
        return StageJob(order.client_id, rows, seed, self.branches.scales(order.client_id))

    def _tokens(self, client_id: str, view: View, teacher: Teacher) -> list[Rendered]:
        """A view's token rows, prepared once."""
        kept = RAW if isinstance(view, Raw) else str(view)
        known = self.taught.get((client_id, kept), teacher.digest) == teacher.digest
        if (client_id, kept) not in self.tokens or not known:
            self.taught[client_id, kept] = teacher.digest
            examples = self.examples(client_id, view, teacher)
            self.tokens[client_id, kept] = [
                render(self.lora.base, e, self.max_length) for e in examples
            ]
        return self.tokens[client_id, kept]

    def examples(
        self, client_id: str, view: View, teacher: Teacher | None = None
    ) -> Sequence[Example]:
        """What a term trains on, of one client."""
        raw = self.clients[client_id].train
        if isinstance(view, Raw):
            return raw
        if isinstance(view, Mixed):
            rewritten = self.examples(client_id, view.rewritten, teacher)
            return [
                b if self._drawn(client_id, a) < view.share else a
                for a, b in zip(raw, rewritten, strict=True)
            ]
        texts, audit = rewrite(
            self.lora,
            client_id,
            raw,
            parse_selection(view.selection),
            self.rewriting,
            self.cache,
            teacher,
            include_texts=self.include_texts,
            note=self.note,
            less=self._rewrite_less,
        )
        who = (teacher or Teacher()).digest
        check_used(self.run, client_id, str(view), who, texts, audit, self.note)
        self.audit[client_id] = audit
        return texts

    def _drawn(self, client_id: str, example: Example) -> float:
        """From 0 to below 1 by the run's seed, the same in every round."""
        return derive_seed(self.rewriting.seed, client_id, "mixed", example.id) % 10**6 / 10**6

    def _teacher(self, order: Order, state: Artifact | None) -> Teacher:
        """The base; or the global model that this client last rewrote with, renewed when it is
        due."""
        view = next((v for v in rewritten_views(self.algorithm) if v.teacher == "global"), None)
        if view is None:
            return Teacher()
        every = view.redistill_every
        known = state.tensors.get("teacher", {}) if state is not None else {}
        renewed = order.round == 1 or (every and (order.round - 1) % every == 0)
        named = order.shared if renewed or not known else known
        flats = self.branches.stack(named)
        worn = {n: t for n, t in named.items() if n.partition("/")[0] in flats}
        return Teacher(digest(worn), flats)

    def _teacher_tensors(self, teacher: Teacher) -> Mapping[str, Tensor]:
        return self.branches.shared({b: flat[0] for b, flat in teacher.flats.items()})


def smaller_work(stack: int, micro_batch: int) -> tuple[int, int] | None:
    """Half the clients side by side; of one client, half the rows at a time."""
    if stack > 1:
        return stack // 2, micro_batch
    return (1, micro_batch // 2) if micro_batch > 1 else None


def _named(state: Artifact | None) -> Mapping[str, Tensor]:
    return state.tensors.get("branches", {}) if state is not None else {}


def rewritten_views(algorithm: Algorithm) -> list[Rewritten]:
    found = list[Rewritten]()
    for stage in algorithm.stages:
        for term in stage.terms:
            if isinstance(term.view, Rewritten):
                found.append(term.view)
            elif isinstance(term.view, Mixed):
                found.append(term.view.rewritten)
    return found
