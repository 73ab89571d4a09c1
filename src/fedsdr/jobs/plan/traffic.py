"""How many bytes a run sends: counted from what the algorithm shares and trains.

What goes over the wire, read off an algorithm and a model's layers: nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedsdr.jobs.assembly import Experiment
from fedsdr.jobs.plan.shape import Traffic
from fedsdr.parts.algorithm import Algorithm, split_mix
from fedsdr.parts.mix import is_part
from fedsdr.site.branches import block_of, own_blocks

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Wire:
    """`shapes`: layer -> (in, out); `ranks`: branch -> the server's rank. Below, `rank` is that of
    one client, where ranks differ."""

    algorithm: Algorithm
    shapes: Mapping[str, Shape]
    ranks: Mapping[str, int]

    def down(self, rank: int | None = None) -> dict[str, Shape]:
        """Tensor -> shape, of all that is shared; P, whose rank only a run can tell, comes on
        top."""
        shapes, private_blocks = dict[str, Shape](), own_blocks(self.algorithm, self.shapes)
        for part in split_mix(self.algorithm.share):
            branch, _, half = part.partition(".")
            full = self.ranks[branch]
            r = min(rank, full) if rank is not None and branch == "R" else full
            for layer, (width_in, width_out) in self.shapes.items():
                pair = {"A": (r, width_in), "B": (width_out, r)}
                if block_of(layer) not in private_blocks:
                    shapes |= {f"{branch}/{layer}.{h}": pair[h] for h in (half or "AB")}
        return shapes

    def up(self, round: int, rank: int | None = None) -> dict[str, Shape]:
        """Tensor -> shape: of what is shared, what this round trains."""
        trained = self.algorithm.trained(round)
        return {name: shape for name, shape in self.down(rank).items() if is_part(name, trained)}

    def folded(self, merged: int) -> int:
        """The most numbers that P can have after products of so much rank in all went into it: a
        pair, or dense where that is smaller."""
        if not self.algorithm.folds():
            return 0
        return sum(min(merged * (i + o), i * o) for i, o in self.shapes.values())

    def one_lora(self) -> int:
        """Numbers of R, A and B of every layer."""
        return sum(self.ranks["R"] * (i + o) for i, o in self.shapes.values())


def numbers(shapes: Iterable[Shape]) -> int:
    return sum(rows * columns for rows, columns in shapes)


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
