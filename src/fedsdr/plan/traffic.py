"""How many bytes a run sends: counted from what the algorithm shares and trains."""

from __future__ import annotations

from collections.abc import Sequence

from fedsdr.assembly import Experiment
from fedsdr.plan.shape import Traffic
from fedsdr.plan.wire import Shape, Wire, numbers


def count_traffic(experiment: Experiment, asked: Sequence[Sequence[str]]) -> Traffic:
    """`asked`: the clients of each round. With a rule that changes the base, what goes down grows
    from round to round; counted is the most that it can be."""
    ups = [[_up(experiment, c, n) for c in now] for n, now in enumerate(asked, 1)]
    downs = [[_down(experiment, c, n, len(now)) for c in now] for n, now in enumerate(asked, 1)]
    return Traffic(
        max(map(max, ups)),
        max(map(max, downs)),
        max(map(sum, ups)),
        max(map(sum, downs)),
        sum(map(sum, ups)) + sum(map(sum, downs)),
    )


def shared_shapes(experiment: Experiment) -> dict[str, Shape]:
    """Tensor -> shape, of what the server holds before round 1."""
    return _wire(experiment).down()


def _up(experiment: Experiment, client_id: str, round: int) -> int:
    wire, branches = _wire(experiment), experiment.branches
    return numbers(wire.up(round, branches.rank(client_id)).values()) * branches.dtype.itemsize


def _down(experiment: Experiment, client_id: str, round: int, sampled: int) -> int:
    wire, branches = _wire(experiment), experiment.branches
    # Each round merges its clients' products, and may take the product of their means out again.
    folded = wire.folded((round - 1) * (sampled + 1) * wire.ranks["R"]) if round > 1 else 0
    sent = numbers(wire.down(branches.rank(client_id)).values())
    return (sent + folded) * branches.dtype.itemsize


def _wire(experiment: Experiment) -> Wire:
    ranks = {branch: layout.spec.rank for branch, layout in experiment.lora.layouts.items()}
    return Wire(experiment.algorithm, experiment.lora.shapes, ranks)
