"""One algorithm under test: its runs on the toy federation, each with a fresh copy of it, as a new
process would have one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsdr.cohort.in_process import InProcessCohort
from fedsdr.coordinator.loop import ROUNDS as ROWS
from fedsdr.jobs.plan.traffic import Wire
from fedsdr.model.lora import BranchSpec
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings
from fedsdr.runs.directory import RunDirectory
from fedsdr.testing.report import CheckFailed
from fedsdr.testing.toy import SPECS, Toy, clients, tiny_base, toy
from fedsdr.types import ClientData, Lost, Order, Report, Tensors, Update

SIZES, ASKED, STACK, ROUNDS = (2, 7, 4, 1, 3), 4, 3, 3  # four of five clients a round: 3 + 1
PRIVACY = "nothing personal is sent"
Make = Callable[[], Algorithm]


class Killed(BaseException):
    """What no handler of errors may catch."""


@dataclass(frozen=True)
class Mortal(RunDirectory):
    """Dies where a fuse burns down: method -> at its how manieth call."""

    fuses: dict[str, int]

    def save_update(self, *args: Any, **named: Any) -> str:
        self._burn("save_update")
        return super().save_update(*args, **named)

    def save_checkpoint(self, *args: Any, **named: Any) -> str:
        self._burn("save_checkpoint")
        return super().save_checkpoint(*args, **named)

    def _burn(self, method: str) -> None:
        self.fuses[method] = self.fuses.get(method, 0) - 1
        if self.fuses[method] == 0:
            raise Killed


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client was sent, what it sent back, and what it kept."""

    order: Order
    update: Update
    private: Tensors


@dataclass(slots=True)
class Listener:
    """The cohort, with an ear on the wire; `backwards`, it is asked and answers in the opposite
    order."""

    cohort: InProcessCohort
    wire: Wire
    backwards: bool
    heard: list[Answer] = field(default_factory=lambda: list[Answer]())

    def ask(
        self, orders: Sequence[Order], answered: Collection[str]
    ) -> Iterator[Update | Report | Lost]:
        by_client = {order.client_id: order for order in orders}
        asked = list(reversed(orders)) if self.backwards else orders
        answers = self.cohort.ask(asked, answered)
        for answer in reversed(list(answers)) if self.backwards else answers:
            if isinstance(answer, Update):
                self._hear(by_client[answer.client_id], answer)
            yield answer

    def _hear(self, order: Order, update: Update) -> None:
        allowed = self.wire.up(order.round, self.cohort.site.branches.rank(order.client_id))
        for name in update.shared.keys() - allowed.keys():
            raise CheckFailed(PRIVACY, f"it is sent, which share {self._share()} does not", name)
        state = self.cohort.site.run.load_client_state(order.client_id, order.round + 1)
        private = state.tensors.get("branches", {}) if state is not None else {}
        self.heard.append(Answer(order, update, private))

    def _share(self) -> str:
        return repr(self.wire.algorithm.share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a run ended: all that training decided, and all that was said."""

    algorithm: Algorithm
    root: Path
    first: Tensors
    tensors: Tensors  # shared, the server's slots, and "<client>:<tensor>" of what clients keep
    answers: Sequence[Answer]
    rows: Sequence[Mapping[str, Any]]
    wire: Wire
    ranks: Mapping[str, int]

    def shared(self) -> Tensors:
        return {n: t for n, t in self.tensors.items() if ":" not in n}

    def files(self) -> dict[str, bytes]:
        """All that a result may be read from."""
        kept = [self.root / ROWS, self.root / "ledger.jsonl"]
        kept += [p for f in ("checkpoints", "clients") for p in (self.root / f).rglob("*")]
        return {str(p.relative_to(self.root)): p.read_bytes() for p in kept if p.is_file()}


@dataclass(frozen=True, slots=True)
class Case:
    make: Make
    folder: Path
    done: dict[str, Run] = field(default_factory=lambda: dict[str, Run]())

    def reference(self) -> Run:
        """K side by side, undisturbed."""
        return self.run("stacked")

    def run(self, name: str, **how: Any) -> Run:
        """The run of that name, played when it is first asked for."""
        if name not in self.done:
            self.done[name] = self.play(name, **how)
        return self.done[name]

    def play(
        self,
        name: str,
        *,
        make: Make | None = None,
        stack: int = STACK,
        data: Mapping[str, ClientData] | None = None,
        backwards: bool = False,
        resume: bool = False,
        fuses: dict[str, int] | None = None,
        ranks: Mapping[str, int] | None = None,
        training: LocalSettings | None = None,
    ) -> Run:
        algorithm, data = (make or self.make)(), data or clients(SIZES)
        if backwards:
            data = dict(reversed(list(data.items())))
        with toy(
            tiny_base(),
            algorithm,
            self.folder / name,
            data,
            stack=stack,
            cache=self.folder / "rewrites",
            specs=_specs(algorithm, ranks),
            ranks=ranks,
            training=training,
            resume=resume,
        ) as federation:
            if resume:
                federation.run.recover()
            federation.cohort.site.run = Mortal(federation.run.root, fuses or {})
            return _played(federation, backwards)


def _played(federation: Toy, backwards: bool) -> Run:
    ranks = {branch: layout.spec.rank for branch, layout in federation.lora.layouts.items()}
    listener = Listener(
        federation.cohort, Wire(federation.algorithm, federation.lora.shapes, ranks), backwards
    )
    asked = min(ASKED, len(federation.cohort.site.clients))
    outcome = federation.play(ROUNDS, cohort=listener, participation=float(ASKED), quorum=asked)
    tensors = {
        **federation.tensors(outcome),
        **{f"slots:{n}": t for n, t in outcome.state.slots.items()},
    }
    start = {
        n: t
        for b, flat in federation.branches.start.items()
        for n, t in _named(federation, b, flat)
    }
    rows = federation.run.rows(ROWS)
    wire, client_ranks = listener.wire, federation.branches.ranks
    return Run(
        algorithm=federation.algorithm,
        root=federation.run.root,
        first=start,
        tensors=tensors,
        answers=listener.heard,
        rows=rows,
        wire=wire,
        ranks=client_ranks,
    )


def _named(federation: Toy, branch: str, flat: Tensor) -> list[tuple[str, Tensor]]:
    return list(federation.branches.names(branch, flat).items())


def _specs(algorithm: Algorithm, ranks: Mapping[str, int] | None) -> Mapping[str, BranchSpec]:
    """from_R copies R into S, so that their ranks have to agree."""
    specs = {"R": BranchSpec(3, 6.0) if ranks else SPECS["R"], "S": SPECS["S"]}
    return specs | ({"S": specs["R"]} if algorithm.keep == "from_R" else {})


def compared(check: str, left: Tensors, right: Tensors, tolerance: float, what: str) -> float:
    """The largest difference, refused above `tolerance`."""
    left, right = _multiplied(left), _multiplied(right)
    for name in sorted(left.keys() ^ right.keys()):
        raise CheckFailed(check, f"only one of the two has it ({what})", name)
    worst, where = 0.0, ""
    for name, tensor in left.items():
        if tensor.shape != right[name].shape:
            shapes = f"{tuple(tensor.shape)} and {tuple(right[name].shape)}"
            raise CheckFailed(check, f"shapes {shapes} ({what})", name)
        difference = float((tensor - right[name]).abs().max()) if tensor.numel() else 0.0
        if not difference <= worst:  # NaN too
            worst, where = difference, name
    if not worst <= tolerance:
        reason = f"differs by {worst:.3g}, at most {tolerance:g} is allowed ({what})"
        raise CheckFailed(check, reason, where, worst)
    return worst


def _multiplied(tensors: Tensors) -> dict[str, Tensor]:
    """The same, P as what it adds to each layer: its factors are as good turned or mirrored."""
    multiplied = {n: t for n, t in tensors.items() if not n.startswith("P/")}
    for name, tensor in tensors.items():
        layer, _, half = name.rpartition(".")
        if name.startswith("P/") and half == "W":
            multiplied[layer] = tensor
        elif name.startswith("P/") and half == "A":
            multiplied[layer] = tensors[f"{layer}.B"] @ tensor
    return multiplied


def largest(tensors: Tensors, first: Tensors) -> float:
    """How far training went from the start: a check of equality says nothing about what never
    moved."""
    moved = [0.0]
    for name, tensor in tensors.items():
        begun = first.get(name.partition(":")[2] or name, torch.zeros(()))
        same = begun.shape == tensor.shape
        moved.append(float((tensor - begun).abs().max()) if same else float(tensor.abs().max()))
    return max(moved)
