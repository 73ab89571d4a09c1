"""How like its reference an answer is: ROUGE-L and exact match, on clients' own held-out rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedsdr.data.render import render_prompt
from fedsdr.evaluate.scoring import HeldOutLoss, Scorer, Worn
from fedsdr.types import ClientData, Example, Split

# Scripts that write no spaces count character by character.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


def rouge_l(reference: str, answer: str) -> float:
    """F1 of the longest common subsequence of words: 2·LCS / (m + n) (Lin, 2004, with β = 1). Lower
    case, without punctuation; two texts without words are alike."""
    left, right = _words(reference), _words(answer)
    if not left and not right:
        return 1.0
    return 2 * _common(left, right) / (len(left) + len(right))


def exact_match(reference: str, answer: str) -> float:
    """The same but for white space."""
    return float(reference.split() == answer.split())


@dataclass(frozen=True, slots=True)
class WithAnswers:
    """Another scorer's measures, and beside them the held-out loss and what the models' answers
    are like. Nothing that is answered is kept: the rows are the clients' own."""

    inner: Scorer
    max_new_tokens: int

    @property
    def best_on(self) -> str:
        return self.inner.best_on

    @property
    def higher_is_better(self) -> bool:
        return self.inner.higher_is_better

    def score(
        self, model: Worn, clients: Sequence[ClientData], split: Split
    ) -> list[dict[str, float]]:
        examples = [c.validation if split == "validation" else c.test for c in clients]
        answers = model.answer(examples, self._new_tokens(model, examples))
        return [
            {**loss, **inner, **likeness([e.response for e in rows], texts)}
            for loss, inner, rows, texts in zip(
                HeldOutLoss().score(model, clients, split),
                self.inner.score(model, clients, split),
                examples,
                answers,
                strict=True,
            )
        ]

    def _new_tokens(self, model: Worn, examples: Sequence[Sequence[Example]]) -> int:
        base = model.lora.base
        longest = max((len(render_prompt(base, e)) for rows in examples for e in rows), default=0)
        return max(1, min(self.max_new_tokens, base.max_length - longest))


def likeness(references: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Means over one client's rows; nothing where there are none."""
    pairs = list(zip(references, answers, strict=True))
    if not pairs:
        return {}
    return {
        "rouge_l": sum(rouge_l(*pair) for pair in pairs) / len(pairs),
        "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, row by row."""
    above = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(above[place] + 1 if word == other else max(row[-1], above[place + 1]))
        above = row
    return above[-1]
