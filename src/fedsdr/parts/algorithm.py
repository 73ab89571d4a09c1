"""An algorithm is data: stages of terms, what is shared, how it is combined, what is deployed.

    fedavg = Algorithm("fedavg", stages=(Stage((Term(Raw(), forward="R", train="R"),)),))
    fedsdr = two stages of which one branch is shared

The loop, the training loop and the transports are written once and know no algorithm by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedsdr.parts.combine import Combine, Mean
from fedsdr.parts.objectives import CrossEntropy, Objective
from fedsdr.parts.views import View


@dataclass(frozen=True, slots=True)
class Fade:
    """Weakens a branch while a term trains: a fixed factor, and a chance per client and step to be
    off."""

    branch: str
    scale: float = 1.0
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Term:
    """One loss: on which view, through which branches ("R+S"), training which ("R", "R.B")."""

    view: View
    forward: str
    train: str
    objective: Objective = field(default_factory=CrossEntropy)
    weight: float = 1.0
    fade: Fade | None = None


@dataclass(frozen=True, slots=True)
class When:
    """The rounds (from 1) in which a stage runs: from `first` to `last`, every `every`-th of
    these."""

    first: int = 1
    last: int | None = None
    every: int = 1

    def __call__(self, round: int) -> bool:
        past = self.last is not None and round > self.last
        return round >= self.first and not past and (round - self.first) % self.every == 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Terms trained together, with a fresh optimiser. `epochs` None: the recipe's local epochs,
    times `part`."""

    terms: tuple[Term, ...]
    when: When = When()
    epochs: float | None = None
    part: float = 1.0


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`share` names what goes up and comes down ("R", "R+S", "R.B", or nothing); every other
    trained branch is personal and stays with its client, where `keep` says how it enters the next
    round. `deploys` names the mixes that are evaluated and saved. `pool` puts all data in one place
    first (the
    centralised
    reference)."""

    name: str
    stages: tuple[Stage, ...]
    share: str = "R"
    deploys: Mapping[str, str] = field(default_factory=lambda: {"global": "R"})
    combine: Combine = field(default_factory=Mean)
    keep: Literal["persist", "reset", "from_R"] = "persist"
    pool: bool = False

    def branches(self) -> tuple[str, ...]:
        """All branches that occur, in order of first use."""
        found = dict[str, None]()
        for stage in self.stages:
            for term in stage.terms:
                found.update(dict.fromkeys(split_mix(term.forward)))
        found.update(dict.fromkeys(shared_branches(self)))
        for mix in self.deploys.values():
            found.update(dict.fromkeys(split_mix(mix)))
        return tuple(found)

    def personal(self) -> tuple[str, ...]:
        return tuple(b for b in self.branches() if b not in shared_branches(self))


def split_mix(text: str) -> tuple[str, ...]:
    """`"R+S.B"` -> `("R", "S.B")`; the empty mix is the base alone."""
    return tuple(part.strip() for part in text.split("+") if part.strip())


def shared_branches(algorithm: Algorithm) -> tuple[str, ...]:
    return tuple(part.partition(".")[0] for part in split_mix(algorithm.share))
