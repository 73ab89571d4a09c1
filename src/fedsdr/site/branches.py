"""Between names and stacks: which tensors of an algorithm's branches are shared, and which stay at
home.

On the wire and on disk a tensor is called "R/<layer>.A"; while training, a branch is one [K, P]
block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsdr.errors import RecipeError
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Algorithm, shared_branches, split_mix
from fedsdr.parts.mix import is_part


@dataclass(frozen=True, slots=True)
class Branches:
    lora: StackedLora
    algorithm: Algorithm
    start: Mapping[str, Tensor]  # branch -> [P]: how a client begins where nothing else is known
    dtype: torch.dtype = torch.float32
    ranks: Mapping[str, int] = field(default_factory=lambda: dict[str, int]())  # by client

    def __post_init__(self) -> None:
        if self.algorithm.keep == "from_R":
            sizes = {len(self.start[b]) for b in (*self.algorithm.personal(), "R")}
            if len(sizes) > 1:
                raise RecipeError(
                    "algorithm.options.s_state: from_R copies R into S, so lora.S.rank has to be "
                    "lora.R.rank"
                )

    @property
    def device(self) -> torch.device:
        return self.lora.base.net.device

    def names(self, branch: str, flat: Tensor) -> dict[str, Tensor]:
        return {f"{branch}/{n}": t for n, t in self.lora.layouts[branch].named(flat).items()}

    def is_shared(self, name: str) -> bool:
        return self.algorithm.shares(name) and block_of(name) not in own_blocks(
            self.algorithm, self.lora.layers
        )

    def rank(self, client_id: str) -> int | None:
        """A client's own rank, where ranks differ."""
        return self.ranks.get(client_id)

    def scales(self, client_id: str) -> dict[str, float]:
        """By what a client's scale of R differs from the full rank's: α over its own rank."""
        rank = self.rank(client_id)
        if rank is None or not self.algorithm.rank_scale:
            return {}
        return {"R": self.lora.layouts["R"].spec.rank / rank}

    def up(self, flats: Mapping[str, Tensor], client_id: str, round: int) -> dict[str, Tensor]:
        """Of one client's changes [P], what goes up: what is shared and was trained this round, at
        the client's own rank."""
        rank, trained = self.rank(client_id), self.algorithm.trained(round)
        shared = {n: t for n, t in self._all(flats) if self.is_shared(n) and is_part(n, trained)}
        return {n: cut(n, t, rank).cpu().clone() for n, t in shared.items()}

    def shared(self, flats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of one client's branches [P], what the server holds."""
        return {n: t.cpu().clone() for n, t in self._all(flats) if self.is_shared(n)}

    def private(self, flats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of one client's branches [P], what is its own and never leaves it."""
        personal = self.algorithm.personal()
        return {
            n: t.cpu().clone()
            for n, t in self._all(flats)
            if n.partition("/")[0] in personal and not self.is_shared(n)
        }

    def first(self) -> dict[str, Tensor]:
        """The shared tensors before round 1."""
        return self.shared({b: flat.to(self.dtype) for b, flat in self.start.items()})

    def assemble(self, *sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All branches [P] from named tensors; later sources win, `start` fills what none names. A
        tensor of a smaller rank is filled up with zeros, which training leaves at zero."""
        flats = dict[str, Tensor]()
        for branch, start in self.start.items():
            named = self.names(branch, start.to(self.device, self.dtype, copy=True))
            for source in sources:
                named.update(
                    {n: filled(t, named[n].shape) for n, t in source.items() if n in named}
                )
            plain = {n.partition("/")[2]: t for n, t in named.items()}
            flats[branch] = self.lora.layouts[branch].flat(plain, self.dtype, self.device)
        return flats

    def enter(
        self,
        shared: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        states: Sequence[Mapping[str, Tensor]],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K clients' branches as they are, to deploy or to train on, and a copy as an anchor.
        `shared`: the same for all, or what was sent to each."""
        sent = [shared] * len(states) if isinstance(shared, Mapping) else shared
        clients = [self.assemble(state, down) for state, down in zip(states, sent, strict=True)]
        flats = {b: torch.stack([branches[b] for branches in clients]) for b in self.start}
        return flats, {b: flat.clone() for b, flat in flats.items()}

    def begin(
        self, shared: Sequence[Mapping[str, Tensor]], states: Sequence[Mapping[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K clients' branches as a round begins, after `keep`, and the anchor of proximal terms."""
        if self.algorithm.keep == "persist":
            return self.enter(shared, states)
        flats, _ = self.enter(shared, [{} for _ in states])
        if self.algorithm.keep == "from_R":
            flats |= {b: flats["R"].clone() for b in self.algorithm.personal()}
        return flats, {b: flat.clone() for b, flat in flats.items()}

    def stack(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shared branches that a model wears, as one model [1, P]; SCAFFOLD's control, say, is
        shared and never worn."""
        flats = self.assemble(named)
        worn = {b for s in self.algorithm.stages for t in s.terms for b in split_mix(t.forward)}
        branches = worn.intersection(shared_branches(self.algorithm))
        return {b: flat[None] for b, flat in flats.items() if b in branches}

    def _all(self, flats: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        return [item for branch, flat in flats.items() for item in self.names(branch, flat).items()]


def cut(name: str, tensor: Tensor, rank: int | None) -> Tensor:
    """The part of A or B that a client of this rank has."""
    if rank is None or not name.startswith("R/"):
        return tensor
    return tensor[:rank] if name.endswith(".A") else tensor[:, :rank]


def own_blocks(algorithm: Algorithm, layers: Iterable[str]) -> range:
    """The model's blocks whose adapters stay with the client (FedPer)."""
    count = max(map(block_of, layers)) + 1
    return range(count - algorithm.local_blocks, count)


def block_of(name: str) -> int:
    """The number of the block that a layer belongs to; -1 outside all blocks."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else -1


def filled(tensor: Tensor, shape: torch.Size) -> Tensor:
    """At this shape: what a client of a smaller rank does not have is zero."""
    if tensor.shape == shape:
        return tensor
    full = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    full[: tensor.shape[0], : tensor.shape[1]] = tensor
    return full
