"""Scores of a model in the world: what it recalls of the private facts, what it kept of the public
ones, what it makes up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedsdr.atlas.federation import AtlasFederation, public_questions
from fedsdr.atlas.judge import Judgement, judge
from fedsdr.evaluate.scoring import Worn
from fedsdr.types import ClientData, Split


@dataclass(frozen=True, slots=True)
class AtlasScorer:
    """Answers are generated greedily and judged exactly. `validation` (training phrasings not
    trained on) picks the best round; `test` (held-out phrasings) is only reported."""

    federation: AtlasFederation
    public: int = 120
    max_new_tokens: int = 72
    best_on: str = field(default="recall")
    higher_is_better: bool = field(default=True)

    def score(
        self, model: Worn, clients: Sequence[ClientData], split: Split
    ) -> list[dict[str, float]]:
        asked = [c.validation if split == "validation" else c.test for c in clients]
        answers = model.answer(asked, self.max_new_tokens)
        truths = self.federation.truths
        scores = [
            summarise(
                [judge(truths[e.id], a) for e, a in zip(examples, texts, strict=True)],
                [truths[e.id].kind for e in examples],
            )
            for examples, texts in zip(asked, answers, strict=True)
        ]
        if split == "test" and self.public:
            for score, retention in zip(scores, self._retention(model, len(clients)), strict=True):
                score["retention"] = retention
        return scores

    def _retention(self, model: Worn, clients: int) -> list[float]:
        asked = public_questions(self.public)
        examples = [e for e, _q in asked]
        replies = model.answer([examples] * model.models, self.max_new_tokens)
        kept = [
            _share(judge(q, a).faithful for (_e, q), a in zip(asked, answers, strict=True))
            for answers in replies
        ]
        return kept * clients if model.models == 1 else kept


def summarise(judged: Sequence[Judgement], kinds: Sequence[str]) -> dict[str, float]:
    """Means over one client's answers."""
    by_kind = {
        k: [j for j, kind in zip(judged, kinds, strict=True) if kind == k] for k in set(kinds)
    }
    facts, several = by_kind.get("fact", []), by_kind.get("describe", [])
    score = {
        "recall": _share(j.right == j.asked and not j.wrong for j in facts),
        "hallucination": _share(j.hallucinated for j in judged),
        "redundancy": sum(j.redundancy for j in judged) / max(1, len(judged)),
        "house_share": _share(j.in_house for j in judged),
        "words": sum(j.words for j in judged) / max(1, len(judged)),
    }
    if several:
        score["omission"] = sum(j.missing for j in several) / sum(j.asked for j in several)
        score["recall_several"] = sum(j.right for j in several) / sum(j.asked for j in several)
    if orders := by_kind.get("order", []):
        score["ordering"] = _share(j.right == 1 for j in orders)
    return score


def faithful_shares(judged: Iterable[tuple[str, Judgement]]) -> Mapping[str, float]:
    """Share of strictly faithful texts, by kind of question."""
    kinds = dict[str, list[bool]]()
    for kind, judgement in judged:
        kinds.setdefault(kind, []).append(judgement.faithful)
    return {kind: _share(faithful) for kind, faithful in kinds.items()}


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0
