"""One attacker of eight: every robust rule against the mean, on the demo's federation.

    python benchmarks/attack.py --out runs/attack --seeds 1 2 3

The attacker trains like everybody, then sends its change with the sign flipped, a million times too
large, or as NaN (which the gate refuses, whatever the rule). Shown is the global model's recall of
the seven honest clients' own facts after five rounds, mean ± sd over seeds; finished runs are not
run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from fedsdr.coordinator.loop import Cohort
from fedsdr.errors import FedsdrError
from fedsdr.jobs.assembly import open_base
from fedsdr.jobs.demo import demo_recipe
from fedsdr.jobs.train import train
from fedsdr.types import Lost, Order, Update

ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda change: change,
    "sign flip": lambda change: -change,
    "times 1e6": lambda change: change * 1e6,
    "NaN": lambda change: torch.full_like(change, torch.nan),
}
RULES: dict[str, dict[str, object]] = {
    "mean": {},
    "median": {"server__combine": "median"},
    "trimmed_mean(0.2)": {"server__combine": "trimmed_mean(0.2)"},
    "geometric_median": {"server__combine": "geometric_median"},
    "krum(1)": {"server__filters": ["krum(1)"]},
    "multi_krum(1,5)": {"server__filters": ["multi_krum(1, 5)"]},
    "clip": {"server__filters": ["clip"]},
}


@dataclass(frozen=True, slots=True)
class Attacked:
    """The cohort, of which one client sends something else than it trained."""

    cohort: Cohort
    attacker: str
    attack: Callable[[Tensor], Tensor]

    def ask(self, orders: Sequence[Order], answered: set[str]) -> Iterable[Update | Lost]:
        for answer in self.cohort.ask(orders, answered):
            if isinstance(answer, Update) and answer.client_id == self.attacker:
                changed = {name: self.attack(t) for name, t in answer.shared.items()}
                yield replace(answer, shared=changed)
            else:
                yield answer


def recall(out: Path, rule: str, attack: str, seed: int, attacker: str) -> float | None:
    """Of the honest clients; None where the run could not go on."""
    path = out / f"{rule}-{attack}-{seed}".replace(" ", "_")
    if not (path / "done.json").exists():
        shutil.rmtree(path, ignore_errors=True)
        recipe = demo_recipe(
            "fedavg",
            seed,
            out / "rewrites",
            training__rounds=5,
            training__lr=1e-2,
            evaluation__every=5,
            evaluation__select="last",
            run__threads=1,
            **RULES[rule],
        )
        try:
            results = train(
                recipe,
                path,
                base=open_base(recipe),
                wrap=lambda cohort: Attacked(cohort, attacker, ATTACKS[attack]),
            )
            honest = {c: s for c, s in results["clients"]["global"].items() if c != attacker}
            found, why = mean(s["recall"] for s in honest.values()), ""
        except FedsdrError as error:
            found, why = None, str(error)
        path.mkdir(exist_ok=True, parents=True)
        (path / "done.json").write_text(json.dumps({"recall": found, "why": why}) + "\n")
    return json.loads((path / "done.json").read_text())["recall"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/attack"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--attacker", default="c3")
    parser.add_argument("--shard", default="0/1")
    given = parser.parse_args()
    mine, of = map(int, given.shard.split("/"))
    cells = list(product(given.seeds, RULES, ATTACKS))
    for number, (seed, rule, attack) in enumerate(cells):
        if number % of == mine:
            found = recall(given.out, rule, attack, seed, given.attacker)
            print(f"seed {seed} {rule} / {attack}: {found}", flush=True)
    if of > 1:
        return
    print("\n| rule | " + " | ".join(ATTACKS) + " |\n|---|" + "---|" * len(ATTACKS))
    for rule in RULES:
        shown: list[str] = []
        for attack in ATTACKS:
            values = [recall(given.out, rule, attack, s, given.attacker) for s in given.seeds]
            kept = [v for v in values if v is not None]
            spread = f" ± {stdev(kept):.3f}" if len(kept) > 1 else ""
            lost = f" ({len(values) - len(kept)} stopped)" if len(kept) < len(values) else ""
            shown.append((f"{mean(kept):.3f}{spread}" if kept else "–") + lost)
        print(f"| {rule} | " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
