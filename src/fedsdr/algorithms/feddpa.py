"""FedDPA (Yang et al. 2024): a global adapter R and a client's own L, mixed by how much an input
looks like the client's data."""

from typing import Annotated, Literal

from pydantic import Field

from fedsdr.algorithms.options import Count, Share, checked, refuse_idle
from fedsdr.parts.algorithm import Algorithm, PerInput, Stage, Term
from fedsdr.parts.moves import Copy, When
from fedsdr.parts.views import Raw


@checked
def feddpa(
    variant: Literal["T", "F"] = "T",
    local_weight: Annotated[float, Field(gt=0, le=1)] = 0.5,
    highest: Share = 0.5,
    prompts: Count = 5,
    federated_rounds: Count = 8,
) -> Algorithm:
    """T: from round 2, L is trained beside the frozen broadcast R, as `local_weight`·L + (1 −
    `local_weight`)·R; then R alone, and sent. F: R is federated for `federated_rounds`; in the
    round after these, in which all clients have to take part, L starts from it, and is tuned alone.

    Deployed: L counts `highest` times the mean cosine to `prompts` of the client's prompts. (The
    published code swaps the two weights, and cuts the gradients through R; not so here.)
    """
    unused = "federated_rounds" if variant == "T" else "local_weight"
    refuse_idle(feddpa, locals(), (unused,), f"variant: {variant}")
    federate, after = Term(Raw(), forward="R", train="R"), federated_rounds + 1
    if variant == "T":
        mix = f"{1 - local_weight:.15g}*R+{local_weight:.15g}*L"
        personalise = Term(Raw(), forward=mix, train="L")
        stages = (Stage((personalise,), when=When(first=2)), Stage((federate,)))
    else:
        tune, begin = Term(Raw(), forward="L", train="L"), Copy("L", "R", When(after, after))
        stages = (
            Stage((federate,), when=When(last=federated_rounds)),
            Stage((tune,), when=When(first=after), before=(begin,)),
        )
    deploys = {"global": "R", "personal": PerInput("R+L", "L", highest, prompts)}
    return Algorithm("feddpa", stages, deploys=deploys)
