"""An algorithm is data: stages of terms, what is shared, how it is combined, what is deployed.

    fedavg = Algorithm("fedavg", stages=(Stage((Term(Raw(), forward="R", train="R"),)),))
    fedsdr = two stages of which one branch is shared

The loop, the training loop and the transports are written once and know no algorithm by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from fedsdr.errors import RecipeError
from fedsdr.parts.combine import Combine, Downlink, Filter, Mean, Same
from fedsdr.parts.mix import is_part, refuse_weights, weights_of
from fedsdr.parts.moves import EVERY_ROUND, Move, When
from fedsdr.parts.objectives import CrossEntropy, Objective
from fedsdr.parts.views import Mixed, Rewritten, View
from fedsdr.types import FOLD


@dataclass(frozen=True, slots=True)
class Fade:
    """Weakens a branch while a term trains: a fixed factor, and a chance per client and step to be
    off."""

    branch: str
    scale: float = 1.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or not 0 <= self.dropout <= 1:
            raise RecipeError(
                f"{self.branch} is to fade to {self.scale}, off at {self.dropout} of the steps: "
                "the first must be finite, the second lie between 0 and 1"
            )


@dataclass(frozen=True, slots=True)
class Blend:
    """While a term runs, `into` is old + (new − old) ⊙ weights, each of these a branch (FedALA)."""

    into: str
    old: str
    weights: str


@dataclass(frozen=True, slots=True)
class PerInput:
    """A deployed mix whose branch `gated` counts as much as the input looks like the client's own
    data: `highest` times the mean cosine between the last hidden state of the prompt and those of
    `prompts` of its training prompts, the other branches count for what is left (FedDPA)."""

    mix: str
    gated: str
    highest: float = 0.5
    prompts: int = 5

    def __post_init__(self) -> None:
        if self.gated not in weights_of(self.mix):
            raise RecipeError(f"mix {self.mix!r}: it has no {self.gated} to weigh by the input")
        if not 0 <= self.highest <= 1 or self.prompts < 1:
            raise RecipeError(
                f"mix {self.mix!r}: {self.gated} is to count up to {self.highest} by "
                f"{self.prompts} prompts: the first must lie between 0 and 1, the second be above 0"
            )


@dataclass(frozen=True, slots=True)
class Rule:
    """A stage's own optimiser in place of the recipe's; `bounds`: every number is kept within."""

    optimizer: Literal["adamw", "sgd"]
    lr: float | None = None
    clip: float | None = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One loss: on which view, through which branches ("R+S", "0.5*R+0.5*L"), training which
    ("R", "R.B")."""

    view: View
    _: KW_ONLY
    forward: str
    train: str
    objective: Objective = field(default_factory=CrossEntropy)
    weight: float = 1.0
    fade: Fade | None = None
    blend: Blend | None = None

    def __post_init__(self) -> None:
        weights_of(self.forward)  # a typing error shows here, not in the middle of a round
        refuse_weights("train", self.train)
        if not math.isfinite(self.weight):
            raise RecipeError(f"train {self.train!r}: its weight must be finite, not {self.weight}")


@dataclass(frozen=True, slots=True)
class Stage:
    """Terms trained together, with a fresh optimiser. `epochs` None: the recipe's local epochs,
    times `part`. `before` and `after` move whole branches without training them."""

    terms: tuple[Term, ...]
    _: KW_ONLY
    when: When = EVERY_ROUND
    epochs: float | None = None
    part: float = 1.0
    rule: Rule | None = None
    before: tuple[Move, ...] = ()
    after: tuple[Move, ...] = ()

    def trains(self) -> set[str]:
        """The parts ("R", "S.B") that it trains."""
        return {part for t in self.terms if t.weight for part in split_mix(t.train)}

    def moves(self) -> set[str]:
        """The branches that are replaced before or after."""
        return {move.into for move in (*self.before, *self.after)}


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`share` names what goes down and, where a round trains it, up ("R", "R+S", "R.B", or
    nothing). Whatever else is trained is personal and stays with its client, where `keep` says how
    it enters the next round; with `local_blocks`, so do the adapters of the model's last so many
    blocks. `starts` names branches that begin otherwise than at random: as another branch, "zero"
    or "one". `deploys` names the mixes that are evaluated and saved. `pool` puts all data in one
    place first (the centralised reference).

    Ranks may differ between clients where `any_rank`; with `rank_scale` a client's scale is α over
    its own rank.
    """

    name: str
    stages: tuple[Stage, ...]
    _: KW_ONLY
    share: str = "R"
    deploys: Mapping[str, str | PerInput] = field(default_factory=lambda: {"global": "R"})
    combine: Combine = field(default_factory=Mean)
    filters: tuple[Filter, ...] = ()
    downlink: Downlink = field(default_factory=Same)
    keep: Literal["persist", "reset", "from_R"] = "persist"
    starts: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    local_blocks: int = 0
    any_rank: bool = False
    rank_scale: bool = False
    pool: bool = False

    def __post_init__(self) -> None:
        refuse_weights("share", self.share)
        for mix in self.deploys.values():
            mix_weights(mix)

    def branches(self) -> tuple[str, ...]:
        """All branches that clients hold, in order of first use."""
        branches = dict[str, None]()
        for stage in self.stages:
            for term in stage.terms:
                branches.update(dict.fromkeys(split_mix(term.forward)))
        branches.update(dict.fromkeys(shared_branches(self)))
        for mix in self.deploys.values():
            branches.update(dict.fromkeys(split_mix(mix)))
        branches.update(dict.fromkeys(self.starts))
        return tuple(branch for branch in branches if branch != FOLD)

    def personal(self) -> tuple[str, ...]:
        """The branches of which a client keeps a part, or all, to itself."""
        changed = set[str]().union(*(s.trains() | s.moves() for s in self.stages))
        return tuple(b for b in self.branches() if self._is_personal(b, changed))

    def is_personal(self, mix: str | PerInput) -> bool:
        """Whether every client has a model of its own by this mix."""
        return isinstance(mix, PerInput) or bool(set(split_mix(mix)) & set(self.personal()))

    def rewritten_views(self) -> list[Rewritten]:
        """Of all terms, in their order."""
        views = [term.view for stage in self.stages for term in stage.terms]
        inner = [view.rewritten if isinstance(view, Mixed) else view for view in views]
        return [view for view in inner if isinstance(view, Rewritten)]

    def shares(self, name: str) -> bool:
        """Whether a tensor ("R/<layer>.A") is of what goes up."""
        return is_part(name, split_mix(self.share))

    def folds(self) -> bool:
        """Whether the server's rule changes the base (through the branch P)."""
        return any(FOLD in split_mix(mix) for mix in self.deploys.values())

    def trained(self, round: int) -> set[str]:
        """The parts ("R", "R.B") that this round trains or moves."""
        now = [stage for stage in self.stages if stage.when(round)]
        return set[str]().union(*(s.trains() for s in now)) | {
            m.into for s in now for m in (*s.before, *s.after) if m.when(round)
        }

    def _is_personal(self, branch: str, trained: set[str]) -> bool:
        shared = set(split_mix(self.share))
        if branch in shared:
            return self.local_blocks > 0 and branch != FOLD
        halves = {f"{branch}.{half}" for half in "AB"}
        if halves & shared:  # half of it is shared: is the other half ever trained?
            rest = (halves - shared) & trained
            return bool(rest) or (branch in trained and not halves <= shared)
        return True


def split_mix(mix: str | PerInput) -> tuple[str, ...]:
    """`"R+0.5*S"` -> `("R", "S")`; the empty mix is the base alone."""
    return tuple(mix_weights(mix))


def mix_weights(mix: str | PerInput) -> dict[str, float]:
    """`"R+0.5*S"` -> `{"R": 1.0, "S": 0.5}`."""
    return weights_of(mix.mix if isinstance(mix, PerInput) else mix)


def shared_branches(algorithm: Algorithm) -> tuple[str, ...]:
    return tuple(part.partition(".")[0] for part in split_mix(algorithm.share))
