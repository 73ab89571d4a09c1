"""How a client trains, and how many steps that is: what a server knows of it beforehand.

What the training losses of a round are called: in an update, in the records, on the page.

Every term of every stage that runs has one. The loss of a round, without further name, is that of
the last term which trains what is shared: of FedSDR's two it is R on the raw answers, not S.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from fedsdr.parts.algorithm import Algorithm, Rule, Stage, Term, split_mix
from fedsdr.parts.views import Mixed, Raw


@dataclass(frozen=True, slots=True, kw_only=True)
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
    bounds: tuple[float, float] | None = None

    def under(self, rule: Rule | None) -> LocalSettings:
        """These settings, with a stage's own optimiser where it has one."""
        if rule is None:
            return self
        return replace(
            self, optimizer=rule.optimizer, clip=rule.clip, bounds=rule.bounds, weight_decay=0.0
        )


def stage_steps(rows: int, stage: Stage, settings: LocalSettings) -> int:
    """The optimiser steps of a client with so many rows."""
    if settings.steps is not None:
        return max(1, round(settings.steps * stage.part))
    epochs = stage.epochs if stage.epochs is not None else settings.epochs * stage.part
    return count_steps(rows, settings.batch, epochs)


def count_steps(examples: int, batch: int, epochs: float, steps: int | None = None) -> int:
    """Optimiser steps of one stage: given, or by (possibly fractional) epochs; at least one."""
    return steps if steps is not None else max(1, round(epochs * math.ceil(examples / batch)))


@dataclass(frozen=True, slots=True)
class TermLoss:
    metric: str  # "loss", "loss_2" of the second stage, "loss_2_3" of its third term
    name: str  # "S on rewritten"
    branches: frozenset[str]  # that the term trains


def of_stage(metric: str, stage: int) -> str:
    """The metric's name for the stage of that number, from 0."""
    return f"{metric}_{stage + 1}" if stage else metric


def of_term(stage: int, term: int) -> str:
    return f"loss_{stage + 1}_{term + 1}" if term else of_stage("loss", stage)


def term_losses(algorithm: Algorithm, round: int) -> list[TermLoss]:
    """Of the stages that run in this round, in their order."""
    there = [
        (s, t, term)
        for s, stage in enumerate(algorithm.stages)
        if stage.when(round)
        for t, term in enumerate(stage.terms)
    ]
    many = Counter(_name(term) for *_, term in there)
    losses = list[TermLoss]()
    for s, t, term in there:
        name, where = _name(term), f"stage {s + 1}" + (f", term {t + 1}" if t else "")
        branches = frozenset(part.partition(".")[0] for part in split_mix(term.train))
        losses.append(
            TermLoss(of_term(s, t), f"{name} ({where})" if many[name] > 1 else name, branches)
        )
    return losses


def main_loss(algorithm: Algorithm, round: int) -> TermLoss | None:
    """The last of a term that trains what is shared, else what is deployed, else any."""
    losses = term_losses(algorithm, round)
    shared = {part.partition(".")[0] for part in split_mix(algorithm.share)}
    deployed = {branch for mix in algorithm.deploys.values() for branch in split_mix(mix)}
    for wanted in (shared, deployed):
        if hits := [loss for loss in losses if loss.branches & wanted]:
            return hits[-1]
    return losses[-1] if losses else None


def _name(term: Term) -> str:
    view = term.view
    kind = "raw" if isinstance(view, Raw) else "mixed" if isinstance(view, Mixed) else "rewritten"
    return f"{'+'.join(split_mix(term.train)) or 'nothing'} on {kind}"
