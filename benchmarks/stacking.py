"""Do K clients stacked end where K clients one by one end? The difference of every adapter entry.

Per algorithm and dtype the same federation is trained twice for a few rounds, stacked by K and by
1, from the same rewrites. All that training made is compared: the shared adapter, and every
client's own branches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedsdr.cohort.in_process import InProcessCohort
from fedsdr.coordinator.loop import LoopSettings, run_rounds
from fedsdr.distill.generate import Sampling
from fedsdr.distill.rewrite import Rewriting
from fedsdr.jobs.assembly import Experiment, assemble
from fedsdr.parts.local import LocalSettings
from fedsdr.recipe.settings import build_recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import ServerState

# `central` is left out: it trains one client that owns everything, there is nothing to stack.
ALGORITHMS = ("local", "fedavg", "fedprox", "fedsd", "fedsdr")


def main() -> None:
    asked = _arguments()
    rows = list[dict[str, Any]]()
    if not asked.json:
        print(
            f"K = {asked.clients} stacked against one by one, {asked.rounds} rounds, "
            f"{asked.examples} examples per client\n\n"
            f"{'algorithm':<12}{'dtype':<10}{'maximum':>10}{'median':>10}"
            f"{'largest entry':>15}{'entries':>11}"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.algorithms:
            for dtype in ("float64", "float32"):
                found = compared(name, dtype, asked, Path(folder))
                rows.append({"algorithm": name, "dtype": dtype, **found})
                if not asked.json:
                    print(
                        f"{name:<12}{dtype:<10}{found['maximum']:>10.2g}{found['median']:>10.2g}"
                        f"{found['largest']:>15.3g}{found['entries']:>11}",
                        flush=True,
                    )
    if asked.json:
        print(json.dumps(rows, indent=2))


def compared(name: str, dtype: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """|stacked - one by one| over all entries, and the size of what is compared."""
    experiment = _experiment(name, dtype, asked)
    try:
        stacked, alone = (
            trained(
                experiment, asked, stack, folder / f"{name}-{dtype}-{stack}", folder / "rewrites"
            )
            for stack in (asked.clients, 1)
        )
    finally:
        experiment.close()
    difference = torch.cat([(stacked[n] - alone[n]).abs().reshape(-1) for n in stacked]).double()
    return {
        "maximum": float(difference.max()),
        "median": float(difference.median()),
        "largest": max(float(t.abs().max()) for t in alone.values()),
        "entries": difference.numel(),
    }


def trained(
    experiment: Experiment, asked: argparse.Namespace, stack: int, out: Path, rewrites: Path
) -> Mapping[str, Tensor]:
    """Every tensor that the rounds leave behind, shared or a client's own."""
    recipe = experiment.recipe
    run = RunDirectory.create(out, "", {"run": "stacking"})
    clients = {c.client_id: c for c in experiment.trained}
    cohort = InProcessCohort(
        lora=experiment.lora,
        algorithm=experiment.algorithm,
        clients=clients,
        run=run,
        branches=experiment.branches,
        training=LocalSettings(epochs=recipe.training.local_epochs, batch=recipe.training.batch),
        rewriting=Rewriting(Sampling(max_new_tokens=72), seed=recipe.seed),
        cache=rewrites,
        stack=stack,
    )
    cohort.prepare()
    settings = LoopSettings(
        run="stacking", seed=recipe.seed, rounds=asked.rounds, lr=recipe.training.lr
    )
    first = ServerState(0, experiment.branches.first())
    outcome = run_rounds(
        experiment.algorithm,
        cohort,
        clients=list(clients),
        first=first,
        run=run,
        settings=settings,
        base_digest=experiment.base.digest,
    )
    left = {f"server/{name}": tensor for name, tensor in outcome.state.shared.items()}
    for client in clients:
        state = run.load_client_state(client, asked.rounds + 1)
        own = state.tensors.get("branches", {}) if state else {}
        left |= {f"{client}/{name}": tensor for name, tensor in own.items()}
    return left


def _experiment(name: str, dtype: str, asked: argparse.Namespace) -> Experiment:
    return assemble(
        build_recipe(
            {
                "model": {"dtype": dtype},
                "data": {"atlas": {"clients": asked.clients, "examples": asked.examples}},
                "algorithm": {"name": name},
                "run": {"threads": asked.threads},
            }
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--clients", type=int, default=8, help="K")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=50, help="of each client")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
