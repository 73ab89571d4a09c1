"""Plain fine-tuning with torch alone, row by row: none of the package's layers, losses, optimisers
or loops. Only the base, the tokens and the draw of the batches are shared with it."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedsdr.data.batches import draw_steps
from fedsdr.data.render import Rendered
from fedsdr.model.base import BaseModel
from fedsdr.parts.local import LocalSettings
from fedsdr.tensors import derive_seed

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
