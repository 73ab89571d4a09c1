"""How a local step moves K clients' branches, each client its own: AdamW or SGD, and clipping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsdr.parts.local import LocalSettings


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) or SGD on one branch [K, P]; every client has taken equally
    many steps."""

    def __init__(self, like: Tensor, columns: Tensor | None, settings: LocalSettings) -> None:
        self.settings, self.columns, self.steps = settings, columns, 0
        self.m, self.v = torch.zeros_like(like), torch.zeros_like(like)

    def keep(self, clients: int) -> None:
        self.m, self.v = self.m[:clients].clone(), self.v[:clients].clone()

    def step(self, w: Tensor, grad: Tensor, lr: float) -> None:
        self.steps += 1
        s = self.settings
        if s.weight_decay:
            if self.columns is None:
                w.mul_(1 - lr * s.weight_decay)
            else:
                w[:, self.columns] *= 1 - lr * s.weight_decay
        if s.optimizer == "sgd":
            w.sub_(grad, alpha=lr)
        else:
            beta1, beta2 = s.betas
            self.m.lerp_(grad, 1 - beta1)
            self.v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            size = lr / (1 - beta1**self.steps)
            bottom = (self.v.sqrt() / (1 - beta2**self.steps) ** 0.5).add_(s.eps)
            w.addcdiv_(self.m, bottom, value=-size)
        if s.bounds is not None:
            w.clamp_(*s.bounds)


def clip(grads: Mapping[str, Tensor], limit: float | None) -> None:
    """Each client's gradient, over all that it trains, to norm `limit` (as
    torch.nn.utils.clip_grad_norm_)."""
    if limit is None:
        return
    squares = [g.square().sum(dim=1, keepdim=True) for g in grads.values()]
    norm = sum(squares[1:], squares[0]).sqrt()
    for grad in grads.values():
        grad.mul_((limit / (norm + 1e-6)).clamp_max(1.0))
