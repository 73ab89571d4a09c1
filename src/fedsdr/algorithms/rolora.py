"""RoLoRA (Chen et al. 2025): one factor at a time, so that every round's mean is exact, and still
both are learned."""

from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.moves import When
from fedsdr.parts.views import Raw


def rolora() -> Algorithm:
    """Odd rounds train and send B, even rounds A (B is zero at the start, and A would have no
    gradient)."""
    b = Stage((Term(Raw(), forward="R", train="R.B"),), when=When(first=1, every=2))
    a = Stage((Term(Raw(), forward="R", train="R.A"),), when=When(first=2, every=2))
    return Algorithm("rolora", stages=(b, a), share="R")
