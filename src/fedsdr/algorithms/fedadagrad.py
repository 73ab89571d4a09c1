"""FedAdagrad (Reddi et al. 2021): FedAvg whose server steps less where it has moved much so far."""

from dataclasses import replace
from typing import Literal

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import Decay, Rate, checked, refuse_idle
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.server_rules import Adagrad, Adaptive


@checked
def fedadagrad(
    server_lr: Rate = 1e-3,
    tau: Rate = 1e-3,
    beta1: Decay = 0.9,
    variant: Literal["textbook", "squared_momentum"] = "textbook",
) -> Algorithm:
    """m ← β₁·m + (1 − β₁)·Δ, v ← v + Δ², w ← w + η·m/(√v + τ).

    `beta1` is that of the paper's Algorithm 2; its experiments run FedAdagrad with beta1 = 0.
    `squared_momentum` is a much-used codebase's rule: no momentum (β₁ = 0), and all clients count
    alike in Δ.
    """
    if variant == "squared_momentum":
        why = "variant: squared_momentum, which has no momentum in FedAdagrad"
        refuse_idle(fedadagrad, locals(), ("beta1",), why)
        beta1 = 0.0
    rule = Adaptive(Adagrad(), server_lr, tau, beta1, variant)
    return replace(fedavg(), name="fedadagrad", combine=rule)
