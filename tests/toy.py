"""The toy federation that `fedsdr.testing` checks algorithms on, and what tests add to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.recipe.settings import Recipe, build_recipe
from fedsdr.testing.toy import (
    SPECS,
    TEXTS,
    Toy,
    clients,
    examples,
    loud,
    tiny_folder,
    toy,
)
from fedsdr.types import Tensors

__all__ = [
    "SPECS",
    "TEXTS",
    "Toy",
    "clients",
    "examples",
    "largest_difference",
    "loud",
    "moved",
    "of",
    "own",
    "recipe",
    "tiny_folder",
    "toy",
]


def of(tensors: Tensors, branch: str) -> Tensors:
    """One branch's tensors, by layer."""
    return {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{branch}/")}


def own(one: Toy, client: str, after: int) -> Tensors:
    """What a client keeps after a round."""
    state = one.run.load_client_state(client, after + 1)
    assert state is not None
    return state.tensors["branches"]


def largest_difference(left: Tensors, right: Tensors) -> float:
    assert left.keys() == right.keys()
    return max((float((left[n] - right[n]).abs().max()) for n in left), default=0.0)


def moved(tensors: Tensors, first: Tensors) -> float:
    """How far training went: a test of equality says nothing about weights that never moved."""
    return max(float((tensors[n] - first[n]).abs().max()) for n in first)


def recipe(folder: Path, **sections: Mapping[str, Any]) -> Recipe:
    """A recipe for the tiny Llama, whose clients are handed over in Python."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"path": str(folder), "dtype": "float64", "max_length": 256},
        "lora": {"R": {"rank": 2, "alpha": 4.0}, "S": {"rank": 3, "alpha": 3.0}},
        "training": {"rounds": 3, "local_epochs": 1.0, "batch": 3, "lr": 0.01},
        "rewriting": {"max_new_tokens": 6},
        "run": {"stack": 2, "threads": 1},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | dict(section)
    return build_recipe({"seed": 5, **tree})
