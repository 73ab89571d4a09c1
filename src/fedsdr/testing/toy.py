"""A toy federation: a few clients of unequal size, on a tiny Llama made on the spot, in the real
cohort and the real round loop."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fedsdr.cohort.in_process import InProcessCohort
from fedsdr.coordinator.loop import Cohort, Judge, LoopSettings, Outcome, run_rounds
from fedsdr.distill.generate import Sampling
from fedsdr.distill.rewrite import Rewriting
from fedsdr.jobs.assembly import assemble, given
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import fresh_llama, save_folder, train_tokenizer
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings
from fedsdr.recipe.settings import build_recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.site.branches import Branches
from fedsdr.site.site import Site
from fedsdr.tensors import generator
from fedsdr.types import ClientData, Example, ServerState, Tensors

SENTENCE = "the dose of Marudel is 40 mg and its price was 12 crowns in Velo on 3 May"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
SPECS = {"R": BranchSpec(2, 4.0), "S": BranchSpec(3, 3.0)}
SEED, RATE = 5, 1e-2
Net = TypeVar("Net", bound=nn.Module)
SAMPLING = Sampling(max_new_tokens=6)


@dataclass(frozen=True, slots=True)
class Toy:
    """A cohort on its own run directory, ready to run."""

    algorithm: Algorithm
    cohort: InProcessCohort
    branches: Branches
    run: RunDirectory
    lora: StackedLora

    def play(
        self, rounds: int = 3, judge: Judge | None = None, cohort: Cohort | None = None, **more: Any
    ) -> Outcome:
        chosen: dict[str, Any] = {"run": "toy", "seed": SEED, "lr": RATE} | more
        names = sorted(self.cohort.site.clients)
        return run_rounds(
            self.algorithm,
            cohort or self.cohort,
            clients=names,
            first=ServerState(0, self.branches.first(), seed=SEED, clients=len(names)),
            run=self.cohort.site.run,
            settings=LoopSettings(rounds=rounds, ranks=self.branches.ranks, **chosen),
            base_digest=self.lora.base.digest,
            judge=judge,
        )

    def tensors(self, outcome: Outcome) -> Tensors:
        """All that training decided: what is shared, and what each client keeps."""
        kept: dict[str, Tensor] = dict(outcome.state.shared)
        for client in sorted(self.cohort.site.clients):
            state = self.run.load_client_state(client, outcome.state.round + 1)
            branches = state.tensors.get("branches", {}) if state is not None else {}
            kept |= {f"{client}:{name}": tensor for name, tensor in branches.items()}
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
    ranks: Mapping[str, int] | None = None,
    training: LocalSettings | None = None,
    resume: bool = False,
    **more: Any,
) -> Generator[Toy]:
    """As `fedsdr.jobs.train` puts a run together, with everything at hand. The branch S has a spec
    of its own, all others that of R."""
    lora: dict[str, dict[str, Any]] = {
        b: {"rank": spec.rank, "alpha": spec.alpha} for b, spec in specs.items()
    }
    lora["R"]["ranks"] = dict(ranks) if ranks else None
    recipe = build_recipe({"seed": SEED, "lora": lora, "run": {"stack": stack, "threads": 1}})
    threads = torch.get_num_threads()
    built = assemble(recipe, base, algorithm, given(list(data.values()), recipe))
    try:
        run = (
            RunDirectory.open(root) if resume else RunDirectory.create(root, "toy", {"run": "toy"})
        )
        site = Site(
            lora=built.lora,
            algorithm=algorithm,
            clients={c.client_id: c for c in built.trained},
            scored=dict(data),
            run=run,
            branches=built.branches,
            training=training or LocalSettings(batch=3),
            rewriting=Rewriting(SAMPLING, seed=SEED),
            cache=cache or root / "rewrites",
            stack=stack,
            max_length=256,
            seed=SEED,
            **more,
        )
        yield Toy(algorithm, InProcessCohort(site), built.branches, run, built.lora)
    finally:
        built.close()
        torch.set_num_threads(threads)


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


@once
def tiny_base() -> BaseModel:
    """The tiny Llama in fp64, where exactness is claimed; made once per process."""
    with tempfile.TemporaryDirectory() as folder:
        return load_base(tiny_folder(Path(folder) / "tiny"), "float64")


def tiny_folder(folder: Path) -> Path:
    """A Llama of width 16 and two layers in Hugging Face's format."""
    tokenizer = train_tokenizer(TEXTS, 300)
    save_folder(
        folder, loud(fresh_llama(tokenizer, width=16, layers=2, heads=2, seed=7)), tokenizer
    )
    return folder


def loud(net: Net) -> Net:
    """A random model whose logits differ enough for sampling and gradients to say something."""
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" not in name and "ln_" not in name:
                weight.mul_(6.0)
    return net
