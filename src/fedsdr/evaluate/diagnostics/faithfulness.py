"""What rewriting did to a client's answers, before against after: length, repetition, filler;
numbers, names, negations and final answers lost or invented; entailment, where a classifier is
named. Counts and shares only, never text.

Rewrites that are there already, from files: each row an id and the answer as rewritten.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

from fedsdr.data.files import read_rows
from fedsdr.data.row import Row
from fedsdr.distill.checks import (
    Redundancy,
    leaks,
    length_ratio,
    lost_answer,
    prompt_text,
    redundancy,
    unsupported_share,
)
from fedsdr.errors import DataError
from fedsdr.evaluate.diagnostics.tables import rounded
from fedsdr.tensors import rng_sample
from fedsdr.text.checkable import call, final_answer, looks_like_code
from fedsdr.text.facts import FactDifference, compare_facts
from fedsdr.text.names import words
from fedsdr.types import Example

ENTAILED = 0.5  # the probability from which a text counts as entailed


@dataclass(frozen=True, slots=True)
class Rewrite:
    """An example, its answer as rewritten, and whether that is what is trained on."""

    example: Example
    text: str
    kept: bool = True

    @property
    def changed(self) -> bool:
        return self.text != self.example.response


class Entailing(Protocol):
    def entailments(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """Of each premise and hypothesis, how likely the one entails the other."""
        ...


def audit(
    rewrites: Sequence[Rewrite], judge: Entailing | None = None, examples: int = 64, seed: int = 0
) -> dict[str, Any]:
    """Of one client: all rows, and those that rewriting changed. `judge` reads at most `examples`
    of the changed ones."""
    changed = [row for row in rewrites if row.changed]
    figures: dict[str, Any] = {
        "rows": len(rewrites),
        "changed": rounded(len(changed) / len(rewrites)) if rewrites else None,
        "kept": rounded(fmean(row.kept for row in rewrites)) if rewrites else None,
        "all": _measured(rewrites),
        "changed_rows": _measured(changed),
    }
    if judge is not None:
        at = {row.example.id: row for row in changed}
        chosen = rng_sample(sorted(at), examples, seed, "diagnosis", "entailment")
        figures["entailment"] = _entailment([at[i] for i in chosen], judge)
    return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """One rewrite, measured."""

    before: Redundancy
    after: Redundancy
    facts: FactDifference
    ratio: float
    distinct_1: tuple[float, float]
    unsupported: float
    leaking: bool
    answer: bool  # the original has an answer that can be extracted
    answer_lost: bool


def _pair(row: Rewrite) -> _Pair:
    original, rewrite, prompt = row.example.response, row.text, prompt_text(row.example)
    return _Pair(
        before=redundancy(original),
        after=redundancy(rewrite),
        facts=compare_facts(original, rewrite, prompt),
        ratio=length_ratio(original, rewrite),
        distinct_1=(_distinct(original), _distinct(rewrite)),
        unsupported=unsupported_share(original, rewrite, prompt),
        leaking=bool(set(leaks(rewrite)) - set(leaks(original))),
        answer=_has_answer(original),
        answer_lost=bool(lost_answer(original, rewrite)),
    )


def _measured(rewrites: Sequence[Rewrite]) -> dict[str, float | None] | None:
    """Medians, means and shares over rows; of an answer that is not there, over those with one."""
    if not rewrites:
        return None
    pairs = [_pair(row) for row in rewrites]
    facts = [p.facts for p in pairs]
    answers = [p for p in pairs if p.answer]
    texts = {"before": [p.before for p in pairs], "after": [p.after for p in pairs]}
    figures = {
        "rows": float(len(pairs)),
        "length_ratio": median(p.ratio for p in pairs),
        "longer_than_twice": fmean(p.ratio > 2 for p in pairs),
    }
    for side, (when, redundancies) in enumerate(texts.items()):
        figures |= {
            f"words_{when}": fmean(t.words for t in redundancies),
            f"distinct_1_{when}": fmean(p.distinct_1[side] for p in pairs),
            f"distinct_2_{when}": fmean(t.distinct_2 for t in redundancies),
            f"repeated_4_{when}": fmean(t.repeated_4 for t in redundancies),
            f"compression_{when}": fmean(t.compression for t in redundancies),
            f"filler_per_1000_{when}": 1000 * sum(t.filler for t in redundancies)
            / max(1, sum(t.words for t in redundancies)),
        }  # fmt: skip
    figures |= {
        "unsupported": fmean(p.unsupported for p in pairs),
        "leaking": fmean(p.leaking for p in pairs),
        "numbers_lost": fmean(bool(f.numbers_lost) for f in facts),
        "numbers_invented": fmean(bool(f.numbers_invented) for f in facts),
        "names_lost": fmean(bool(f.names_lost) for f in facts),
        "names_invented": fmean(bool(f.names_invented) for f in facts),
        "dates_lost": fmean(bool(f.dates_lost) for f in facts),
        "dates_invented": fmean(bool(f.dates_invented) for f in facts),
        "negation_lost": fmean(f.negation_lost for f in facts),
        "negation_invented": fmean(f.negation_invented for f in facts),
        "with_answer": fmean(p.answer for p in pairs),
    }
    shown = {name: rounded(value) for name, value in figures.items()}
    shown["answer_lost"] = rounded(fmean(p.answer_lost for p in answers)) if answers else None
    return shown


def _entailment(rewrites: Sequence[Rewrite], judge: Entailing) -> dict[str, float | None] | None:
    """Both ways; the prompt stands before the premise, as in selection: a short answer says little
    without it."""
    if not rewrites:
        return None
    pairs = list[tuple[str, str]]()
    for row in rewrites:
        prompt, original = prompt_text(row.example), row.example.response
        pairs += [(f"{prompt}\n{original}", row.text), (f"{prompt}\n{row.text}", original)]
    odds = judge.entailments(pairs)
    forward, backward = odds[::2], odds[1::2]
    both = zip(forward, backward, strict=True)
    return {
        "rows": float(len(rewrites)),
        "rewrite_follows": rounded(fmean(p >= ENTAILED for p in forward)),
        "original_follows": rounded(fmean(p >= ENTAILED for p in backward)),
        "both": rounded(fmean(a >= ENTAILED and b >= ENTAILED for a, b in both)),
        "mean_forward": rounded(fmean(forward)),
        "mean_backward": rounded(fmean(backward)),
    }


def _has_answer(text: str) -> bool:
    return call(text) is not None or looks_like_code(text) or final_answer(text) is not None


def _distinct(text: str) -> float:
    tokens = words(text)
    return len(set(tokens)) / len(tokens) if tokens else 1.0


# As the SDFT release names them, and as `fedsdr distill RECIPE` does.
REWRITTEN = ("output_distilled", "response")
ORIGINAL = "output_original"
NO_PAIRS = ("audit.jsonl",)  # what `fedsdr distill` writes beside them


def read_pairs(path: Path) -> Mapping[str, Row]:
    """Row id -> the row, of a file or of every .jsonl file in a folder."""
    files = [path]
    if os.path.isdir(path):
        files = [f for f in sorted(path.glob("*.jsonl")) if f.name not in NO_PAIRS]
        if not files:
            raise DataError(f"{path}: there is no .jsonl file in this folder")
    rows = dict[str, Row]()
    for row in (row for file in files for row in read_rows(file)):
        name = row.label("id")
        if not name:
            raise row.error("is missing; a pair is found by the id of its row", "id")
        if name in rows:
            raise row.error(
                f"has the same id as {rows[name].path}, {rows[name].unit} {rows[name].number}",
                "id",
            )
        _column(row)
        rows[name] = row
    return rows


def paired(
    clients: Mapping[str, Sequence[Example]], pairs: Mapping[str, Row]
) -> dict[str, list[Rewrite]]:
    """Each client's rows that have a pair."""
    owners = dict[str, str]()
    for client, example in (
        (c, e) for c, examples in clients.items() for e in examples if e.id in pairs
    ):
        if owners.setdefault(example.id, client) != client:
            raise pairs[example.id].error(
                f"is the id of a row of client {owners[example.id]!r} and of one of {client!r}; "
                "give the data ids that tell them apart",
                "id",
            )
    rewrites = {
        client: [
            _rewrite(example, pairs[example.id]) for example in examples if example.id in pairs
        ]
        for client, examples in clients.items()
    }
    if not any(rewrites.values()):
        (row, *_) = pairs.values()
        raise DataError(
            f"{row.path}: none of the {len(pairs)} rows has the id of a training row of these "
            "clients, such as "
            f"{next(e.id for examples in clients.values() for e in examples)!r}; "
            "give the data their ids"
        )
    return rewrites


def _rewrite(example: Example, row: Row) -> Rewrite:
    if ORIGINAL in row.values and row.text(ORIGINAL) != example.response:
        raise row.error("is not the answer of the row with this id", ORIGINAL)
    return Rewrite(example, row.text(_column(row)))


def _column(row: Row) -> str:
    for column in REWRITTEN:
        if column in row.values:
            return column
    raise row.error(f"has neither {' nor '.join(map(repr, REWRITTEN))}, so no rewritten answer")
