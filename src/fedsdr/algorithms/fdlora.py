"""FDLoRA (Qi et al. 2024): every client learns alone first; the mean of that is then federated with
DiLoCo's outer steps, and comes back to the client's own adapter now and then."""

from fedsdr.algorithms.options import Count, Decay, Epochs, Rate, checked
from fedsdr.parts.algorithm import Algorithm, Stage, Term
from fedsdr.parts.combine import Nesterov
from fedsdr.parts.moves import Copy, When
from fedsdr.parts.views import Raw


@checked
def fdlora(
    inner_epochs: Epochs = 3.0,
    sync_every: Count = 5,
    outer_lr: Rate = 0.7,
    outer_momentum: Decay = 0.9,
) -> Algorithm:
    """Round 1: θ_p, trained alone for the recipe's local epochs and kept in L; θ_s = mean θ_p.
    Then: `inner_epochs` passes on θ_s (R), a Nesterov step on the server, and in every
    `sync_every`-th round θ_p ← the client's θ_s. A client that misses round 1 has no θ_p before.

    The outer values are DiLoCo's (Douillard et al. 2023). The paper's search for how much the two
    count in the end is left out: each counts half (their products, not their factors).
    """
    term = Term(Raw(), forward="R", train="R")
    sync = Copy("L", "R", When(first=sync_every, every=sync_every))
    return Algorithm(
        "fdlora",
        stages=(
            Stage((term,), when=When(last=1), after=(Copy("L", "R"),)),
            Stage((term,), when=When(first=2), epochs=inner_epochs, after=(sync,)),
        ),
        deploys={"global": "R", "personal": "0.5*R+0.5*L"},
        combine=Nesterov(outer_lr, outer_momentum, plain=1),
        starts={"L": "R"},
    )
