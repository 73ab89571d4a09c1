"""What goes over the wire, read off an algorithm and a model's layers: nothing is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
