"""In which direction each client pulls the base: cosines between clients' gradients.

What is compared is the gradient that an adapter feels before it has learnt anything: ∂L_k/∂B at
B = 0, with one random A that all clients share. Then

    ∂L/∂B = (α/r) ∂L/∂W · Aᵀ,

so this is a random projection, to r dimensions a layer, of the gradient by the adapted layers' full
weights: its cosines estimate those of the full gradients, the better the larger r is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedsdr.data.render import Rendered
from fedsdr.evaluate.diagnostics.transfer import Told, tell_nobody
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Stage, Term
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.views import Raw
from fedsdr.training.stage import StageJob, train_stage


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
