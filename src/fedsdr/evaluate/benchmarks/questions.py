"""The nouns: a question, a benchmark's questions with their shots, a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fedsdr.data.text import opened
from fedsdr.distill.generate import Sampling


@dataclass(frozen=True, slots=True)
class Program:
    """What HumanEval runs with a completion: its prompt before, its checks after."""

    prompt: str
    test: str
    entry_point: str


@dataclass(frozen=True, slots=True)
class Question:
    """One item: `end` closes the prompt. `group` is MMLU's subject or BBH's config."""

    id: str
    end: str
    gold: str
    group: str = ""
    program: Program | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """All of one benchmark; headers and shots (as they stand in the prompt) go by group."""

    items: tuple[Question, ...]
    files: tuple[Path, ...]
    shots: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: dict[str, tuple[str, ...]]()
    )
    headers: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())

    def prompt(self, question: Question, shots: int) -> str:
        few = self.shots.get(question.group, ())[:shots]
        return self.headers.get(question.group, "") + "".join(few) + question.end

    def most_shots(self, question: Question) -> int:
        return len(self.shots.get(question.group, ()))

    @property
    def digest(self) -> str:
        """sha256 over the files, byte by byte."""
        sha = hashlib.sha256()
        for file in self.files:
            with opened(file) as stream:
                sha.update(hashlib.file_digest(cast("Any", stream), "sha256").digest())
        return sha.hexdigest()


Grade = Callable[[Question, str], float]
Measures = Callable[[Sequence[Question], Sequence[str]], Mapping[str, float]]


def no_more(questions: Sequence[Question], answers: Sequence[str]) -> Mapping[str, float]:
    """The mean of the grades says it all."""
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """`source` says whose protocol it is. With `by_group` the score is the mean of the groups'
    means (BBH). One without `grade` is scored by running what the model wrote."""

    name: str
    source: str
    sampling: Sampling
    read: Callable[[Path], Questions]
    grade: Grade | None
    by_group: bool = False
    measures: Measures = no_more
