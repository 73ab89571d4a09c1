"""`fedsdr demo`: FedAvg, FedSD and FedSDR on the same eight clients of the embedded world, and what
came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.coordinator.job import Watch
from fedsdr.jobs.assembly import open_base
from fedsdr.jobs.train import train
from fedsdr.recipe.settings import Recipe, build_recipe
from fedsdr.runs.places import new_folder

Results = Mapping[str, Any]  # what a run's results.json holds
METHODS = ("fedavg", "fedsd", "fedsdr")
NAMES = {"fedavg": "FedAvg", "fedsd": "FedSD", "fedsdr": "FedSDR"}
MEASURES = (
    "recall",
    "recall_worst",
    "retention",
    "hallucination",
    "redundancy",
    "house_share",
    "words",
)
# Picked on seeds 101 and 102 from the grid in docs/log.md, by recall on validation questions.
LEARNING_RATES = {"fedavg": 1e-2, "fedsd": 1e-2, "fedsdr": 1e-3}


@dataclass(frozen=True, slots=True)
class DemoResult:
    out: Path
    runs: Mapping[str, Results]
    faithful: Mapping[str, float]  # kind of question -> share of strictly faithful rewrites

    def rows(self) -> list[tuple[str, str, Mapping[str, float]]]:
        """(method, model, measures), in the order of the table."""
        return [
            (NAMES[method], mix, scores)
            for method, result in self.runs.items()
            for mix, scores in result["scores"].items()
        ]


def demo_recipe(method: str, seed: int, cache: Path, **changes: Any) -> Recipe:
    """The demo's recipe; a seed fixes world, partition, R's start and sampling for every method."""
    tree: dict[str, Any] = {
        "seed": seed,
        "data": {"atlas": {"preset": "medium", "clients": 8, "examples": 50}},
        "algorithm": {"name": method},
        "training": {
            "rounds": 10,
            "local_epochs": 2.0,
            "batch": 8,
            "lr": LEARNING_RATES.get(method, 1e-2),
        },
        "rewriting": {"max_new_tokens": 80, "cache": str(cache)},
        "evaluation": {"every": 2},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    return build_recipe(tree, "demo")


def run_demo(
    out: Path, seed: int, watching: Callable[[str, int], AbstractContextManager[Watch]]
) -> DemoResult:
    """Run the three methods one after another; `watching(method, rounds)` shows each one's
    progress."""
    out = new_folder(out)
    cache, runs = out / "rewrites", dict[str, Results]()
    base = open_base(demo_recipe("fedavg", seed, cache))
    for method in METHODS:
        recipe = demo_recipe(method, seed, cache)
        with watching(NAMES[method], recipe.training.rounds) as watch:
            runs[method] = train(recipe, out / method, watch, base)
    return DemoResult(out, runs, runs["fedsd"]["rewriting"]["faithful"])


def sentences(demo: DemoResult) -> tuple[str, str, str]:
    """What the numbers of this one run mean, computed from them."""
    avg, sd, sdr = (demo.runs[m]["scores"]["global"] for m in METHODS)
    personal = demo.runs["fedsdr"]["scores"]["personal"]
    several, single = (1 - demo.faithful.get(kind, 0.0) for kind in ("describe", "fact"))
    return (
        f"FedSD's global model recalls {sd['recall']:.0%} of the clients' private facts where "
        f"FedAvg's recalls {avg['recall']:.0%}, and keeps {sd['retention']:.0%} of the public "
        f"facts where FedAvg's keeps {avg['retention']:.0%}: rewriting {_verdict(sd, avg)} here.",
        f"Rewriting has its price in truth: {several:.0%} of the several-fact rewrites and "
        f"{single:.0%} of the single-fact ones are not strictly faithful, while "
        f"{sd['hallucination']:.0%} of FedSD's answers hold something false, "
        f"{avg['hallucination']:.0%} of FedAvg's.",
        f"FedSDR's global model recalls {sdr['recall']:.0%} and keeps {sdr['retention']:.0%}: it "
        f"{_against(sdr, avg, 'FedAvg')} and {_against(sdr, sd, 'FedSD')}; its personal models "
        f"recall {personal['recall']:.0%} of their own client's facts and keep "
        f"{personal['retention']:.0%}.",
    )


NOISE = 0.02  # smaller differences are not worth a word in a single run


def _verdict(new: Mapping[str, float], old: Mapping[str, float]) -> str:
    ups = [m for m in ("recall", "retention") if new[m] - old[m] > NOISE]
    downs = [m for m in ("recall", "retention") if old[m] - new[m] > NOISE]
    if ups and downs:
        return f"helps {ups[0]} and hurts {downs[0]}"
    if ups:
        return "helps " + " and ".join(ups)
    return "hurts " + " and ".join(downs) if downs else "makes no clear difference"


def _against(new: Mapping[str, float], old: Mapping[str, float], name: str) -> str:
    gap = new["recall"] - old["recall"]
    word = "beats" if gap > NOISE else "loses to" if gap < -NOISE else "equals"
    return f"{word} {name} in recall ({gap:+.0%})"
