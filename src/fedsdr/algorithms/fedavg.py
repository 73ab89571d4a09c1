"""FedAvg on LoRA (McMahan et al. 2017; FedIT, Zhang et al. 2024): train R on the raw data, average
it."""

from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.views import Raw


def fedavg() -> Algorithm:
    """Every client trains the shared adapter on its own data; the server averages the changes."""
    return Algorithm("fedavg", stages=(Stage((Term(Raw(), forward="R", train="R"),)),), share="R")
