"""Raw few-shot text: shots are dropped from the end, one at a time, until the prompt fits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from fedsdr.evaluate.benchmarks.questions import Question, Questions

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
