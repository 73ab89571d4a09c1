"""Runs side by side: what to call each, which of them are pairs, and what the comparison says."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.errors import RecipeError
from fedsdr.evaluate.comparison import (
    Comparison,
    RunResult,
    compare,
    default_contrasts,
)
from fedsdr.evaluate.verdicts import Contrast, Finding
from fedsdr.report.measures import UNSEEN, measures_of, model_in_words
from fedsdr.report.record import RunRecord, number, scores_of
from fedsdr.report.safe_text import short

# What may differ between runs of one method without making it another.
INCIDENTAL = ("seed", "run", "rewriting.cache", "model.device")


@dataclass(frozen=True, slots=True)
class Group:
    """Runs on the same federations, so that those of one seed are pairs."""

    setting: str
    runs: Mapping[str, Sequence[RunRecord]]  # by label: a method, or one with what sets it apart
    comparison: Comparison | None  # None where no run of the group has scores
    measures: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def primary(self) -> str:
        return self.measures[0] if self.measures else ""

    @property
    def seeds(self) -> list[int]:
        return sorted({r.seed for of in self.runs.values() for r in of if r.seed is not None})

    def called(self, text: str) -> str:
        """What the comparison says, with the methods called as the page calls them."""
        for label in sorted(self.runs, key=len, reverse=True):
            text = text.replace(safe(label), label)
        return text

    def side(self, side: str) -> str:
        """`fedsd:global` as it is told: a global model goes without saying."""
        method, mix = side.split(":")
        label = next((label for label in self.runs if safe(label) == method), method)
        return label if mix == "global" else f"{label} · {model_in_words(mix)}"

    def finding(self, label: str, mix: str, measure: str) -> Finding | None:
        """The contrast of this model with the baseline."""
        side = f"{safe(label)}:{safe(mix)}"
        findings = self.comparison.findings if self.comparison else ()
        return next(
            (f for f in findings if f.contrast.left == side and f.contrast.measure == measure), None
        )


def grouped(
    records: Sequence[RunRecord], contrasts: Sequence[Contrast] | None = None
) -> list[Group]:
    """One group per federation: by a sweep's setting, by the base model, or by the data where
    worlds differ."""
    several = len({record.base for record in records} - {""}) > 1
    parts = dict[str, list[RunRecord]]()
    for record in records:
        base = f"base {record.base[:12] or 'unknown'}" if several else ""
        setting = "" if several and record.setting == "all" else record.setting
        parts.setdefault(f"{setting} {base}".strip(), []).append(record)
    groups = list[Group]()
    for setting, part in parts.items():
        by_data = [part] if _paired(part) else _by_data(part)
        for place, runs in enumerate(by_data, start=1):
            name = "" if setting in ("", "all") and len(parts) == 1 else setting
            if len(by_data) > 1:
                name = f"{name} data {place} of {len(by_data)}".strip()
            groups.append(_group(name, runs, contrasts))
    return groups


def flat(tree: Mapping[str, Any], stem: str = "") -> dict[str, str]:
    """`{"lora": {"R": {"rank": 8}}}` -> `{"lora.R.rank": "8"}`."""
    leaves = dict[str, str]()
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{stem}{key}.")
        elif not isinstance(value, Mapping):
            plain = isinstance(value, str)
            leaves[short(f"{stem}{key}")] = short(
                value if plain else json.dumps(value, default=str)
            )
    return leaves


def differing(records: Sequence[RunRecord]) -> list[str]:
    """The recipes' keys that are not the same in all runs, but for what is incidental."""
    trees = [flat(record.recipe) for record in records]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return [
        key
        for key in keys
        if len({tree.get(key) for tree in trees}) > 1
        and not any(key == i or key.startswith(f"{i}.") for i in INCIDENTAL)
    ]


def safe(word: str) -> str:
    """As a contrast can name it."""
    return re.sub(r"[\s:>]+", "_", word) or "_"


def _paired(records: Sequence[RunRecord]) -> bool:
    worlds = dict[int | None, set[str]]()
    for record in records:
        worlds.setdefault(record.seed, set()).add(record.world)
    return all(len(of_seed) == 1 for of_seed in worlds.values())


def _by_data(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """By the recipe's data where that sets the worlds apart, else by world itself."""
    for by_recipe in (True, False):
        parts = dict[str, list[RunRecord]]()
        for record in records:
            data = json.dumps(record.recipe.get("data"), default=str)
            parts.setdefault(data if by_recipe else record.world, []).append(record)
        if all(_paired(part) for part in parts.values()):
            return list(parts.values())
    return [list(records)]


def _group(
    setting: str, records: Sequence[RunRecord], contrasts: Sequence[Contrast] | None
) -> Group:
    runs, notes = _labelled(records)
    results = [
        RunResult(
            path=record.name,
            method=safe(label),
            seed=record.seed or 0,
            world=record.world,
            lr=number((record.results or {}).get("lr")) or 0.0,
            scores={safe(mix): scores for mix, scores in all_scores(record).items()},
            base=record.base,
        )
        for label, of in runs.items()
        for record in of
        if all_scores(record)
    ]
    if not results:
        return Group(setting, runs, None, (), tuple(notes))
    shown = measures_of(r.scores for r in results)
    tested = [m for m in shown if not m.endswith("_worst")]
    try:
        wanted = default_contrasts(results, tested) if contrasts is None else contrasts
        comparison = compare(results, wanted, shown)
    except RecipeError as error:
        notes.append(f"Nothing could be tested: {error}")
        return Group(setting, runs, None, shown, tuple(notes))
    return Group(setting, runs, comparison, shown, (*notes, *comparison.notes))


def all_scores(record: RunRecord) -> dict[str, dict[str, float]]:
    """Test scores by model; on clients that never trained, a model of its own name."""
    results = record.results or {}
    unseen = scores_of(results.get("unseen"))
    return scores_of(results.get("scores")) | {f"{mix}{UNSEEN}": s for mix, s in unseen.items()}


def _labelled(records: Sequence[RunRecord]) -> tuple[dict[str, list[RunRecord]], list[str]]:
    """Runs by method; a method with several recipes gives each its own label. Of runs that are the
    same in everything, the first stands for all."""
    methods = dict[str, list[RunRecord]]()
    for record in records:
        methods.setdefault(record.method, []).append(record)
    runs, notes = dict[str, list[RunRecord]](), list[str]()
    for method, of_method in methods.items():
        seeds = [record.seed for record in of_method]
        keys = differing(of_method) if len(set(seeds)) < len(seeds) else []
        trees = [flat(record.recipe) for record in of_method]
        usual = {
            key: Counter(tree.get(key, "–") for tree in trees).most_common(1)[0][0] for key in keys
        }
        for record, tree in zip(of_method, trees, strict=True):
            apart = [(k, v) for k in keys if (v := tree.get(k, "–")) != usual[k]]
            settings = ", ".join(f"{_last(key, keys)}={value}" for key, value in apart)
            label = f"{method} ({settings})" if settings else method
            of = runs.setdefault(label, [])
            if any(other.seed == record.seed for other in of):
                notes.append(
                    f"{record.name} is left out: {of[0].name} is the same method and recipe with "
                    "the same seed."
                )
            else:
                of.append(record)
    return runs, notes


def _last(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, where that tells it from the others."""
    short = key.rpartition(".")[2]
    return short if sum(k.rpartition(".")[2] == short for k in keys) == 1 else key
