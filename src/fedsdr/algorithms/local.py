"""No federation: every client trains an adapter of its own and keeps it. The floor any federation
should beat."""

from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.views import Raw


def local() -> Algorithm:
    """Nothing is sent; R persists on its client from round to round."""
    term = Term(Raw(), forward="R", train="R")
    return Algorithm("local", stages=(Stage((term,)),), share="", deploys={"personal": "R"})
