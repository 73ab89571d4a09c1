"""Injection: what disturbs the branches of chosen modules during one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedsdr.parts.objectives import Injected

ATTENTION = ("self_attn", "attn", "attention")
FEED_FORWARD = ("mlp", "ffn", "feed_forward")


@dataclass(frozen=True, slots=True)
class Disturbance:
    """FDSP's modular structure injection (docs/method.md). In every forward pass each block's
    attention and each block's feed-forward module is disturbed, client by client, with the
    probability of its kind, which grows linearly over the first `warmup` of the client's stage:

        gaussian      B A h + ε,  ε ~ N(0, (σ · rms(B A h))²), the rms token by token
        rank_drop     B (m ⊙ A h),  m = 0 at `rate`, else 1/(1 − rate): one mask per layer, over the
                      latent dimensions of all branches worn
        module_drop   0

    Modules are told apart by their names; what belongs to neither kind is left alone. A micro-batch
    is a forward pass of its own, with draws of its own.
    """

    kind: Literal["gaussian", "rank_drop", "module_drop"] = "gaussian"
    rho_attention: float = 0.5
    rho_feed_forward: float = 0.5
    sigma: float = 1.0
    rate: float = 0.3
    warmup: float = 0.1

    def draw(
        self, noise: Sequence[torch.Generator], lengths: Tensor, progress: Sequence[float]
    ) -> Injected:
        per_client = lengths.view(len(noise), -1)
        grown = [min(1.0, p / self.warmup) if self.warmup else 1.0 for p in progress]
        return _Disturbed(self, noise, per_client, per_client.sum(dim=1).tolist(), grown)

    def rho(self, layer: str) -> tuple[str, float]:
        """The module that a layer belongs to ("model.layers.0.mlp"), and the probability of its
        kind."""
        parts = layer.split(".")
        for depth, part in enumerate(parts, start=1):
            if part in ATTENTION:
                return ".".join(parts[:depth]), self.rho_attention
            if part in FEED_FORWARD:
                return ".".join(parts[:depth]), self.rho_feed_forward
        return layer, 0.0


@dataclass(slots=True)
class _Disturbed:
    """The draws of one pass. A client's generator is asked in the order of the layers, and for
    numbers whose count follows from the client's own tokens: who stands beside it cannot matter.
    A client without tokens (in the last micro-batches of a shorter one) would not run alone at all,
    so it draws nothing."""

    settings: Disturbance
    noise: Sequence[torch.Generator]
    lengths: Tensor  # [K, rows]
    tokens: Sequence[int]
    grown: Sequence[float]
    modules: dict[str, list[int]] = field(default_factory=lambda: dict[str, list[int]]())

    def latent(self, layer: str, hidden: Tensor) -> Tensor:
        chosen = self._chosen(layer)
        if self.settings.kind == "gaussian" or not chosen:
            return hidden
        clients = len(self.noise)
        flat = hidden.dim() == 2
        rank = hidden.shape[-1] // clients if flat else hidden.shape[-1]
        mask = torch.ones(clients, rank, dtype=hidden.dtype)
        for k in chosen:
            mask[k] = self._mask(k, rank)
        mask = mask.to(hidden.device)
        return hidden * (mask.flatten() if flat else mask[:, None])

    def output(self, layer: str, change: Tensor) -> Tensor:
        chosen = self._chosen(layer)
        if self.settings.kind != "gaussian" or not chosen:
            return change
        width = change.shape[-1]
        drawn = torch.zeros(sum(self.tokens), width, dtype=change.dtype)
        for k, client_rows in enumerate(drawn.split(list(self.tokens))):
            if k in chosen:
                torch.randn(
                    client_rows.shape,
                    generator=self.noise[k],
                    dtype=client_rows.dtype,
                    out=client_rows,
                )
        drawn = drawn.to(change.device)
        if change.dim() == 3:
            rows = self.lengths.numel()
            columns = torch.arange(change.shape[:-1].numel() // rows, device=change.device)
            real = (columns < self.lengths.view(-1, 1)).view(-1)
            drawn = change.new_zeros(real.shape[0], width).index_put((real,), drawn)
        # Without gradient: sqrt has none at zero, where a fresh adapter's output is.
        rms = change.detach().square().mean(dim=-1, keepdim=True).sqrt()
        return change + self.settings.sigma * rms * drawn.view(change.shape)

    def _chosen(self, layer: str) -> list[int]:
        """The clients whose module, which this layer belongs to, is disturbed in this pass."""
        module, rho = self.settings.rho(layer)
        if rho and module not in self.modules:
            here = [k for k, tokens in enumerate(self.tokens) if tokens]
            draws = {k: torch.rand((), generator=self.noise[k]).item() for k in here}
            self.modules[module] = [k for k in here if draws[k] < rho * self.grown[k]]
        return self.modules.get(module, [])

    def _mask(self, client: int, rank: int) -> Tensor:
        if self.settings.kind == "module_drop":
            return torch.zeros(rank)
        rate = self.settings.rate
        kept = torch.rand(rank, generator=self.noise[client]) >= rate
        return kept.double() / (1 - rate)
