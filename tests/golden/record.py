"""Record the trajectories that test_trajectories.py holds: `python tests/golden/record.py`.

Record again only when numbers are meant to change, and say why in the commit.
"""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from fedsdr.config import build_recipe
from fedsdr.experiment import train

FILE = Path(__file__).with_name("trajectories.json")
METHODS = ("fedavg", "fedprox", "fedsd", "fedsdr", "local", "central")


def trajectory(method: str, out: Path) -> dict[str, Any]:
    """Three rounds of two small clients on atlas-base: losses, validation, final scores."""
    recipe = build_recipe(
        {
            "seed": 5,
            "data": {"atlas": {"clients": 2, "examples": 10, "public": 8}},
            "algorithm": {"name": method},
            "training": {"rounds": 3, "local_steps": 4, "batch": 4, "lr": 0.003},
            "rewriting": {"max_new_tokens": 64, "cache": str(out / "cache")},
            "evaluation": {"every": 3},
            "run": {"threads": 1},
        }
    )
    results = train(recipe, out / method)
    rows = [json.loads(line) for line in (out / method / "rounds.jsonl").read_text().splitlines()]
    return {
        "world": results["world"],
        "losses": [row["loss"] for row in rows],
        "bytes_up": results["bytes_up"],
        "scores": results["scores"],
    }


def environment() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {method: trajectory(method, Path(folder)) for method in METHODS}
    text = json.dumps({"environment": environment(), "trajectories": found}, indent=2)
    FILE.write_text(text + "\n")


if __name__ == "__main__":
    main()
