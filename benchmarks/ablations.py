"""FedSDR taken apart on the demo federation: every schedule, state and ablation, by name.

    python benchmarks/ablations.py --out runs/ablations --seeds 101 --lr 3e-3

One run directory each; finished ones are not run again. Prints recall, retention and hallucination
of the global and the mean personal model.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.jobs.assembly import open_base
from fedsdr.jobs.demo import demo_recipe
from fedsdr.jobs.train import train
from fedsdr.recipe.settings import build_recipe

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as published": {},
    "match_compute": {"match_compute": True},
    "s_dropout .5": {"s_dropout": 0.5},
    "s_dropout .8": {"s_dropout": 0.8},
    "s_state reset": {"s_state": "reset"},
    "smooth .25 epochs": {"smooth_epochs": 0.25},
    "joint": {"schedule": "joint"},
    "warmup 2": {"schedule": "warmup", "warmup_rounds": 2},
    "selection facts": {"selection": "facts"},
    "share_both": {"ablation": "share_both"},
    "share_s": {"ablation": "share_s"},
    "r_on_rewritten": {"ablation": "r_on_rewritten"},
    "s_on_raw": {"ablation": "s_on_raw"},
    "without_s": {"ablation": "without_s"},
    "without_r": {"ablation": "without_r"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[101])
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    base = open_base(demo_recipe("fedsdr", 1, given.out))
    print("variant | seed | model | recall | retention | hallucination", flush=True)
    for seed in given.seeds:
        for name in given.variants:
            path = given.out / name.replace(" ", "_") / str(seed)
            if not (path / "results.json").exists():
                shutil.rmtree(path, ignore_errors=True)
                tree = demo_recipe(
                    "fedsdr",
                    seed,
                    given.out / "rewrites" / str(seed),
                    training__lr=given.lr,
                    run__threads=given.threads,
                ).model_dump()
                tree["algorithm"]["options"] = dict(VARIANTS[name])
                train(build_recipe(tree), path, base=base)
            for mix, found in json.loads((path / "results.json").read_text())["scores"].items():
                figures = [f"{found[m]:.3f}" for m in ("recall", "retention", "hallucination")]
                print(" | ".join([name, str(seed), mix, *figures]), flush=True)


if __name__ == "__main__":
    main()
