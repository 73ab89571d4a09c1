"""FedProx (Li et al. 2020): FedAvg whose clients are held near the broadcast weights."""

import math

from fedsdr.errors import RecipeError
from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.objectives import CrossEntropy, Proximal, Sum
from fedsdr.parts.views import Raw


def fedprox(mu: float = 0.01) -> Algorithm:
    """The local loss gains (mu/2)·‖w − w_g‖², squared; mu = 0 is FedAvg."""
    if not 0 <= mu < math.inf:
        raise RecipeError(f"algorithm.mu must be a number and not negative, it is {mu}")
    loss = Sum((CrossEntropy(), Proximal(mu)))
    term = Term(Raw(), forward="R", train="R", objective=loss)
    return Algorithm("fedprox", stages=(Stage((term,)),), share="R")
