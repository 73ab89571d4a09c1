"""How different eight real clients are: `fedsdr diagnose` with all its measures, timed.

    python benchmarks/real_diagnosis.py --data FOLDER

FOLDER holds clients/<client>/{train,test}.jsonl and, where there are any, rewrites/*.jsonl with
output_original and output_distilled.

The model is the stand-in of real_clients.py: what is measured through it (gradients, losses,
states) shows the path and its time, not what a real model would see. What is measured on texts is
real.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from real_clients import clients, make_standin


def main() -> None:
    asked = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        made = argparse.Namespace(**{**vars(asked), "data": asked.data / "clients"})
        if not (folder / "model").is_dir():
            make_standin(folder / "model", made)
        recipe = folder / "recipe.yaml"
        recipe.write_text(json.dumps(written(asked, folder)))  # JSON is YAML
        command = [str(Path(sys.executable).with_name("fedsdr")), "diagnose", str(recipe)]
        command += ["--out", str(folder / "diagnosis"), "--examples", str(asked.examples)]
        if (asked.data / "rewrites").is_dir():
            command += ["--pairs", str(asked.data / "rewrites")]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        print(f"{time.perf_counter() - began:.0f} s")


def written(asked: argparse.Namespace, folder: Path) -> dict[str, object]:
    data = asked.data.resolve() / "clients"
    files = {
        split: {name: str(data / name / f"{split}.jsonl") for name in clients(data)}
        for split in ("train", "test")
    }
    return {
        "seed": asked.seed,
        "model": {"path": str(folder / "model")},
        "data": {"files": files["train"], "test_files": files["test"], "validation": 0.0},
        "run": {"threads": 1, "stack": 8},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="a folder that stays: model, recipe, figures")
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=200, help="steps of the stand-in")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
