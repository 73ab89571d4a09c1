"""FedALA (Zhang et al. 2023), on LoRA: a client enters a round with as much of the new global
adapter, number by number, as serves its own data.

    θ̂ = L + (R − L) ⊙ W,   W ← clip(W − η · ∇_θ̂ L_k ⊙ (R − L), 0, 1),   then R ← θ̂ is trained
"""

from fedsdr.algorithms.options import Count, Weight, checked
from fedsdr.parts.algorithm import Algorithm, Blend, Rule, Stage, Term
from fedsdr.parts.moves import Copy, Interpolate, When
from fedsdr.parts.views import Raw

SHARE_OF_DATA = 0.8  # that W is learned on


@checked
def fedala(eta: Weight = 1.0, first_passes: Count = 3) -> Algorithm:
    """L is the client's last own R; W persists from ones. W is learned from round 2 on, one pass a
    round; in round 2 `first_passes`, a fixed number that stands for the paper's "until the last ten
    losses deviate by less than .1", each over another 80 % of the data. Rounds are the
    federation's: a client that joins later starts with one pass, from an L that is untrained.
    η = 0 leaves W at 1 and R at FedAvg's. The paper learns W on a model's upper layers only and
    takes the lower ones over as they are; here it is all layers."""
    blended = Term(Raw(), forward="R", train="W", blend=Blend(into="R", old="L", weights="W"))
    rule = Rule("sgd", lr=eta, bounds=(0.0, 1.0))

    def learn(rounds: When, passes: int) -> Stage:
        mixed = Interpolate("R", old="L", weights="W")
        return Stage(
            (blended,), when=rounds, epochs=passes * SHARE_OF_DATA, rule=rule, after=(mixed,)
        )

    return Algorithm(
        "fedala",
        stages=(
            learn(When(first=2, last=2), first_passes),
            learn(When(first=3), 1),
            Stage((Term(Raw(), forward="R", train="R"),), after=(Copy("L", "R"),)),
        ),
        deploys={"global": "R", "personal": "L"},
        starts={"L": "R", "W": "one"},
    )
