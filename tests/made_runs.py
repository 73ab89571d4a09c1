"""Run directories made by hand, with numbers that can be reckoned with, for whoever reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedsdr.runs.identity import claim

EDGES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def write_run(
    path: Path,
    method: str = "fedsdr",
    seed: int = 1,
    clients: Sequence[str] = ("c0", "c1", "c2", "c3"),
    rounds: int = 4,
    recall: float = 0.5,
    finished: bool = True,
    detailed: bool = True,
    synthetic: bool = True,
    options: Mapping[str, Any] | None = None,
    refused: Mapping[int, Sequence[str]] | None = None,
) -> Path:
    """Recall rises by 0.1 a round up to `recall` on the global model; the personal one, where there
    is one, is 0.2 better; client n is 0.01 n better than the mean says."""
    personal = method == "fedsdr"
    data: dict[str, Any] = {"atlas": {"preset": "mild"}} if synthetic else {"file": "rows.jsonl"}
    recipe = {
        "seed": seed,
        "data": data,
        "algorithm": {"name": method, "options": dict(options or {})},
        "training": {"rounds": rounds, "lr": 0.01},
    }
    facts: dict[str, Any] = {
        "run": f"{method}{seed}", "algorithm": method, "seed": seed, "world": f"world-{seed}",
        "base_digest": "b" * 64, "fedsdr": "0.1.0", "torch": "2.0", "python": "3.11",
        "machine": "x86_64", "dtype": "float32", "stack": 8, "threads": 1,
        "from_python": {"algorithm": False, "clients": False},
    }  # fmt: skip
    claim(path, yaml.safe_dump(recipe, sort_keys=False), facts)
    mixes = ("global", "personal") if personal else ("global",)

    def score(round: int, mix: str, place: int) -> dict[str, float]:
        value = recall - 0.1 * (rounds - round) + 0.2 * (mix == "personal") + 0.01 * place
        return {"recall": value, "hallucination": 1 - value, "redundancy": 0.01}

    def mean(round: int, mix: str) -> dict[str, float]:
        found = [score(round, mix, place) for place in range(len(clients))]
        return {m: sum(f[m] for f in found) / len(found) for m in found[0]}

    numbers = range(1, rounds + 1)
    rows(path / "rounds.jsonl", (
        {
            "round": at, "lr": 0.01, "clients": len(clients) - len((refused or {}).get(at, ())),
            "refused": list((refused or {}).get(at, ())), "loss": 2.0 / at,
            "losses": {c: 2.0 / at + 0.1 * n for n, c in enumerate(clients)}, "steps": 10.0,
            "tokens": 1000.0, "bytes_up": 1_000_000, "bytes_down": 1_000_000,
            "validation": {mix: mean(at, mix) for mix in mixes},
            "best_rounds": dict.fromkeys(mixes, at),
        }
        for at in numbers
    ))  # fmt: skip
    rows(path / "timings.jsonl", [
        {"round": 0, "phase": "rewriting", "seconds": 5.0},
        *({"round": at, "phase": p, "seconds": s} for at in numbers
          for p, s in (("training", 3.0), ("combining", 0.5), ("validation", 1.0))),
        *([{"round": 0, "phase": "rounds", "seconds": 5.0 * rounds},
           {"round": 0, "phase": "final scores", "seconds": 2.0}] if finished else []),
    ])  # fmt: skip
    if detailed:
        _details(path, clients, numbers, mixes, score)
    if finished:
        by_client = {
            mix: {c: {**score(rounds, mix, n), "retention": 0.9} for n, c in enumerate(clients)}
            for mix in mixes
        }
        results = {
            "method": method, "seed": seed, "world": f"world-{seed}", "lr": 0.01, "rounds": rounds,
            "chosen_rounds": dict.fromkeys(mixes, rounds), "bytes_up": 1e6 * rounds,
            "bytes_down": 1e6 * rounds, "steps": 10.0 * rounds, "tokens": 1000.0 * rounds,
            "clients": by_client,
            "scores": {
                mix: {
                    **{m: sum(f[m] for f in found.values()) / len(found)
                       for m in next(iter(found.values()))},
                    "recall_worst": min(f["recall"] for f in found.values()),
                }
                for mix, found in by_client.items()
            },
        }  # fmt: skip
        (path / "results.json").write_text(json.dumps(results))
    return path


def write_diagnosis(path: Path, clients: Sequence[str] = ("c0", "c1", "c2", "c3")) -> None:
    def view(far: float) -> dict[str, Any]:
        apart = _matrix(clients, 0.0, far)
        alike = _matrix(clients, 1.0, 1 - far)
        return {
            "js_divergence": {"matrix": apart, "base": 2, "mean": far},
            "tfidf_cosine": {"matrix": alike, "mean": 1 - far},
            "gradient_cosine": {"matrix": alike, "mean": 1 - far},
            "loss_transfer": {"matrix": _matrix(clients, -0.5, 0.1), "own": -0.5, "other": 0.1},
            "pca": {
                "points": [{"client": c, "x": n, "y": -n} for n, c in enumerate(clients)],
                "explained": [0.3, 0.1],
            },
            "cka": {"matrix": alike, "mean": 1 - far},
        }

    found = {
        "format": "fedsdr-diagnosis", "version": 1, "clients": list(clients), "settings": {},
        "views": {"raw": view(0.7), "rewritten": view(0.4)}, "audit": {},
    }  # fmt: skip
    (path / "diagnosis.json").write_text(json.dumps(found))


def rows(path: Path, given: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))


def _details(path: Path, clients: Sequence[str], numbers: Any, mixes: Any, score: Any) -> None:
    rows(path / "validation.jsonl", (
        {"round": at, "scores": {mix: {c: score(at, mix, n) for n, c in enumerate(clients)}
                                 for mix in mixes}}
        for at in numbers
    ))  # fmt: skip
    branches = ("R", "S") if "personal" in mixes else ("R",)
    rows(path / "diagnostics.jsonl", (
        {
            "round": at, "clients": list(clients),
            "branches": {
                b: {
                    "cosine": _matrix(clients, 1.0, 0.1 * at - 0.2),
                    "norms": {c: 1.0 + n for n, c in enumerate(clients)},
                    "conflict": 0.25, "diversity": 2.0, "drift": 1.5, "aggregation_error": 0.1,
                }
                for b in branches
            },
            "personal": {c: {"s_over_r": 0.5, "cos_s_r": 0.1} for c in clients},
        }
        for at in numbers
    ))  # fmt: skip
    histogram = {"edges": EDGES, "counts": [1, 5, 3, 1] + [0] * 8, "p10": 6, "p50": 12, "p90": 40,
                 "mean": 15.0}  # fmt: skip
    profile = {
        c: {
            "rows": {"train": 10 + n, "validation": 2, "test": 3},
            "domains": {"medicine": 10, "code": n}, "origins": {"terse": 5, "chatty": 5 + n},
            "prompt_tokens": histogram,
            "response_tokens": {"raw": histogram, "rewritten": {**histogram, "p50": 20}},
        }
        for n, c in enumerate(clients)
    }  # fmt: skip
    (path / "profile.json").write_text(json.dumps({"clients": profile}))


def _matrix(clients: Sequence[str], same: float, other: float) -> list[list[float]]:
    return [[same if a == b else round(other, 6) for b in clients] for a in clients]
