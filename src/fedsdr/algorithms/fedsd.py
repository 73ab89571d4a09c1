"""FedSD (Ren et al. 2026), a booster: every client trains on its answers as the model itself
rewrites them.

L_k(θ) = (1/n_k) Σ −log f_θ(ỹ | c, x),   ỹ ~ f_teacher(· | c, x, y)
"""

from dataclasses import replace

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.options import Every, checked
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.views import Raw, Rewritten, Teacher


def boosted(algorithm: Algorithm, rewritten: Rewritten | None = None) -> Algorithm:
    """The same algorithm, whose terms see the rewritten answers wherever they saw the raw ones.

    Args:
        algorithm: Any algorithm.
        rewritten: Whose rewrites, and which are kept.
    """
    view = rewritten or Rewritten()
    stages = tuple(
        replace(
            stage,
            terms=tuple(
                replace(term, view=view) if isinstance(term.view, Raw) else term
                for term in stage.terms
            ),
        )
        for stage in algorithm.stages
    )
    return replace(algorithm, name=f"fedsd+{algorithm.name}", stages=stages)


@checked
def fedsd(
    selection: str = "none", teacher: Teacher = "base", redistill_every: Every = 0
) -> Algorithm:
    """FedAvg on rewritten answers. `selection`: none | sdft | facts | task | resample(n), and more
    (docs/selection.md)."""
    view = Rewritten(selection, teacher, redistill_every)
    return replace(boosted(fedavg(), view), name="fedsd")
