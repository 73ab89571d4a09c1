"""A toy federation: a few clients of unequal size in the real cohort and the real round loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedsdr.cohort.branches import Branches
from fedsdr.cohort.in_process import InProcessCohort
from fedsdr.config import Recipe, build_recipe
from fedsdr.distill.generate import Sampling
from fedsdr.distill.rewrite import Rewriting
from fedsdr.loop import Judge, LoopSettings, Outcome, run_rounds
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.algorithm import Algorithm
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import generator
from fedsdr.train import LocalSettings
from fedsdr.types import ClientData, Example, ServerState, Tensors

SENTENCE = "the dose of Marudel is 40 mg and its price was 12 crowns in Velo on 3 May"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
SPECS = {"R": BranchSpec(2, 4.0), "S": BranchSpec(3, 3.0)}
Net = TypeVar("Net", bound=nn.Module)
SAMPLING = Sampling(max_new_tokens=6)


def loud(net: Net) -> Net:
    """A random model whose logits differ enough for sampling and gradients to say something."""
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" not in name and "ln_" not in name:
                weight.mul_(6.0)
    return net


def examples(owner: str, count: int) -> tuple[Example, ...]:
    """Rows of unequal length, the same for the same owner."""
    random = generator("toy", owner)

    def words(least: int, most: int) -> str:
        length = int(torch.randint(least, most, (), generator=random))
        return " ".join(
            WORDS[int(torch.randint(len(WORDS), (), generator=random))] for _ in range(length)
        )

    return tuple(Example(f"{owner}-{i}", words(2, 6), words(1, 9)) for i in range(count))


def clients(sizes: Sequence[int]) -> dict[str, ClientData]:
    names = [f"c{i}" for i in range(len(sizes))]
    return {
        n: ClientData(n, examples(n, size), examples(n + "v", 2), examples(n + "t", 2))
        for n, size in zip(names, sizes, strict=True)
    }


@dataclass(frozen=True, slots=True)
class Toy:
    """A cohort on its own run directory, ready to run."""

    algorithm: Algorithm
    cohort: InProcessCohort
    branches: Branches
    run: RunDirectory
    lora: StackedLora

    def play(
        self, rounds: int = 3, judge: Judge | None = None, cohort: Any = None, **settings: Any
    ) -> Outcome:
        chosen: dict[str, Any] = {"run": "toy", "seed": 5, "lr": 1e-2} | settings
        return run_rounds(
            self.algorithm,
            cohort or self.cohort,
            sorted(self.cohort.clients),
            ServerState(0, self.branches.first()),
            self.run,
            LoopSettings(rounds=rounds, **chosen),
            self.lora.base.digest,
            judge,
        )

    def tensors(self, outcome: Outcome) -> Tensors:
        """All that training decided: what is shared, and what each client keeps."""
        kept: dict[str, Tensor] = dict(outcome.state.shared)
        for client in sorted(self.cohort.clients):
            state = self.run.load_client_state(client, outcome.state.round + 1)
            assert state is not None
            own = state.tensors.get("branches", {})
            kept |= {f"{client}:{name}": tensor for name, tensor in own.items()}
        return kept


@contextmanager
def toy(
    base: BaseModel,
    algorithm: Algorithm,
    root: Path,
    data: Mapping[str, ClientData],
    *,
    stack: int = 8,
    cache: Path | None = None,
    specs: Mapping[str, BranchSpec] = SPECS,
    training: LocalSettings | None = None,
    resume: bool = False,
    **more: Any,
) -> Iterator[Toy]:
    lora = StackedLora(base, "all-linear", {b: specs[b] for b in algorithm.branches()})
    try:
        start = {b: lora.fresh(b, 5, "init", b) for b in lora.layouts}
        dtype = torch.promote_types(base.dtype, torch.float32)
        branches = Branches(lora, algorithm, start, dtype)
        run = (
            RunDirectory.open(root) if resume else RunDirectory.create(root, "toy", {"run": "toy"})
        )
        cohort = InProcessCohort(
            lora=lora,
            algorithm=algorithm,
            clients=data,
            run=run,
            branches=branches,
            training=training or LocalSettings(batch=3),
            rewriting=Rewriting(SAMPLING, seed=5),
            cache=cache or root / "rewrites",
            stack=stack,
            max_length=256,
            **more,
        )
        yield Toy(algorithm, cohort, branches, run, lora)
    finally:
        lora.remove()


def largest_difference(left: Tensors, right: Tensors) -> float:
    assert left.keys() == right.keys()
    return max((float((left[n] - right[n]).abs().max()) for n in left), default=0.0)


def moved(tensors: Tensors, first: Tensors) -> float:
    """How far training went: a test of equality says nothing about weights that never moved."""
    return max(float((tensors[n] - first[n]).abs().max()) for n in first)


def recipe(folder: Path, **sections: Mapping[str, Any]) -> Recipe:
    """A recipe for the tiny Llama, whose clients are handed over in Python."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": str(folder), "dtype": "float64", "max_length": 256},
        "lora": {"R": {"rank": 2, "alpha": 4.0}, "S": {"rank": 3, "alpha": 3.0}},
        "training": {"rounds": 3, "local_epochs": 1.0, "batch": 3, "lr": 0.01},
        "rewriting": {"max_new_tokens": 6},
        "run": {"stack": 2, "threads": 1},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | dict(section)
    return build_recipe({"seed": 5, **tree})
