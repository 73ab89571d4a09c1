"""What a client may say of itself in an update: how much it weighs, and how its training went.

A server cannot see a client's rows. What it knows is with how many the client enrolled, and what
it was ordered to do; whatever is claimed beyond that is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings, stage_steps
from fedsdr.parts.losses import of_stage, term_losses

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
