"""Ditto (Li et al. 2021): beside the global model, which is FedAvg's, every client trains one of
its own that is held near it."""

from fedsdr.algorithms.options import Weight, checked
from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.objectives import CrossEntropy, Proximal, Sum
from fedsdr.parts.views import Raw


@checked
def ditto(lam: Weight = 0.1) -> Algorithm:
    """v_k ← argmin L_k(v) + (λ/2)·‖v − w‖², w as it was broadcast; only w is federated. λ = 0 is
    training alone. The default is ours: the paper tunes λ by data set."""
    near = Sum((CrossEntropy(), Proximal(lam, to="R")))
    return Algorithm(
        "ditto",
        stages=(
            Stage((Term(Raw(), forward="R", train="R"),)),
            Stage((Term(Raw(), forward="V", train="V", objective=near),)),
        ),
        deploys={"global": "R", "personal": "V"},
        starts={"V": "R"},
    )
