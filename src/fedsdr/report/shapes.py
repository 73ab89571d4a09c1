"""What each file of a run holds, so that the page can rely on it: values of another kind are left
out, and their names are told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from fedsdr.report.safe_text import LONGEST_SENTENCE, short

Shape = Callable[[Any, set[str]], Any]  # the value, cleaned; names of what was left out are added
LARGEST = 1e15  # of a number: what is larger was not measured


class Wrong(ValueError):
    """A value of another kind."""


def number(value: Any, lost: set[str]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise Wrong
    return value


def amount(value: Any, lost: set[str]) -> float:
    """Bytes, seconds, counts."""
    if number(value, lost) < 0:
        raise Wrong
    return value


def whole(value: Any, lost: set[str]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise Wrong
    return value


def text(value: Any, lost: set[str]) -> str:
    """A name."""
    return short(_string(value))


def sentence(value: Any, lost: set[str]) -> str:
    return short(_string(value), LONGEST_SENTENCE)


def matrix(value: Any, lost: set[str]) -> list[list[float | None]]:
    """Square, of numbers; one that has no value is null."""
    rows = [
        [None if cell is None else number(cell, lost) for cell in _list(row)]
        for row in _list(value)
    ]
    if any(len(row) != len(rows) for row in rows):
        raise Wrong
    return rows


def items(shape: Shape) -> Shape:
    """A list; one wrong item is one too many."""
    return lambda value, lost: [shape(item, lost) for item in _list(value)]


def each(shape: Shape) -> Shape:
    """A mapping from names that nobody knows beforehand."""

    def clean(value: Any, lost: set[str]) -> dict[str, Any]:
        cleaned = dict[str, Any]()
        for key, inner in _mapping(value).items():
            try:
                if inner is not None:
                    cleaned[short(key)] = shape(inner, lost)
            except Wrong:
                lost.add(short(key))
        return cleaned

    return clean


def fields(known: Mapping[str, Shape], *needed: str) -> Shape:
    """A mapping of known names; others are not looked at, and null is as good as nothing."""

    def clean(value: Any, lost: set[str]) -> dict[str, Any]:
        cleaned, given = dict[str, Any](), _mapping(value)
        for key, shape in known.items():
            try:
                if given.get(key) is not None:
                    cleaned[key] = shape(given[key], lost)
            except Wrong:
                lost.add(key)
        if any(key not in cleaned for key in needed):
            raise Wrong
        return cleaned

    return clean


def kept(value: Any, lost: set[str]) -> Any:
    """Of others' business."""
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Wrong
    return cast("list[Any]", value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong
    return cast("dict[str, Any]", value)


def _histogram(value: Any, lost: set[str]) -> dict[str, Any]:
    histogram = fields(HISTOGRAM)(value, lost)
    edges, counts = histogram.get("edges", []), histogram.get("counts", [])
    if len(counts) > len(edges) or any(not math.isfinite(edge) for edge in edges):
        raise Wrong
    return histogram


def _diagnosed(value: Any, lost: set[str]) -> dict[str, Any]:
    """Matrices are over the clients that are named."""
    diagnosis = fields(DIAGNOSIS, "clients", "views")(value, lost)
    size = len(diagnosis["clients"])
    for view in diagnosis["views"].values():
        for key in [k for k, of in view.items() if k != "pca" and len(of["matrix"]) != size]:
            lost.add(key)
            del view[key]
    return diagnosis


def _diagnostics(value: Any, lost: set[str]) -> dict[str, Any]:
    row = fields(DIAGNOSTICS, "round", "clients")(value, lost)
    for branch in row.get("branches", {}).values():
        if len(branch.get("cosine", row["clients"])) != len(row["clients"]):
            lost.add("cosine")
            del branch["cosine"]
    return row


SCORES = each(each(number))  # mix -> measure -> value
BY_CLIENT = each(SCORES)  # mix -> client -> measure -> value
HISTOGRAM: Mapping[str, Shape] = {
    "edges": items(number), "counts": items(amount),
    "p10": number, "p50": number, "p90": number, "mean": number,
}  # fmt: skip
MATRIX = fields({"matrix": matrix, "mean": number, "own": number, "other": number}, "matrix")
MATRICES = (
    "js_divergence", "js_divergence_prompts", "tfidf_cosine", "gradient_cosine", "loss_transfer",
    "cka",
)  # fmt: skip
DIAGNOSIS: Mapping[str, Shape] = {
    "clients": items(text),
    "views": each(
        fields(
            {
                **dict.fromkeys(MATRICES, MATRIX),
                "pca": fields(
                    {
                        "points": items(
                            fields({"client": text, "x": number, "y": number}, "client", "x", "y")
                        ),
                        "explained": items(number),
                    },
                    "points",
                ),
            }
        )
    ),
}
DIAGNOSTICS: Mapping[str, Shape] = {
    "round": whole,
    "clients": items(text),
    "sampled_of": whole,
    "branches": each(
        fields(
            {
                "cosine": matrix,
                "norms": each(number),
                **dict.fromkeys(("conflict", "diversity", "drift", "aggregation_error"), number),
            }
        )
    ),
    "personal": each(fields({"s_over_r": number, "cos_s_r": number})),
}
ROUND = fields(
    {
        "round": whole, "lr": number, "clients": whole, "refused": items(sentence), "loss": number,
        "losses": each(number), "loss_of": text,
        "other_losses": each(fields({"mean": number, "clients": each(number)})),
        "validation": SCORES, "best_rounds": each(whole),
        **dict.fromkeys(("steps", "tokens", "bytes_up", "bytes_down"), amount),
    },
    "round",
)  # fmt: skip
RESULTS = fields(
    {
        "method": text, "seed": whole, "world": text, "lr": number, "rounds": whole,
        "chosen_rounds": each(whole), "scores": SCORES, "unseen": SCORES, "clients": BY_CLIENT,
        "rewriting": kept, "validation": kept,
        **dict.fromkeys(("steps", "tokens", "bytes_up", "bytes_down"), amount),
    },
    "scores",
)  # fmt: skip
ROWS: Mapping[str, Shape] = {
    "rounds.jsonl": ROUND,
    "validation.jsonl": fields({"round": whole, "scores": BY_CLIENT}, "round", "scores"),
    "diagnostics.jsonl": _diagnostics,
    "timings.jsonl": fields({"round": whole, "phase": text, "seconds": amount}, "round", "phase"),
    "rewriting_audit.jsonl": kept,
}
REWRITTEN = fields({"examples": whole, "kept": number, "changed": number, "written": each(number)})
OBJECTS: Mapping[str, Shape] = {
    "results.json": RESULTS,
    "rewriting.json": fields({"clients": each(REWRITTEN)}),
    "profile.json": fields(
        {
            "clients": each(
                fields(
                    {
                        "rows": each(whole), "domains": each(whole), "origins": each(whole),
                        "prompt_tokens": _histogram, "response_tokens": each(_histogram),
                    }
                )
            )
        }
    ),
    "diagnosis.json": _diagnosed,
}  # fmt: skip
