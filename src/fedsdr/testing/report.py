"""What checks have to tell: a report of measured figures, or the failure.

Plain fine-tuning with torch alone, row by row: none of the package's layers, losses, optimisers
or loops. Only the base, the tokens and the draw of the batches are shared with it.

Options under which the built-in algorithms are FedAvg, as far as the shared R goes.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsdr.data.render import Rendered, draw_steps
from fedsdr.model.base import BaseModel
from fedsdr.parts.local import LocalSettings
from fedsdr.tensors import derive_seed

Figure = float | int | str
Figures = Mapping[str, Figure]


class CheckFailed(AssertionError):
    """An algorithm breaks what every algorithm has to hold."""

    def __init__(
        self, check: str, reason: str, tensor: str | None = None, difference: float | None = None
    ) -> None:
        self.check, self.tensor, self.difference = check, tensor, difference
        where = f", tensor {tensor!r}" if tensor is not None else ""
        super().__init__(f"{check}{where}: {reason}")


class NotApplicable(Exception):
    """A check says nothing of this algorithm, and why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check that passed, with its figures; or why it says nothing of this algorithm."""

    check: str
    figures: Figures = field(default_factory=lambda: dict[str, Figure]())
    not_applicable: str = ""

    def __str__(self) -> str:
        if self.not_applicable:
            return f"not applicable: {self.not_applicable}"
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.figures.items())


@dataclass(frozen=True, slots=True)
class Report:
    algorithm: str
    findings: tuple[Finding, ...]

    def __getitem__(self, check: str) -> Finding:
        return next(f for f in self.findings if f.check == check)

    def __str__(self) -> str:
        left_out = sum(bool(f.not_applicable) for f in self.findings)
        head = f"{self.algorithm}: {len(self.findings) - left_out} checks passed"
        head += f", {left_out} not applicable" if left_out else ""
        width = max(len(f.check) for f in self.findings)
        lines = [f"  {f.check:<{width}}  {f}" for f in self.findings]
        return "\n".join(
            [head, *(fill(line, 100, subsequent_indent=" " * (width + 4)) for line in lines)]
        )


def _shown(value: Figure) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


Pairs = Mapping[str, tuple[nn.Parameter, nn.Parameter]]  # layer -> A, B


def fine_tune(
    base: BaseModel,
    rows: Sequence[Rendered],
    begin: Mapping[str, Tensor],
    scale: float,
    settings: LocalSettings,
    lr: float,
    rounds: int,
    seed: Sequence[str | int],
) -> dict[str, Tensor]:
    """R after `rounds` rounds, each with a new AdamW; `seed` is (run's seed, client)."""
    layers = [name.removesuffix(".A") for name in begin if name.endswith(".A")]
    pairs = {
        n: (nn.Parameter(begin[f"{n}.A"].clone()), nn.Parameter(begin[f"{n}.B"].clone()))
        for n in layers
    }
    weights, (run, client) = [w for pair in pairs.values() for w in pair], seed
    steps = math.ceil(settings.epochs * math.ceil(len(rows) / settings.batch))
    with _hooked(base, pairs, scale):
        for number in range(1, rounds + 1):
            rule = torch.optim.AdamW(weights, lr=lr, weight_decay=settings.weight_decay)
            drawn = derive_seed(run, number, client, "stage", 0)
            for chosen in draw_steps(len(rows), settings.batch, steps, drawn, "batches", 0):
                rule.zero_grad()
                total = torch.stack([_nll(base, rows[i]) for i in chosen]).sum()
                (total / sum(rows[i].trained for i in chosen)).backward()
                torch.nn.utils.clip_grad_norm_(weights, settings.clip or math.inf)
                rule.step()
    return {
        f"{n}.{h}": w.detach() for n, ab in pairs.items() for h, w in zip("AB", ab, strict=True)
    }


def _nll(base: BaseModel, row: Rendered) -> Tensor:
    logits: Tensor = base.net(input_ids=torch.tensor([row.ids])).logits[0, :-1]
    losses = F.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
    return losses[torch.tensor(row.weights[1:]) > 0].sum()


@contextmanager
def _hooked(base: BaseModel, pairs: Pairs, scale: float) -> Generator[None]:
    """h_out = W0 h + (α/r) B A h."""

    def adapt(name: str) -> torch.utils.hooks.RemovableHandle:
        a, b = pairs[name]

        def added(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return out + scale * F.linear(F.linear(given[0], a), b)

        return base.net.get_submodule(name).register_forward_hook(added)

    handles = [adapt(name) for name in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


REDUCTIONS: Mapping[str, Mapping[str, Any]] = {
    "ditto": {},  # R never meets the personal model
    "fdlora": {"inner_epochs": 2.0, "outer_lr": 1.0, "outer_momentum": 0.0},
    "fdsp": {"lambda_d": 0.0, "lambda_r": 0.0, "lambda_c": 0.0},
    "fedala": {"eta": 0.0},
    "fedavgm": {"momentum": 0.0, "server_lr": 1.0},
    "feddpa": {},  # R is trained without the personal branch
    "fedper": {"blocks": 0},
    "fedprox": {"mu": 0.0},
    "fedrot_lora": {"lam": 0.0},
    "fedsdr": {"ablation": "without_s"},
    "hetlora": {"weights": "examples"},
    "lora_fair": {"lam": 1e12},
}
