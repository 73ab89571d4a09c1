"""What a plan holds: everything that `fedsdr plan` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens."""

    median: float
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    """One client's data; lengths are of its training rows, before anything is cut."""

    client_id: str
    train: int
    validation: int
    test: int
    domains: Mapping[str, int]
    prompt: Lengths
    response: Lengths
    truncated: int  # rows that lose the end of their response to max_length
    trained_tokens: int
    left_out: int  # rows of any part that do not fit, where data.overlong is drop


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    path: str
    parameters: int
    dtype: str
    device: str
    digest: str
    template: str  # where the chat template comes from
    layers: tuple[str, ...]  # that get branches
    trainable: Mapping[str, int]  # branch -> parameters of one client


@dataclass(frozen=True, slots=True)
class AlgorithmRow:
    name: str
    stages: tuple[str, ...]  # in words
    shared: str
    stays: str
    deploys: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of tensors: `*_client` and `*_round` in the round with the most, `total` both ways over
    all."""

    up_client: int
    down_client: int
    up_round: int
    down_round: int
    total: int


@dataclass(frozen=True, slots=True)
class RewritingWork:
    """`drafts` is the most that can be needed: a cache, or `resample` passing early, saves some."""

    examples: int
    draws: int
    drafts: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. Base and branches are counted, activations are an estimate for the longest rows."""

    base: int
    branches: int
    activations: int

    @property
    def total(self) -> int:
        return self.base + self.branches + self.activations


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds, an estimate: steps are timed on the clients with the longest rows, rewriting on a
    few tokens, the rewrites taken to be as long as the responses. Evaluation is not in it.

    On paper, steps are counted in FLOPs at the rate that was given, over rows of mean length."""

    step: tuple[float, ...]  # per stage: one step of the K clients of a group
    training: float
    rewriting: float | None  # None where it was not estimated


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`example` is record text, the tokens of one training row with whether each is trained: it is
    in no repr and not in `plan_json`."""

    clients: tuple[ClientRow, ...]
    notes: tuple[str, ...]
    model: ModelRow
    algorithm: AlgorithmRow
    rounds: int
    sampled: int  # clients per round
    stack: int  # of these, trained side by side
    traffic: Traffic
    steps: Mapping[str, tuple[int, ...]]  # who trains -> optimiser steps per stage of a round
    total_steps: int
    rewriting: RewritingWork
    memory: Memory
    duration: Duration | None  # None where nothing was tried: there are problems, or no rate
    problems: tuple[str, ...]
    example: tuple[tuple[str, bool], ...] = field(repr=False)


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, without any record text."""
    return {name: value for name, value in asdict(plan).items() if name != "example"}
