"""FedAdam (Reddi et al. 2021): FedAvg whose server takes Adam steps along the mean change."""

from dataclasses import replace
from typing import Literal

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import Decay, Rate, checked
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.server_rules import Adam, Adaptive


@checked
def fedadam(
    server_lr: Rate = 1e-3,
    tau: Rate = 1e-3,
    beta1: Decay = 0.9,
    beta2: Decay = 0.99,
    variant: Literal["textbook", "squared_momentum"] = "textbook",
) -> Algorithm:
    """m ← β₁·m + (1 − β₁)·Δ, v ← β₂·v + (1 − β₂)·Δ², w ← w + η·m/(√v + τ), without
    bias correction. `squared_momentum` is a much-used codebase's rule: m² for Δ² in v, m = Δ in the
    first round, and all clients count alike in Δ."""
    rule = Adaptive(Adam(beta2), server_lr, tau, beta1, variant)
    return replace(fedavg(), name="fedadam", combine=rule)
