"""Kill -9 a FedSDR run at points spread over its life, resume it, and compare every byte it leaves.

    python benchmarks/kill_points.py --points 12

The reference is one undisturbed run of the same recipe. Compared are rounds, ledger, results,
partition, adapters, checkpoints and the clients' private states (timings.jsonl is wall time,
run.json and lock name the process).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """
seed: 3
data: {atlas: {preset: medium, clients: 6, examples: 20, public: 16}}
training: {rounds: 4, local_epochs: 1.0, batch: 4}
rewriting: {max_new_tokens: 64}
evaluation: {every: 2}
run: {stack: 2, threads: 1}
"""
APART = {"timings.jsonl", "run.json", "lock"}


def digest(run: Path) -> str:
    """sha256 over the names and bytes of all that has to be equal."""
    sha = hashlib.sha256()
    for file in sorted(p for p in run.rglob("*") if p.is_file() and p.name not in APART):
        if "rewrites" not in file.parts:  # drafts are appended in the order they were drawn
            sha.update(str(file.relative_to(run)).encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


def state(run: Path) -> str:
    """Where the kill hit."""
    if not (run / "run.json").exists():
        return "before the run directory"
    rounds = run / "rounds.jsonl"
    done = len(rounds.read_text().splitlines()) if rounds.exists() else 0
    spool = len(list(run.glob("updates/*/*/state.json")))
    if (run / "results.json").exists():
        return "after the results"
    if (run / "adapters").exists() or done == 4:
        return "while scoring the end"
    if not any(run.glob("checkpoints/*")):
        return "while rewriting"
    return f"after round {done}, {spool} updates waiting"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=int, default=12)
    given = parser.parse_args()
    command = [sys.executable, "-c", "from fedsdr.cli import main; main()"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "recipe.yaml").write_text(RECIPE)

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*command, *arguments], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )

        began = time.monotonic()
        assert start("train", "recipe.yaml", "--out", "reference").wait() == 0
        life, want = time.monotonic() - began, digest(root / "reference")
        print(f"reference: {life:.1f} s, {want[:16]}", flush=True)
        equal = 0
        for point in range(1, given.points + 1):
            run = root / f"run{point}"
            process = start("train", "recipe.yaml", "--out", run.name)
            time.sleep(life * (0.25 + 0.75 * point / (given.points + 1)))  # a quarter is imports
            process.kill()
            process.wait()
            hit = state(run)
            again = start("resume", run.name) if (run / "run.json").exists() else None
            if again is None:
                again = start("train", "recipe.yaml", "--out", run.name)
            _, told = again.communicate()
            same = again.returncode == 0 and digest(run) == want
            equal += same
            verdict = "equal" if same else f"DIFFERENT {told.decode()[-300:]}"
            print(f"{point:3d}  {hit:40s}  {verdict}", flush=True)
        print(f"{equal} of {given.points} equal")


if __name__ == "__main__":
    main()
