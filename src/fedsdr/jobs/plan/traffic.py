"""How many bytes a run sends: counted from what the algorithm shares and trains."""

from __future__ import annotations

from collections.abc import Sequence

from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.plan.shape import Traffic
from fedsdr.jobs.plan.wire import Shape, Wire, numbers


def count_traffic(experiment: Experiment, asked: Sequence[Sequence[str]]) -> Traffic:
    """`asked`: the clients of each round. With a rule that changes the base, what goes down grows
    from round to round; counted is the most that it can be."""
    wire, branches, algorithm = _wire(experiment), experiment.branches, experiment.algorithm
    up, down = dict[tuple[int | None, frozenset[str]], int](), dict[int | None, int]()

    def counted(client: str, round: int, trained: frozenset[str]) -> tuple[int, int]:
        rank = branches.rank(client)
        if (rank, trained) not in up:  # the same in most rounds, of which there may be thousands
            up[rank, trained] = numbers(wire.up(round, rank).values())
            down[rank] = numbers(wire.down(rank).values())
        return up[rank, trained], down[rank]

    ups, downs = list[list[int]](), list[list[int]]()
    for number, now in enumerate(asked, 1):
        trained = frozenset(algorithm.trained(number))
        # Each round merges its clients' products, and may take the product of their means out
        # again.
        merged = (number - 1) * (len(now) + 1) * wire.ranks.get("R", 0)
        folded = wire.folded(merged) if number > 1 else 0
        both = [counted(client, number, trained) for client in now]
        ups.append([sent * branches.dtype.itemsize for sent, _ in both])
        downs.append([(sent + folded) * branches.dtype.itemsize for _, sent in both])
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


def _wire(experiment: Experiment) -> Wire:
    ranks = {branch: layout.spec.rank for branch, layout in experiment.lora.layouts.items()}
    return Wire(experiment.algorithm, experiment.lora.shapes, ranks)
