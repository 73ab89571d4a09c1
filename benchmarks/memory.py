"""Peak memory of a run with more and more clients, K of them side by side, beyond the data itself.

Every run is a process of its own. From its peak (ru_maxrss) the size of the data is taken off: the
examples, what the world knows to be true of them, and their token rows, which any program that
trains on them has to hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MB = 1e6


def main() -> None:
    asked = _arguments()
    if asked.child:
        print(json.dumps(measured(asked, asked.clients[0])))
        return
    rows = [in_own_process(asked, clients) for clients in asked.clients]
    first = rows[0]["peak"] - rows[0]["data"]
    for row in rows:
        row["ratio"] = (row["peak"] - row["data"]) / first
    print(json.dumps(rows, indent=2) if asked.json else as_text(rows, asked))


def in_own_process(asked: argparse.Namespace, clients: int) -> dict[str, Any]:
    # A child's ru_maxrss begins with its starter's peak: nothing heavy is imported here.
    options = {
        "--clients": clients,
        "--stack": asked.stack,
        "--examples": asked.examples,
        "--rounds": asked.rounds,
        "--steps": asked.steps,
        "--threads": asked.threads,
        "--algorithm": asked.algorithm,
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [sys.executable, __file__, "--child", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(asked: argparse.Namespace, clients: int) -> dict[str, Any]:
    """One run, in bytes. `idle`: the peak with all imported and the base loaded, no client yet."""
    from fedsdr.jobs.assembly import open_base
    from fedsdr.jobs.train import train
    from fedsdr.recipe.settings import build_recipe

    recipe = build_recipe(
        {
            "data": {"atlas": {"clients": clients, "examples": asked.examples, "public": 8}},
            "algorithm": {"name": asked.algorithm},
            "training": {"rounds": asked.rounds, "local_steps": asked.steps, "batch": 4},
            "rewriting": {"max_new_tokens": 32},
            "evaluation": {"every": asked.rounds, "select": "last"},
            "run": {"stack": asked.stack, "threads": asked.threads},
        }
    )
    base = open_base(recipe)
    idle = _peak()
    with tempfile.TemporaryDirectory() as folder:
        results = train(recipe, Path(folder) / "run", base=base)
        peak = _peak()
    return {
        "clients": clients,
        "peak": peak,
        "idle": idle,
        "data": data_size(recipe, base, asked.algorithm),
        "steps": results["steps"],
    }


def data_size(recipe: Any, base: Any, algorithm: str) -> int:
    """Of the examples, the truths about them and the token rows of every view; no object counts
    twice."""
    from fedsdr.data.render import render
    from fedsdr.jobs.sources import load_federation

    federation = load_federation(recipe)
    views = (
        2 if algorithm in ("fedsd", "fedsdr") else 1
    )  # raw and rewritten answers are of like size
    rows = [
        [render(base, e, recipe.model.max_length) for e in client.train]
        for client in federation.clients
        for _ in range(views)
    ]
    return _deep_size([federation.clients, federation.atlas, rows], set())


def _deep_size(thing: Any, seen: set[int]) -> int:
    if id(thing) in seen or thing is None:
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, dict):
        inner = [*thing.keys(), *thing.values()]
    elif isinstance(thing, (list, tuple, set, frozenset)):
        inner = list(thing)
    else:
        inner = [getattr(thing, name) for name in getattr(thing, "__dataclass_fields__", ())]
    return size + sum(_deep_size(part, seen) for part in inner)


def _peak() -> int:
    """Bytes; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def as_text(rows: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    lines = [
        f"{asked.algorithm}, K = {asked.stack}, {asked.rounds} rounds of {asked.steps} steps, "
        f"{asked.examples} examples per client; sizes in MB",
        "",
        f"{'clients':>8}{'peak':>10}{'data':>10}{'peak - data':>14}{'ratio':>8}"
        f"{'of which above idle':>22}",
    ]
    lines += [
        f"{row['clients']:>8}{row['peak'] / MB:>10.1f}{row['data'] / MB:>10.1f}"
        f"{(row['peak'] - row['data']) / MB:>14.1f}{row['ratio']:>8.3f}"
        f"{(row['peak'] - row['data'] - row['idle']) / MB:>22.1f}"
        for row in rows
    ]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--stack", type=int, default=8, help="K, clients side by side")
    parser.add_argument("--examples", type=int, default=10, help="of each client")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="local steps per stage")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--algorithm", default="fedavg", help="fedsdr keeps a branch per client")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
