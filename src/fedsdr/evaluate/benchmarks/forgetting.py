"""What federation made the base forget: base against adapter on the same items."""

from __future__ import annotations

from dataclasses import dataclass

from fedsdr.evaluate.benchmarks.session import Scored
from fedsdr.evaluate.statistics import paired_bootstrap


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """`difference`: the adapter's score minus the base's, with its paired 95 % interval."""

    task: str
    mix: str
    n: int
    base: float
    score: float
    difference: float
    interval: tuple[float, float] | None

    @property
    def words(self) -> str:
        figures = f"{self.task}: base {self.base:.3f}, {self.mix} {self.score:.3f}"
        if self.interval is None:
            return f"{figures}; one item shows nothing."
        low, high = self.interval
        if low == high == 0:
            return f"{figures}: the same on each of {self.n} items."
        moved = f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        if high < 0:
            return f"{figures}: forgotten, {moved}."
        if low > 0:
            return f"{figures}: gained, {moved}."
        return f"{figures}: no difference that holds up, {moved}."


def forgetting(mix: str, base: Scored, other: Scored) -> Forgetting | None:
    """None where either was not scored."""
    if base.score is None or other.score is None:
        return None
    groups = other.groups if other.benchmark.by_group else None
    left = list(other.grades.values())
    right = [base.grades[item] for item in other.grades]
    difference, interval = paired_bootstrap(left, right, groups)
    return Forgetting(
        task=other.benchmark.name,
        mix=mix,
        n=other.n,
        base=base.score,
        score=other.score,
        difference=difference,
        interval=interval,
    )
