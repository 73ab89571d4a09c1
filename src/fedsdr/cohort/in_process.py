"""The in-process cohort: K sites stacked, on this machine, the base loaded once.

What is a client's own stays apart: its records, its rewrites and its personal branches are read and
written by `site/` alone, and only what that yields gets any further.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fedsdr.distill.audit import write_audit
from fedsdr.errors import OutOfMemory, RoundFailed
from fedsdr.site.answers import answer
from fedsdr.site.profile import profile
from fedsdr.site.rewrites import rewrite
from fedsdr.site.score import save, score
from fedsdr.site.site import Site
from fedsdr.site.train import train
from fedsdr.tensors import ran_out_of_memory, within_memory
from fedsdr.types import Lost, Order, Report, Task, Update

Group = Sequence[Order]
TELLS: Mapping[Task, Callable[[Site, Group], Iterable[Report]]] = {
    "rewrite": rewrite, "profile": profile, "score": score, "answer": answer, "save": save
}  # fmt: skip
WORDS: Mapping[Task, str] = {"rewrite": "rewriting clients", "train": "clients"}


@dataclass(slots=True)
class InProcessCohort:
    """The `Cohort` (coordinator/gather.py) of one process; a network would be another.

    `recorded`: whether the run keeps what it came down to where memory ran out."""

    site: Site
    recorded: bool = True

    def ask(
        self, orders: Sequence[Order], answered: Collection[str] = ()
    ) -> Iterator[Update | Report | Lost]:
        """All orders are of one task. A group that has trained before, as all its members have
        `answered`, is not trained again."""
        if not orders:
            return
        if orders[0].task != "train":
            # Where memory runs out, all of it again, so that a resume does the same.
            yield from within_memory(partial(self._told, orders), self._tell_less)
            return
        finished = 0
        for group in self.groups(orders):
            if not all(o.client_id in answered for o in group):
                yield from self._within_memory(group)
            finished += len(group)
            self.site.advance("clients", finished, len(orders))

    def groups(self, orders: Sequence[Order]) -> list[list[Order]]:
        """Fixed groups of K: by number of examples, most first; it depends on who was asked and K
        alone."""
        clients, k = self.site.clients, self.site.stack
        ranked = sorted(orders, key=lambda o: (-len(clients[o.client_id].train), o.client_id))
        return [ranked[i : i + k] for i in range(0, len(ranked), k)]

    def _told(self, orders: Sequence[Order]) -> list[Report]:
        """What is no training: as many at a time as have a model of their own, K; all that share
        one."""
        task, mix = orders[0].task, orders[0].mix
        k = self.site.stack
        if task in ("rewrite", "profile", "save"):
            k = 1
        elif not mix or not self.site.algorithm.is_personal(self.site.algorithm.deploys[mix]):
            k = len(orders)
        what = f"scoring {mix}" if task == "score" else WORDS.get(task)
        reports = list[Report]()
        for first in range(0, len(orders), k):
            reports += TELLS[task](self.site, orders[first : first + k])
            if what is not None and (task != "rewrite" or reports[-1].values):
                self.site.advance(what, len(reports), len(orders))
        if task == "rewrite" and not orders[0].round:
            self._write_audit()
        return reports

    def _write_audit(self) -> None:
        """A simulation's convenience: row by row, of all clients, in one file of the run. Texts
        stay out of it unless they were asked for."""
        site, rows = self.site, [r for c in sorted(self.site.audit) for r in self.site.audit[c]]
        if rows:
            kept = (r if site.texts_in_audit else replace(r, texts=None) for r in rows)
            write_audit(site.run.root / "rewriting_audit.jsonl", kept)
        site.audit.clear()  # with its texts

    def _within_memory(self, group: Group) -> Iterator[Update | Lost]:
        site = self.site
        try:
            yield from train(site, group)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        else:
            return
        # Out here, where the error no longer holds the tensors of the failed step.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        less = smaller_work(site.stack, site.training.micro_batch or site.training.batch)
        if less is None:
            raise RoundFailed(
                "memory ran out with one client and one row at a time; lower model.max_length or "
                "the ranks, or set model.checkpointing: true"
            )
        site.stack, micro_batch = less
        site.training = replace(site.training, micro_batch=micro_batch)
        # Kept, so that a resume forms the same groups.
        self._keep({"stack": site.stack, "micro_batch": micro_batch})
        raise OutOfMemory(
            f"memory ran out; from now on {site.stack} clients side by side, {micro_batch} rows "
            "each at a time"
        )

    def _keep(self, less: Mapping[str, int]) -> None:
        if self.recorded:
            self.site.run.amend(less)

    def _tell_less(self) -> None:
        """Half the rows at a time; of one row, half the clients side by side."""
        site = self.site
        if site.rows_scored > 1:
            site.rows_scored //= 2
            self._keep({"evaluation_batch": site.rows_scored})
        elif site.stack > 1:
            site.stack //= 2
            self._keep({"stack": site.stack})
        else:
            raise RoundFailed(
                "memory ran out while one row of one client was scored; lower model.max_length or "
                "the ranks"
            )
        site.note(
            f"memory ran out; from now on {site.rows_scored} rows are scored at a time, of "
            f"{site.stack} clients side by side"
        )


def smaller_work(stack: int, micro_batch: int) -> tuple[int, int] | None:
    """Half the clients side by side; of one client, half the rows at a time."""
    if stack > 1:
        return stack // 2, micro_batch
    return (1, micro_batch // 2) if micro_batch > 1 else None
