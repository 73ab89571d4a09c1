"""The gate: no update counts before it has passed here, in process or over a wire.

What a client may say of itself in an update: how much it weighs, and how its training went.

A server cannot see a client's rows. What it knows is with how many the client enrolled, and what
it was ordered to do; whatever is claimed beyond that is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fedsdr.errors import UpdateRefused, shown
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings, of_stage, stage_steps, term_losses
from fedsdr.tensors import fault
from fedsdr.types import Report, Tensors, Update

METRIC = re.compile(  # "loss_2": of the 2nd stage, "loss_2_3": of its 3rd term
    r"examples|(steps|tokens)(_[1-9][0-9]?)?|loss(_[1-9][0-9]?){0,2}"
)
LARGEST_LOSS = 1e6  # nats per token: exp(−loss) was 0 long before


@dataclass(frozen=True, slots=True)
class Span:
    """From `least` to `most`, both included; `whole`: a count."""

    least: float
    most: float
    whole: bool = False

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most and (not self.whole or value == int(value))

    def __str__(self) -> str:
        number = "a whole number" if self.whole else "a number"
        if self.least == self.most:
            return f"{self.least:g}"
        return f"{number} from {self.least:g} to {self.most:g}"


LOSS, COUNT = Span(0.0, LARGEST_LOSS), Span(0, 1e12, whole=True)
# The least is far below any share of a whole, and far above where sums of weighted changes would
# lose their digits; the most is more rows than anybody has.
WEIGHT = Span(1e-6, 1e9)


@dataclass(frozen=True, slots=True)
class Claims:
    """What one client may say in one round. Without `metrics` nobody knows what it was ordered to
    do: it may leave out any, and is held to what no client can exceed."""

    weight: Span = WEIGHT
    metrics: Mapping[str, Span] | None = None

    def span(self, metric: str) -> Span | None:
        """None for a metric that may not be sent."""
        if self.metrics is not None:
            return self.metrics.get(metric)
        if not METRIC.fullmatch(metric):
            return None
        return LOSS if metric.startswith("loss") else COUNT


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A client as it enrolled: with so many rows of at most `longest` tokens. With `equal` weights
    all clients count alike, whatever they have."""

    examples: int
    training: LocalSettings
    longest: int
    equal: bool = False

    def claims(self, algorithm: Algorithm, round: int) -> Claims:
        """Exactly its rows, and a loss, steps and tokens of every stage that runs."""
        weight = 1.0 if self.equal else float(self.examples)
        metrics = {loss.metric: LOSS for loss in term_losses(algorithm, round)}
        metrics["examples"] = Span(self.examples, self.examples, whole=True)
        for number, stage in enumerate(algorithm.stages):
            if stage.when(round):
                steps = stage_steps(self.examples, stage, self.training)
                tokens = steps * self.training.batch * self.longest
                metrics[of_stage("steps", number)] = Span(0, steps, whole=True)
                metrics[of_stage("tokens", number)] = Span(0, tokens, whole=True)
        return Claims(Span(weight, weight), metrics)


LARGEST = 1e6  # beyond it, a change of an adapter is no training result but an overflow to be


@dataclass(frozen=True, slots=True)
class Expected:
    """What an update of this round has to be."""

    run: str
    round: int
    base_digest: str
    shared: Mapping[str, Tensors]  # of every client that was asked
    claims: Mapping[str, Claims] = field(default_factory=lambda: dict[str, Claims]())  # if known


def admit(update: object, expected: Expected, seen: Collection[str] = ()) -> Update:
    """The update itself, or `UpdateRefused` naming client, tensor and reason."""
    claimed = cast(Any, update)  # its types are what a stranger says they are
    who = claimed.client_id if isinstance(update, Update | Report) else None

    def refuse(reason: str, tensor: str | None = None) -> UpdateRefused:
        return UpdateRefused(who[:80] if isinstance(who, str) else shown(who), reason, tensor)

    if not isinstance(who, str) or who not in expected.shared:
        raise refuse("this client was not asked in this round")
    if not isinstance(update, Update):
        raise refuse("it is no update")
    if who in seen:
        raise refuse("a second update of this client in one round")
    if claimed.run != expected.run:
        raise refuse("it belongs to another run")
    if type(claimed.round) is not int or claimed.round != expected.round:
        raise refuse(f"it does not belong to round {expected.round}")
    if claimed.base_digest != expected.base_digest:
        raise refuse("it was trained on another base model")
    if not _is_finite(claimed.weight):
        raise refuse(f"weight {shown(claimed.weight)} is no finite number")
    if claimed.weight <= 0:
        raise refuse(f"weight {claimed.weight} is not above 0")
    claims = expected.claims.get(who, Claims())
    if not claims.weight.holds(claimed.weight):
        raise refuse(f"weight {claimed.weight:g} is not what this client weighs, {claims.weight}")
    metrics, shared = _mapping(claimed.metrics), _mapping(claimed.shared)
    if metrics is None:
        raise refuse("its metrics are no mapping of names to numbers")
    for name, value in metrics.items():
        span = claims.span(name) if isinstance(name, str) else None
        if span is None:
            raise refuse(f"metric {shown(name)} is not on the list of what may be sent")
        if not _is_finite(value):
            raise refuse(f"metric {name!r} is no finite number")
        if not span.holds(value):
            raise refuse(f"metric {name!r} is {value:g}; it must be {span}")
    for name in claims.metrics or ():
        if name not in metrics:
            raise refuse(f"metric {name!r} is missing")
    if shared is None:
        raise refuse("what it shares is no mapping of names to tensors")
    wanted = expected.shared[who]
    for name in wanted:
        if name not in shared:
            raise refuse("missing", name)
    for name, tensor in shared.items():
        if name not in wanted:
            raise refuse("not asked for", name[:200] if isinstance(name, str) else shown(name))
        want = wanted[name]
        if wrong := fault(tensor, want.shape, want.dtype, LARGEST):
            raise refuse(wrong, name)
    return update


def _mapping(value: object) -> Mapping[Any, Any] | None:
    return cast(Mapping[Any, Any], value) if isinstance(value, Mapping) else None


def _is_finite(value: object) -> bool:
    """A plain number that a double can hold: math.isfinite raises on integers beyond that."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN
