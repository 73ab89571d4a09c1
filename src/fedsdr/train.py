"""The only local training loop: one stage of K clients, side by side.

What is stacked is only arithmetic. Each client has its own batches, loss, gradient, clipping and
optimiser state, so that K clients trained together end where K clients trained one after another
end (up to rounding; a test holds 1e-9 in fp64). Clients stand in order of their step counts, most
first: the active ones are a prefix, and a finished one is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsdr.data.batches import Block, count_steps, draw_steps, make_block
from fedsdr.data.render import Rendered
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Fade, Stage, Term, split_mix
from fedsdr.tensors import generator


@dataclass(frozen=True, slots=True)
class LocalSettings:
    epochs: float = 1.0
    steps: int | None = None
    batch: int = 8
    micro_batch: int | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    loss: Literal["tokens", "examples"] = "tokens"


@dataclass(frozen=True, slots=True)
class StageJob:
    """One client's part of a stage: its rows for every term, and the seed of its batches and
    noise."""

    client_id: str
    rows: tuple[Sequence[Rendered], ...]
    seed: int

    def steps(self, stage: Stage, settings: LocalSettings) -> int:
        if settings.steps is not None:
            return max(1, round(settings.steps * stage.part))
        epochs = stage.epochs if stage.epochs is not None else settings.epochs * stage.part
        return count_steps(max(map(len, self.rows)), settings.batch, epochs)


@dataclass(frozen=True, slots=True)
class StageResult:
    flats: Mapping[str, Tensor]
    losses: tuple[float, ...]  # per client, mean over the stage's trained tokens, first term
    steps: tuple[int, ...]
    tokens: tuple[int, ...]


def train_stage(
    lora: StackedLora,
    stage: Stage,
    flats: Mapping[str, Tensor],
    jobs: Sequence[StageJob],
    settings: LocalSettings,
    lr: float,
    start: Mapping[str, Tensor] | None = None,
) -> StageResult:
    """Train the stage's branches from `flats` ([K, P] per branch); `start` is what proximal terms
    pull to."""
    counts = [job.steps(stage, settings) for job in jobs]
    order = sorted(range(len(jobs)), key=lambda k: -counts[k])
    plans = [
        [
            draw_steps(len(rows), settings.batch, counts[k], jobs[k].seed, "batches", term)
            for term, rows in enumerate(jobs[k].rows)
        ]
        for k in order
    ]
    noise = [generator(jobs[k].seed, "noise") for k in order]
    worn = {b: flat[order].detach().clone() for b, flat in flats.items()}
    anchors = {b: flat[order].detach() for b, flat in (start or flats).items()}
    done = {b: flat.clone() for b, flat in worn.items()}
    trained = {p.partition(".")[0] for term in stage.terms for p in split_mix(term.train)}
    rule = {b: _Rule(worn[b], _trained_columns(lora, stage, b), settings) for b in sorted(trained)}
    tally = _Tally(len(jobs))
    active = len(jobs)
    for step in range(max(counts)):
        still = sum(counts[k] > step for k in order)
        if still < active:
            active = still
            worn = {b: flat[:active].clone() for b, flat in worn.items()}
            anchors = {b: flat[:active] for b, flat in anchors.items()}
            for one in rule.values():
                one.keep(active)
        grads = {b: torch.zeros_like(worn[b]) for b in rule}
        for number, term in enumerate(stage.terms):
            rows = [
                [jobs[order[k]].rows[number][i] for i in plans[k][number][step]]
                for k in range(active)
            ]
            factors = _fade(term.fade, noise[:active], worn)
            for branch, grad in _gradients(
                lora, term, worn, anchors, rows, settings, factors, tally if number == 0 else None
            ).items():
                grads[branch] += term.weight * grad
        _clip(grads, settings.clip)
        for branch, one in rule.items():
            one.step(worn[branch], grads[branch], lr)
            done[branch][:active] = worn[branch]
    back = torch.tensor(sorted(range(len(jobs)), key=order.__getitem__))
    means, tokens = tally.means(back)
    return StageResult({b: flat[back] for b, flat in done.items()}, means, tuple(counts), tokens)


@dataclass(slots=True)
class LocalStep:
    """One micro-batch of K clients through one term's branches (what an objective sees)."""

    base: BaseModel
    block: Block
    denominators: Tensor  # [K], over the whole optimiser step
    trained: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    share_of_step: float
    nll: Tensor | None = field(default=None)

    def cross_entropy(self) -> Tensor:
        self.nll = summed_nll(self.base, self.block)
        return self.nll / self.denominators


def summed_nll(base: BaseModel, block: Block) -> Tensor:
    """[K]: Σ weight · −log p(token | what stands before it), for each client of the block."""
    weights = block.weights[:, 1:]
    chosen = weights > 0
    logits = base.predictions(block.ids, block.lengths, chosen)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(wide, block.ids[:, 1:][chosen], reduction="none")
    losses = losses * weights[chosen].to(losses.dtype)
    per_client = block.ids.shape[0] // block.clients
    owner = torch.nonzero(chosen)[:, 0] // per_client
    return torch.zeros(block.clients, dtype=losses.dtype, device=losses.device).index_add(
        0, owner, losses
    )


def _gradients(
    lora: StackedLora,
    term: Term,
    worn: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    rows: Sequence[Sequence[Rendered]],
    settings: LocalSettings,
    factors: Mapping[str, Tensor] | None,
    tally: _Tally | None,
) -> dict[str, Tensor]:
    """d term / d trained branches, over the micro-batches of one optimiser step."""
    names = {part.partition(".")[0] for part in split_mix(term.train)}
    leaves = {b: worn[b].detach().requires_grad_(b in names) for b in worn}
    trained = {b: leaf for b, leaf in leaves.items() if b in names}
    device, dtype = lora.base.net.device, next(iter(trained.values())).dtype
    rows = [[_weighed(r, settings.loss) for r in own] for own in rows]
    totals = torch.tensor([sum(sum(r.weights) for r in own) for own in rows], dtype=torch.float64)
    size = settings.micro_batch or max(map(len, rows))
    for first in range(0, max(map(len, rows)), size):
        chunk = [own[first : first + size] for own in rows]
        share = sum(map(len, chunk)) / sum(map(len, rows))
        step = LocalStep(
            lora.base,
            make_block(chunk, lora.base.pad, device),
            totals.to(device, dtype).clamp_min(1e-12),
            trained,
            {b: anchors[b] for b in trained},
            share,
        )
        with lora.wear(leaves, split_mix(term.forward), factors):
            term.objective(step).sum().backward()
        if tally is not None and step.nll is not None:
            tally.add(step.nll, step.block)
    return {b: _only(lora, term, b, leaf) for b, leaf in trained.items()}


def _only(lora: StackedLora, term: Term, branch: str, leaf: Tensor) -> Tensor:
    """The gradient, zero wherever the term does not train ("R.B" trains no A)."""
    grad = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
    columns = _columns(lora, [term.train], branch)
    if columns is not None:
        kept = torch.zeros_like(grad)
        kept[:, columns] = grad[:, columns]
        return kept
    return grad


def _trained_columns(lora: StackedLora, stage: Stage, branch: str) -> Tensor | None:
    return _columns(lora, [term.train for term in stage.terms], branch)


def _columns(lora: StackedLora, mixes: Sequence[str], branch: str) -> Tensor | None:
    """The flat positions trained of a branch, or None for all of it."""
    parts = [part.partition(".") for mix in mixes for part in split_mix(mix)]
    halves = {half for name, _, half in parts if name == branch}
    if "" in halves or halves == {"A", "B"}:
        return None
    return lora.layouts[branch].columns(next(iter(halves)))


def _weighed(row: Rendered, loss: str) -> Rendered:
    """For the per-example mean, a row's weights sum to one; for the token mean they stay."""
    total = sum(row.weights)
    if loss == "tokens" or total == 0:
        return row
    return Rendered(row.ids, tuple(w / total for w in row.weights), row.truncated)


def _fade(
    fade: Fade | None, noise: Sequence[torch.Generator], worn: Mapping[str, Tensor]
) -> Mapping[str, Tensor] | None:
    if fade is None:
        return None
    draws = [torch.rand((), generator=g).item() for g in noise]
    like = worn[fade.branch]
    factor = [0.0 if d < fade.dropout else fade.scale for d in draws]
    return {fade.branch: torch.tensor(factor, dtype=like.dtype, device=like.device)}


def _clip(grads: Mapping[str, Tensor], limit: float | None) -> None:
    """Each client's gradient, over all that it trains, to norm `limit` (as
    torch.nn.utils.clip_grad_norm_)."""
    if limit is None:
        return
    squares = [g.square().sum(dim=1, keepdim=True) for g in grads.values()]
    norm = sum(squares[1:], squares[0]).sqrt()
    for grad in grads.values():
        grad.mul_((limit / (norm + 1e-6)).clamp_max(1.0))


class _Rule:
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
            return
        beta1, beta2 = s.betas
        self.m.lerp_(grad, 1 - beta1)
        self.v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        size = lr / (1 - beta1**self.steps)
        bottom = (self.v.sqrt() / (1 - beta2**self.steps) ** 0.5).add_(s.eps)
        w.addcdiv_(self.m, bottom, value=-size)


class _Tally:
    """Σ loss and Σ tokens per client over a stage."""

    def __init__(self, clients: int) -> None:
        self.loss = torch.zeros(clients, dtype=torch.float64)
        self.weight = torch.zeros(clients, dtype=torch.float64)
        self.tokens = torch.zeros(clients, dtype=torch.long)

    def add(self, nll: Tensor, block: Block) -> None:
        own = block.weights.view(block.clients, -1)
        self.loss[: block.clients] += nll.detach().double().cpu()
        self.weight[: block.clients] += own.sum(dim=1).double().cpu()
        self.tokens[: block.clients] += (own > 0).sum(dim=1).cpu()

    def means(self, back: Tensor) -> tuple[tuple[float, ...], tuple[int, ...]]:
        mean = self.loss / self.weight.clamp_min(1e-12)
        return tuple(mean[back].tolist()), tuple(self.tokens[back].tolist())
