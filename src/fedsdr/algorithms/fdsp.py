"""FDSP (Zou 2024, from its abstract): federated distillation with structural perturbation. FedAvg
whose clients are held near the broadcast model's predictions and states, and made robust to
disturbed modules (docs/method.md).

    L = CE + λ_d L_kd + λ_r L_rep + λ_c L_cons
"""

from typing import Literal

from fedsdr.algorithms.options import Decay, Share, Temperature, Weight, checked, refuse_idle
from fedsdr.errors import RecipeError
from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.injection import Disturbance
from fedsdr.parts.objectives import (
    Consistent,
    CrossEntropy,
    Distilled,
    LayerWeights,
    Objective,
    Represented,
    Sum,
    TokenWeights,
)
from fedsdr.parts.views import Raw

DISTURBING = (
    "injection", "rho_attention", "rho_feed_forward", "sigma", "rate", "warmup", "beta"
)  # fmt: skip


@checked
def fdsp(
    lambda_d: Weight = 0.5,
    lambda_r: Weight = 0.1,
    lambda_c: Weight = 0.1,
    tau: Temperature = 2.0,
    tokens: TokenWeights = "confidence",
    growth: Weight = 0.0,
    layers: LayerWeights = "uniform",
    injection: Literal["gaussian", "rank_drop", "module_drop"] = "gaussian",
    rho_attention: Share = 0.5,
    rho_feed_forward: Share = 0.5,
    sigma: Weight = 1.0,
    rate: Decay = 0.3,
    warmup: Share = 0.1,
    beta: Weight = 1.0,
) -> Algorithm:
    """λ_d = λ_r = 0: no distillation; λ_c = 0: no perturbation; all zero is FedAvg. `tokens` are
    w_t, `layers` ω; `growth`: of λ_d with the client's drift; `sigma` is for gaussian injection,
    `rate` for rank_drop; `warmup` is a share of the local stage."""
    given = dict(locals())
    if not lambda_d:
        refuse_idle(fdsp, given, ("tau", "tokens", "growth"), "lambda_d: 0")
    if not lambda_r:
        refuse_idle(fdsp, given, ("layers",), "lambda_r: 0")
    if not lambda_c:
        refuse_idle(fdsp, given, DISTURBING, "lambda_c: 0")
    elif not (rho_attention or rho_feed_forward):
        raise RecipeError(
            "algorithm.lambda_c: no effect where rho_attention and rho_feed_forward are 0, as "
            "nothing is disturbed; set lambda_c: 0"
        )
    if injection != "gaussian":
        refuse_idle(fdsp, given, ("sigma",), f"injection: {injection}")
    if injection != "rank_drop":
        refuse_idle(fdsp, given, ("rate",), f"injection: {injection}")
    disturbance = Disturbance(injection, rho_attention, rho_feed_forward, sigma, rate, warmup)
    parts: list[Objective] = [CrossEntropy()]
    if lambda_d:
        parts.insert(0, Distilled(lambda_d, tau, tokens, growth))
    if lambda_c:
        parts.insert(0, Consistent(lambda_c, disturbance, beta))
    if lambda_r:  # first: its passes, with hidden states, serve all
        parts.insert(0, Represented(lambda_r, layers))
    term = Term(Raw(), forward="R", train="R", objective=Sum(tuple(parts)))
    return Algorithm("fdsp", stages=(Stage((term,)),), share="R")
