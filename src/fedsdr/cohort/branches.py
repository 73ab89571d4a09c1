"""Between names and stacks: which tensors of an algorithm's branches are shared, and which stay at
home.

On the wire and on disk a tensor is called "R/<layer>.A"; while training, a branch is one [K, P]
block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.errors import RecipeError
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Algorithm, split_mix


@dataclass(frozen=True, slots=True)
class Branches:
    lora: StackedLora
    algorithm: Algorithm
    start: Mapping[str, Tensor]  # branch -> [P]: how a client begins where nothing else is known
    dtype: torch.dtype = torch.float32

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
        branch, half = name.partition("/")[0], name.rpartition(".")[2]
        return any(part in (branch, f"{branch}.{half}") for part in split_mix(self.algorithm.share))

    def shared(self, flats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of one client's branches [P], what goes up."""
        return {n: t.cpu().clone() for n, t in self._all(flats) if self.is_shared(n)}

    def private(self, flats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of one client's branches [P], what never does."""
        return {n: t.cpu().clone() for n, t in self._all(flats) if not self.is_shared(n)}

    def first(self) -> dict[str, Tensor]:
        """The shared tensors before round 1."""
        return self.shared({b: flat.to(self.dtype) for b, flat in self.start.items()})

    def assemble(self, *sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All branches [P] from named tensors; later sources win, `start` fills what none names."""
        flats = dict[str, Tensor]()
        for branch, start in self.start.items():
            named = self.names(branch, start.to(self.device, self.dtype, copy=True))
            for source in sources:
                named.update({n: t for n, t in source.items() if n in named})
            plain = {n.partition("/")[2]: t for n, t in named.items()}
            flats[branch] = self.lora.layouts[branch].flat(plain, self.dtype, self.device)
        return flats

    def enter(
        self, shared: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K clients' branches as they are, to deploy or to train on, and a copy as an anchor."""
        own = [self.assemble(state, shared) for state in states]
        flats = {b: torch.stack([one[b] for one in own]) for b in self.start}
        return flats, {b: flat.clone() for b, flat in flats.items()}

    def begin(
        self, shared: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """K clients' branches as a round begins, after `keep`, and the anchor of proximal terms."""
        if self.algorithm.keep == "persist":
            return self.enter(shared, states)
        flats, _ = self.enter(shared, [{} for _ in states])
        if self.algorithm.keep == "from_R":
            flats |= {b: flats["R"].clone() for b in self.algorithm.personal()}
        return flats, {b: flat.clone() for b, flat in flats.items()}

    def stack(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shared branches alone, as one model [1, P]."""
        flats = self.assemble(named)
        branches = {part.partition(".")[0] for part in split_mix(self.algorithm.share)}
        return {b: flat[None] for b, flat in flats.items() if b in branches}

    def _all(self, flats: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        return [item for branch, flat in flats.items() for item in self.names(branch, flat).items()]
