"""The only local training loop: one stage of K clients, side by side.

What is stacked is only arithmetic. Each client has its own batches, loss, gradient, clipping and
optimiser state, so that K clients trained together end where K clients trained one after another
end (up to rounding; a test holds 1e-9 in fp64). Clients stand in order of their step counts, most
first: the active ones are a prefix, and a finished one is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsdr.data.render import Block, Rendered, draw_steps, make_block
from fedsdr.errors import DataError
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Fade, Stage, Term, mix_weights, split_mix
from fedsdr.parts.local import LocalSettings, stage_steps
from fedsdr.parts.moves import Trained
from fedsdr.parts.objectives import Where
from fedsdr.tensors import generator
from fedsdr.training.optimizer import Optimizer, clip
from fedsdr.training.step import LocalStep, per_client


@dataclass(frozen=True, slots=True)
class StageJob:
    """One client's part of a stage: its rows for every term, the seed of its batches and noise, and
    how its scale of a branch differs from the full rank's."""

    client_id: str
    rows: tuple[Sequence[Rendered], ...]
    seed: int
    scales: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())

    def __post_init__(self) -> None:
        if not all(self.rows):
            raise DataError(f"client {self.client_id!r} has no training rows; leave it out")

    def steps(self, stage: Stage, settings: LocalSettings) -> int:
        return stage_steps(max(map(len, self.rows)), stage, settings)


@dataclass(frozen=True, slots=True)
class StageResult:
    flats: Mapping[str, Tensor]
    losses: tuple[float, ...]  # per client, mean over the stage's trained tokens, first term
    steps: tuple[int, ...]
    tokens: tuple[int, ...]  # first term
    other_losses: tuple[tuple[float, ...], ...] = ()  # of the other terms


def train_stage(
    lora: StackedLora,
    stage: Stage,
    flats: Mapping[str, Tensor],
    jobs: Sequence[StageJob],
    settings: LocalSettings,
    lr: float,
    start: Mapping[str, Tensor] | None = None,
    round: int = 1,
) -> StageResult:
    """Train the stage's branches from `flats` ([K, P] per branch); `start` is the round's
    beginning, which proximal terms pull to."""
    settings = settings.under(stage.rule)
    lr = stage.rule.lr if stage.rule is not None and stage.rule.lr is not None else lr
    counts = [job.steps(stage, settings) for job in jobs]
    flats, moved = dict(flats), Trained(start or flats, torch.tensor(counts), lr)
    for move in stage.before:
        if move.when(round):
            flats[move.into] = move(flats, moved)
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
    rule = {
        b: Optimizer(worn[b], _trained_columns(lora, stage, b), settings) for b in sorted(trained)
    }
    tallies = [_Tally(len(jobs)) for _ in stage.terms]
    active = len(jobs)
    for step in range(max(counts)):
        still = sum(counts[k] > step for k in order)
        if still < active:
            active = still
            worn = {b: flat[:active].clone() for b, flat in worn.items()}
            anchors = {b: flat[:active] for b, flat in anchors.items()}
            for optimizer in rule.values():
                optimizer.keep(active)
        grads = {b: torch.zeros_like(worn[b]) for b in rule}
        for number, term in enumerate(stage.terms):
            rows = [
                [jobs[order[k]].rows[number][i] for i in plans[k][number][step]]
                for k in range(active)
            ]
            factors = _factors(term.fade, noise[:active], worn, [jobs[k] for k in order[:active]])
            for branch, grad in _gradients(
                lora,
                term,
                worn=worn,
                anchors=anchors,
                rows=rows,
                settings=settings,
                factors=factors,
                noise=noise[:active],
                progress=[step / counts[k] for k in order[:active]],
                tally=tallies[number],
            ).items():
                grads[branch] += term.weight * grad
        clip(grads, settings.clip)
        for branch, optimizer in rule.items():
            optimizer.step(worn[branch], grads[branch], lr)
            done[branch][:active] = worn[branch]
    back = torch.tensor(sorted(range(len(jobs)), key=order.__getitem__))
    losses, *others = (tally.means(back) for tally in tallies)
    tokens = tallies[0].counts(back)
    ends = {b: flat[back] for b, flat in done.items()}
    for move in stage.after:
        if move.when(round):
            ends[move.into] = move(ends, moved)
    return StageResult(ends, losses, tuple(counts), tokens, tuple(others))


def _gradients(
    lora: StackedLora,
    term: Term,
    worn: Mapping[str, Tensor],
    anchors: Mapping[str, Tensor],
    rows: Sequence[Sequence[Rendered]],
    settings: LocalSettings,
    factors: Mapping[str, Tensor],
    noise: Sequence[torch.Generator],
    progress: Sequence[float],
    tally: _Tally,
) -> dict[str, Tensor]:
    """d term / d trained branches, over the micro-batches of one optimiser step."""
    names = {part.partition(".")[0] for part in split_mix(term.train)}
    leaves = {b: worn[b].detach().requires_grad_(b in names) for b in worn}
    trained = {b: leaf for b, leaf in leaves.items() if b in names}
    device, dtype = lora.base.net.device, next(iter(trained.values())).dtype
    rows = [[_weighed(r, settings.loss) for r in client_rows] for client_rows in rows]
    size = settings.micro_batch or max(map(len, rows))
    if size < max(map(len, rows)):  # rows of like lengths share a micro-batch
        rows = [sorted(client_rows, key=lambda r: len(r.ids)) for client_rows in rows]
    for first in range(0, max(map(len, rows)), size):
        chunk = [client_rows[first : first + size] for client_rows in rows]
        step = LocalStep(
            lora=lora,
            block=make_block(chunk, lora.base.pad, device),
            mix=mix_weights(term.forward),
            branches=leaves,
            trained=trained,
            start=anchors,
            factors=factors,
            denominators={w: n.to(device, dtype) for w, n in _denominators(rows).items()},
            share_of_step=sum(map(len, chunk)) / sum(map(len, rows)),
            progress=progress,
            noise=noise,
            blend=term.blend,
        )
        term.objective(step).sum().backward()
        if (predicted := step.passes.get(("now", "response"))) is not None:
            nll = per_client(
                predicted.nll().detach() * predicted.weights, predicted, step.block.clients
            )
            tally.add(nll, step.block)
    return {b: _only(lora, term, b, leaf) for b, leaf in trained.items()}


def _denominators(rows: Sequence[Sequence[Rendered]]) -> dict[Where, Tensor]:
    """[K]: each client's weight of trained tokens, and number of input tokens, in the step."""
    trained = [sum(sum(r.weights) for r in client_rows) for client_rows in rows]
    read = [
        sum(len(r.ids) - 1 - sum(w > 0 for w in r.weights[1:]) for r in client_rows)
        for client_rows in rows
    ]
    return {
        "response": torch.tensor(trained, dtype=torch.float64).clamp_min(1e-12),
        "input": torch.tensor(read, dtype=torch.float64).clamp_min(1.0),
    }


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


def _factors(
    fade: Fade | None,
    noise: Sequence[torch.Generator],
    worn: Mapping[str, Tensor],
    jobs: Sequence[StageJob],
) -> Mapping[str, Tensor]:
    """Branch -> [K]: by what each client's scale is multiplied in this step."""
    like = next(iter(worn.values()))
    factors = dict[str, Tensor]()
    for branch in {b for job in jobs for b in job.scales}:
        factors[branch] = torch.tensor([j.scales[branch] for j in jobs]).to(like)
    if fade is not None:
        draws = [torch.rand((), generator=g).item() for g in noise]
        drawn = torch.tensor([0.0 if d < fade.dropout else fade.scale for d in draws]).to(like)
        factors[fade.branch] = factors.get(fade.branch, torch.ones_like(drawn)) * drawn
    return factors


class _Tally:
    """Σ loss and Σ tokens per client over a stage, of one term."""

    def __init__(self, clients: int) -> None:
        self.loss = torch.zeros(clients, dtype=torch.float64)
        self.weight = torch.zeros(clients, dtype=torch.float64)
        self.tokens = torch.zeros(clients, dtype=torch.long)

    def add(self, nll: Tensor, block: Block) -> None:
        weights = block.weights.view(block.clients, -1)
        self.loss[: block.clients] += nll.detach().double().cpu()
        self.weight[: block.clients] += weights.sum(dim=1).double().cpu()
        self.tokens[: block.clients] += (weights > 0).sum(dim=1).cpu()

    def means(self, back: Tensor) -> tuple[float, ...]:
        # Of a certain prediction rounding may leave less than the zero that it is.
        mean = (self.loss / self.weight.clamp_min(1e-12)).clamp_min(0.0)
        return tuple(mean[back].tolist())

    def counts(self, back: Tensor) -> tuple[int, ...]:
        return tuple(self.tokens[back].tolist())
