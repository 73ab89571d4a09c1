"""FedAvgM (Hsu et al. 2019): FedAvg whose server keeps a momentum over the mean changes."""

from dataclasses import replace
from typing import Literal

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import Decay, Rate, checked
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.server_rules import Momentum


@checked
def fedavgm(
    momentum: Decay = 0.9,
    server_lr: Rate = 1.0,
    variant: Literal["textbook", "damped"] = "textbook",
) -> Algorithm:
    """v ← β·v + Δ, w ← w + η·v; `damped`: (1 − β)·Δ for Δ after the first round. β = 0, η = 1 is
    FedAvg."""
    return replace(fedavg(), name="fedavgm", combine=Momentum(momentum, server_lr, variant))
