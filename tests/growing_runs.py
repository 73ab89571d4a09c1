"""Run directories made up row by row, as a run under way writes them."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from fedsdr.runs.identity import claim

RECIPE = "seed: 7\ndata:\n  atlas: {preset: mild}\ntraining:\n  rounds: 4\n"


def under_way(folder: Path, rounds: int, alive: bool = True, recipe: str = RECIPE) -> Path:
    """After so many rounds; its process lives, or was killed."""
    claim(folder, recipe, {"run": "abc", "algorithm": "fedsdr", "seed": 7})
    for number in range(1, rounds + 1):
        add(folder, "rounds.jsonl", round_row(number))
    hold(folder, alive)
    return folder


def hold(folder: Path, alive: bool = True) -> None:
    pid = os.getpid() if alive else 2**22 + 1  # above Linux's greatest
    (folder / "lock").write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))


def round_row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "round": number,
        "lr": 0.01,
        "clients": 2,
        "refused": [],
        "loss": 2.0 / number,
        "losses": {"c2": 1.0 / number, "c10": 3.0 / number},
        "steps": 10.0,
        "tokens": 100.0,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "validation": {},
        "best_rounds": {},
        **more,
    }


def add(folder: Path, file: str, row: dict[str, Any]) -> None:
    with (folder / file).open("a") as rows:
        rows.write(json.dumps(row) + "\n")


def validated(folder: Path, number: int, c2: float, c10: float) -> None:
    scores = {"c2": {"recall": c2, "words": 9.0}, "c10": {"recall": c10, "words": 9.0}}
    add(folder, "validation.jsonl", {"round": number, "scores": {"global": scores}})


def finish(folder: Path, recall: float = 0.5) -> Path:
    scores = {"recall": recall, "retention": 0.75}
    values = {
        "method": "fedsdr",
        "seed": 7,
        "world": "w",
        "lr": 0.01,
        "rounds": 4,
        "chosen_rounds": {"global": 4},
        "bytes_up": 4000,
        "bytes_down": 8000,
        "steps": 40.0,
        "tokens": 400.0,
        "scores": {"global": scores},
        "clients": {"global": {"c2": scores, "c10": scores}},
    }
    (folder / "results.json").write_text(json.dumps(values))
    return folder
