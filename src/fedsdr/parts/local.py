"""How a client trains, and how many steps that is: what a server knows of it beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fedsdr.parts.algorithm import Rule, Stage


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
