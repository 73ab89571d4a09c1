"""In which direction each client pulls the base: cosines between clients' gradients.

What is compared is the gradient that an adapter feels before it has learnt anything: ∂L_k/∂B at
B = 0, with one random A that all clients share. Then

    ∂L/∂B = (α/r) ∂L/∂W · Aᵀ,

so this is a random projection, to r dimensions a layer, of the gradient by the adapted layers' full
weights: its cosines estimate those of the full gradients, the better the larger r is.

What one client's training does to another's held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsdr.data.render import Rendered, make_block
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Stage, Term
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.views import Raw
from fedsdr.tensors import derive_seed
from fedsdr.training.stage import StageJob, train_stage
from fedsdr.training.step import summed_nll

Told = Callable[[int], None]  # so many clients more are done


def tell_nobody(done: int) -> None:
    """Nobody watches."""


def train_apart(
    lora: StackedLora,
    branch: str,
    start: Tensor,
    rows: Sequence[Sequence[Rendered]],
    settings: LocalSettings,
    lr: float,
    steps: int,
    stack: int,
    seed: int,
    told: Told = tell_nobody,
) -> Tensor:
    """[clients, P]: the branch after each client trained it from `start`, alone, for equally many
    steps; `stack` of them side by side."""
    stage = Stage((Term(Raw(), forward=branch, train=branch),))
    same_steps = replace(settings, steps=steps)
    ends = list[Tensor]()
    for first in range(0, len(rows), stack):
        group = rows[first : first + stack]
        jobs = [
            StageJob("", (client_rows,), derive_seed(seed, "diagnosis", "train", number))
            for number, client_rows in enumerate(group, first)
        ]
        flats = {branch: start.repeat(len(group), 1)}
        ends.append(train_stage(lora, stage, flats, jobs, same_steps, lr).flats[branch].cpu())
        told(len(group))
    return torch.cat(ends)


def loss_transfer(
    lora: StackedLora,
    branch: str,
    trained: Tensor,
    held_out: Sequence[Sequence[Rendered]],
    stack: int,
    batch: int,
    tell: Told = tell_nobody,
) -> Tensor:
    """[i, j]: (loss of `trained[i]` − loss of the base) / loss of the base, on the held-out rows of
    client j, mean over response tokens. Below 0: training on i helps j. NaN where j has none."""
    before = torch.stack([mean_loss(lora, branch, None, rows, batch)[0] for rows in held_out])
    after = list[Tensor]()
    for group in trained.split(stack):
        losses = [mean_loss(lora, branch, group, rows, batch) for rows in held_out]
        after.append(torch.stack(losses, dim=1))
        tell(len(group))
    return torch.cat(after) / before - 1


@torch.no_grad()
def mean_loss(
    lora: StackedLora, branch: str, flats: Tensor | None, rows: Sequence[Rendered], batch: int
) -> Tensor:
    """[models]: mean −log p per response token of the same rows, by the base (None) or by K models
    side by side; NaN without rows."""
    device = lora.base.net.device
    worn = {} if flats is None else {branch: flats.to(device)}
    models = 1 if flats is None else len(flats)
    sums = torch.zeros(models, dtype=torch.float64)
    for chunk in chunks(rows, max(1, batch // models)):
        block = make_block([[rows[i] for i in chunk]] * models, lora.base.pad, device)
        with lora.wear(worn, tuple(worn)):
            sums += summed_nll(lora.base, block).double().cpu()
    return sums / sum(sum(row.weights) for row in rows) if rows else sums * torch.nan


def chunks(rows: Sequence[Rendered], size: int) -> list[list[int]]:
    """Row numbers, rows of like lengths together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    return [order[first : first + size] for first in range(0, len(order), size)]


def base_gradients(
    lora: StackedLora,
    branch: str,
    start: Tensor,
    rows: Sequence[Sequence[Rendered]],
    settings: LocalSettings,
    stack: int,
    tell: Told = tell_nobody,
) -> Tensor:
    """[clients, numbers in B]: each client's gradient over all its rows, `stack` clients side by
    side. `start` [P] is a branch whose B is zero. One step of plain SGD at rate 1 from B = 0 ends
    at −∂L/∂B: rows, loss and branches are the training loop's own."""
    columns = lora.layouts[branch].columns("B")
    stage = Stage((Term(Raw(), forward=branch, train=f"{branch}.B"),))
    gradients = list[Tensor]()
    for first in range(0, len(rows), stack):
        group = rows[first : first + stack]
        one_step = replace(
            settings,
            steps=1,
            batch=max(map(len, group)),
            micro_batch=settings.micro_batch or settings.batch,
            optimizer="sgd",
            clip=None,
            weight_decay=0.0,
        )
        jobs = [StageJob("", (client_rows,), 0) for client_rows in group]
        flats = {branch: start.repeat(len(group), 1)}
        end = train_stage(lora, stage, flats, jobs, one_step, lr=1.0).flats[branch]
        gradients.append(-end[:, columns.to(end.device)].cpu())
        tell(len(group))
    return torch.cat(gradients)
