"""FedProx (Li et al. 2020): FedAvg whose clients are held near the broadcast weights."""

from fedsdr.algorithms.options import Weight, checked
from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.objectives import CrossEntropy, Proximal, Sum
from fedsdr.parts.views import Raw


@checked
def fedprox(mu: Weight = 0.01) -> Algorithm:
    """The local loss gains (mu/2)·‖w − w_g‖², squared; mu = 0 is FedAvg."""
    loss = Sum((CrossEntropy(), Proximal(mu)))
    term = Term(Raw(), forward="R", train="R", objective=loss)
    return Algorithm("fedprox", stages=(Stage((term,)),), share="R")
