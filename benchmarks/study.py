"""The demo federation over seeds: tune each method's learning rate, then run it, then compare.

    python benchmarks/study.py tune --out runs/study     # the grid, on seeds of its own
    python benchmarks/study.py run --out runs/study      # eight other seeds at the picked rates
    fedsdr compare runs/study/run/*/*

Every run is a run directory; one that is finished is not run again, so both commands can be stopped
and started, and split over processes with --shard 0/2 and --shard 1/2. A rate is picked by recall
on the validation questions, averaged over the deployed models and the tuning seeds; test questions
play no part in it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from fedsdr.jobs.assembly import open_base
from fedsdr.jobs.demo import demo_recipe
from fedsdr.jobs.train import train

METHODS = ("fedavg", "fedsd", "fedsdr", "local", "central")
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEEDS = (101, 102)
SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)


def validation_recall(run: Path) -> float:
    """Every deployed model's best validation score, and of these the mean."""
    rows = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    scored = [row["validation"] for row in rows if row["validation"]]
    best = [max(scores[mix]["recall"] for scores in scored) for mix in scored[0]]
    return sum(best) / len(best)


def picked_rates(out: Path, methods: tuple[str, ...]) -> dict[str, float]:
    """By method: the rate with the best mean over the tuning seeds; the whole grid goes into
    tuning.json."""
    table: dict[str, dict[str, list[float]]] = {}
    for method in methods:
        table[method] = {
            f"{lr:g}": [
                validation_recall(out / "tune" / method / f"{seed}-{lr:g}") for seed in TUNING_SEEDS
            ]
            for lr in GRID
        }
    picks = {m: float(max(row, key=lambda lr, row=row: sum(row[lr]))) for m, row in table.items()}
    file = out / "tuning.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    whole = {
        "seeds": TUNING_SEEDS,
        "validation_recall": {**known.get("validation_recall", {}), **table},
        "picked": {**known.get("picked", {}), **picks},
    }
    file.write_text(json.dumps(whole, indent=2) + "\n")
    return picks


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("tune", "run"))
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shard", default="0/1")
    given = parser.parse_args()
    methods, (mine, of) = tuple(given.methods), map(int, given.shard.split("/"))
    jobs: list[tuple[Path, str, int, float]] = []
    if given.what == "tune":
        for seed in given.seeds or TUNING_SEEDS:
            jobs += [
                (given.out / "tune" / m / f"{seed}-{lr:g}", m, seed, lr)
                for m in methods
                for lr in GRID
            ]
    else:
        rates = picked_rates(given.out, methods)
        for seed in given.seeds or SEEDS:
            jobs += [(given.out / "run" / m / str(seed), m, seed, rates[m]) for m in methods]
    base = open_base(demo_recipe("fedavg", 1, given.out))
    for number, (path, method, seed, lr) in enumerate(jobs):
        if number % of != mine or (path / "results.json").exists():
            continue
        shutil.rmtree(path, ignore_errors=True)
        cache = given.out / "rewrites" / f"{given.what}-{seed}-{mine}"
        recipe = demo_recipe(method, seed, cache, training__lr=lr, run__threads=given.threads)
        results = train(recipe, path, base=base)
        first = next(iter(results["scores"].values()))
        print(f"{method:8} seed {seed} lr {lr:g}: recall {first['recall']:.3f}", flush=True)


if __name__ == "__main__":
    main()
