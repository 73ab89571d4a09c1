"""Measures: what each is called, which way is better, and which come first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedsdr.evaluate.comparison import DEFAULT_MEASURES
from fedsdr.evaluate.verdicts import BETTER

IN_NATS = ("loss", "training loss")
LOWER = (*IN_NATS, "perplexity")
WORST = "_worst"  # the measure of the client that fares worst
UNSEEN = "~unseen"  # a model scored on clients that never trained


def higher_is_better(measure: str) -> bool | None:
    """None for a measure that is neither, such as a length."""
    stem = measure.removesuffix(WORST)
    if stem in LOWER:
        return False
    known = BETTER.get(stem)
    return None if known is None else known == "higher"


def measures_of(scores: Iterable[Mapping[str, Mapping[str, float]]]) -> tuple[str, ...]:
    """Those a page shows, of scores by model: Atlas's four or the loss first, then the worst
    client's."""
    there = dict.fromkeys(m for of in scores for values in of.values() for m in values)
    first = [m for m in (*DEFAULT_MEASURES, "loss") if m in there]
    if not first:
        first = [m for m in there if not m.endswith(WORST)][:4]
    return tuple(dict.fromkeys([*first, *(m for m in there if m.endswith(WORST))]))


def in_words(measure: str) -> str:
    words = measure.removesuffix(WORST).replace("_", " ")
    return f"{words}, worst client" if measure.endswith(WORST) else words


def direction(measure: str) -> str:
    better = higher_is_better(measure)
    return "" if better is None else "higher is better" if better else "lower is better"


def axis_label(measure: str) -> str:
    hint, words = direction(measure), in_words(measure)
    if measure.removesuffix(WORST) in IN_NATS:
        words += ", nats per token"
    return f"{words} ({hint})" if hint else words


def model_in_words(mix: str) -> str:
    return f"{mix.removesuffix(UNSEEN)}, unseen clients" if mix.endswith(UNSEEN) else mix
