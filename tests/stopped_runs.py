"""A tiny model, private rows, a recipe over them, and two runs: one finished, one stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import fedsdr
from benchmark_files import FILES
from families import family_folder
from fedsdr.coordinator.job import Watch
from fedsdr.jobs import train as experiment

SECRET = "pressure-of-Mrs-Miller"
ID = "record-4711-"
RECIPE = """
model: {path: model, max_length: 128}
data: {file: d.jsonl, partition: {clients: 2}, validation: 0.2, test: 0.2}
algorithm: {name: fedsdr}
lora: {R: {rank: 2, alpha: 4}, S: {rank: 2, alpha: 4}}
training: {rounds: 2, local_steps: 1, batch: 2}
rewriting: {max_new_tokens: 4}
run: {threads: 1, include_texts: true}
"""
ROWS = [
    {"id": f"{ID}{n}", "instruction": f"what is the {SECRET} {n}", "output": f"{SECRET} is {n}"}
    for n in range(16)
]
TASK = ("--tasks", "fpb", "--data", "bench", "--limit", "2")


class Stopped(Exception):
    """As Ctrl-C would, but known."""


def make_workplace(here: Path) -> None:
    """To be called in `here`: `model`, `d.jsonl`, `recipe.yaml`, `bench`; `run`, and `half` after
    one of two rounds."""
    family_folder(here / "model", "llama")
    (here / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (here / "recipe.yaml").write_text(RECIPE)
    (here / "bench").mkdir()
    for name, rows in FILES.items():
        (here / "bench" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment.train(fedsdr.read_recipe("recipe.yaml"), here / "run")

    def told(row: Mapping[str, Any]) -> None:
        raise Stopped

    with suppress(Stopped):
        experiment.train(fedsdr.read_recipe("recipe.yaml"), here / "half", Watch(told=told))
