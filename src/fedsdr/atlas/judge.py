"""Exact measures on any text: because the world is closed, what is false in an answer can be
counted.

The same judge reads rewrites of training answers and answers of trained models.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

from fedsdr.atlas.styles import FILLERS, HOUSE, STYLES, say, style_of
from fedsdr.atlas.world import (
    DOMAINS,
    PHRASINGS,
    Question,
    ask_describe,
    ask_fact,
    ask_order,
    public_entities,
    rng,
)

_WORD = re.compile(r"[^\W\d_]+")
VALUES = {v.lower(): a for d in DOMAINS for a, vs in d.attributes.items() for v in vs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Counts over one text. An asked attribute is right, wrong (also when a right value stands
    beside a wrong one), or missing; `invented` are values or names that the truth does not hold."""

    asked: int
    right: int
    wrong: int
    missing: int
    invented_values: int
    invented_names: int
    words: int
    filler_words: int
    repeated_words: int
    style: str

    @property
    def hallucinated(self) -> bool:
        return self.wrong + self.invented_values + self.invented_names > 0

    @property
    def faithful(self) -> bool:
        """Strictly: everything asked is there, nothing false is."""
        return self.right == self.asked and not self.hallucinated

    @property
    def redundancy(self) -> float:
        """Share of the words that are filler or say again what was said."""
        return (
            min(1.0, (self.filler_words + self.repeated_words) / self.words) if self.words else 0.0
        )

    @property
    def in_house(self) -> bool:
        return self.style == HOUSE


def judge(question: Question, text: str) -> Judgement:
    words = _WORD.findall(text)
    if question.kind == "order":
        right, wrong, missing = _judge_order(question, text)
        wrong_or_invented = set[str]()
    else:
        right, wrong, missing, wrong_or_invented = _judge_values(question, words)
    unknown = [w for w in words if w.lower() not in known_words() and w != question.name]
    filler = sum(text.lower().count(f.lower()) * len(_WORD.findall(f)) for f in FILLERS)
    return Judgement(
        asked=1 if question.kind == "order" else len(question.asked),
        right=right,
        wrong=wrong,
        missing=missing,
        invented_values=len(wrong_or_invented) + len({w for w in unknown if w[0].islower()}),
        invented_names=len({w for w in unknown if not w[0].islower()}),
        words=len(words) + len(re.findall(r"\d+", text)),
        filler_words=filler,
        repeated_words=_repeated(words),
        style=style_of(text),
    )


def verdict(question: Question, text: str) -> str:
    """The worst that there is to say, in two words."""
    judgement = judge(question, text)
    if judgement.wrong:
        return "wrong order" if question.kind == "order" else "wrong value"
    if judgement.invented_values:
        return "invented value"
    if judgement.invented_names:
        return "invented name"
    return "incomplete" if judgement.missing else "faithful"


def _judge_values(question: Question, words: list[str]) -> tuple[int, int, int, set[str]]:
    """Right, wrong, missing among the asked attributes, and the false values of other
    attributes."""
    stated: dict[str, set[str]] = {}
    for word in words:
        if (attribute := VALUES.get(word.lower())) is not None:
            stated.setdefault(attribute, set()).add(word.lower())
    right = wrong = missing = 0
    for attribute, value in question.asked:
        values = stated.pop(attribute, set())
        right += values == {value.lower()}
        wrong += bool(values - {value.lower()})
        missing += not values
    truth = {v.lower() for _a, v in question.facts}
    return right, wrong, missing, {v for values in stated.values() for v in values} - truth


def _judge_order(question: Question, text: str) -> tuple[int, int, int]:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    right = numbers == sorted(question.numbers)
    return int(right), int(bool(numbers) and not right), int(not numbers)


def _repeated(words: list[str]) -> int:
    """Words that end a trigram already seen in this text."""
    lower = [w.lower() for w in words]
    trigrams = Counter(zip(lower, lower[1:], lower[2:], strict=False))
    return sum(n - 1 for n in trigrams.values())


@cache
def known_words() -> frozenset[str]:
    """Every word that a style may use, and every value; names are not among them."""
    known = set(VALUES)
    entities = public_entities()
    for domain in DOMAINS:
        known |= {domain.kind, *(a.lower() for a in domain.attributes)}
    for style in STYLES:
        for draw in range(40):
            random = rng("known", style, draw)
            entity = entities[random.randrange(len(entities))]
            attribute = random.choice(list(entity.facts))
            for question in (
                ask_fact(entity, attribute, PHRASINGS["fact"][0]),
                ask_describe(entity, PHRASINGS["describe"][0]),
                ask_order((1, 2, 3), PHRASINGS["order"][0]),
            ):
                known |= {w.lower() for w in _WORD.findall(say(question, style, random))}
                known.discard(entity.name.lower())
    return frozenset(known)
