"""The nouns: a question, a benchmark's questions with their shots, a benchmark.

Raw few-shot text: shots are dropped from the end, one at a time, until the prompt fits.
"""

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


LONGEST = 2048  # tokens of a prompt alone, in the papers' protocol


@dataclass(frozen=True, slots=True)
class Prompt:
    """`cut`: even without shots it is longer than the model has room for."""

    text: str
    shots: int
    tokens: int
    cut: bool = False

    @property
    def digest(self) -> str:
        return text_digest(self.text)


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_limit(positions: int, max_new_tokens: int) -> int:
    """The protocol's 2,048 tokens, or what a smaller model has left beside its answer."""
    return min(LONGEST, positions - max_new_tokens)


def fit(
    questions: Questions, question: Question, count: Callable[[str], int], positions: int, new: int
) -> Prompt:
    limit, most = prompt_limit(positions, new), questions.most_shots(question)
    for shots in range(most, 0, -1):
        text = questions.prompt(question, shots)
        if (tokens := count(text)) <= limit:
            return Prompt(text, shots, tokens)
    # As the protocol has it, a question that is too long by itself is asked all the same.
    tokens = count(text := questions.prompt(question, 0))
    return Prompt(text, 0, tokens, cut=tokens > positions - new)
