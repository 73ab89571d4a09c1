"""Does PEFT compute with the saved adapters what was trained? The largest difference of any logit.

A short FedSDR run saves its global and personal adapters. A fresh base wears each of them through
`peft.PeftModel.from_pretrained` and reads the clients' test rows one by one; fedsdr's own base
wears the branches from the run's checkpoint and reads them as one padded block, as in training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

import fedsdr.jobs.train
from fedsdr.data.render import Rendered, make_block, render
from fedsdr.jobs.assembly import Experiment, assemble
from fedsdr.parts.algorithm import split_mix
from fedsdr.recipe.settings import Recipe, build_recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import ClientData


def main() -> None:
    asked = _arguments()
    rows = list[dict[str, Any]]()
    if not asked.json:
        print(
            f"{'dtype':<10}{'adapter':<16}{'largest difference':>20}{'largest logit':>15}"
            f"{'adapter moves logits by':>25}"
        )
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float64", "float32"):
            out = Path(folder) / dtype
            recipe = _recipe(dtype, asked)
            fedsdr.jobs.train.train(recipe, out)
            for found in compared(recipe, out):
                rows.append({"dtype": dtype, **found})
                if not asked.json:
                    print(
                        f"{dtype:<10}{found['adapter']:<16}{found['difference']:>20.3g}"
                        f"{found['largest']:>15.3g}{found['moved']:>25.3g}",
                        flush=True,
                    )
    if asked.json:
        print(json.dumps(rows, indent=2))


def compared(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    """Every adapter folder of the run against the run's own branches."""
    experiment, run = assemble(recipe), RunDirectory.open(out)
    rounds = json.loads((out / "results.json").read_text())["chosen_rounds"]
    found = list[dict[str, Any]]()
    for name, mix in experiment.algorithm.deploys.items():
        chosen = rounds[name]
        shared = run.load_checkpoint(chosen).tensors["shared"]
        for client in experiment.trained:
            private = run.load_client_state(client.client_id, chosen + 1)
            own = private.tensors["branches"] if private else {}
            folder = out / "adapters" / name
            folder = folder / client.client_id if (folder / client.client_id).is_dir() else folder
            ours = _worn(experiment, shared, own, mix, client)
            theirs, bare = _loaded(experiment, folder, client)
            found.append(
                {
                    "adapter": f"{name} {client.client_id}",
                    "difference": _largest([o - t for o, t in zip(ours, theirs, strict=True)]),
                    "largest": _largest(ours),
                    "moved": _largest([t - b for t, b in zip(theirs, bare, strict=True)]),
                }
            )
    experiment.close()
    return found


def _worn(
    experiment: Experiment,
    shared: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    mix: str,
    client: ClientData,
) -> list[Tensor]:
    flats, _ = experiment.branches.enter(shared, [own])
    with torch.no_grad(), experiment.lora.wear(flats, split_mix(mix)):
        rows = _rows(experiment, client)
        block = make_block([rows], experiment.base.pad, experiment.base.net.device)
        logits = experiment.base.logits(block.ids)
        return [found[: len(row.ids)] for found, row in zip(logits, rows, strict=True)]


def _loaded(
    experiment: Experiment, folder: Path, client: ClientData
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of a fresh base with the adapter as PEFT loads it, and of that base without."""
    base = experiment.base
    net = AutoModelForCausalLM.from_pretrained(base.path, dtype=base.dtype).eval()
    texts = [torch.tensor([row.ids]) for row in _rows(experiment, client)]
    with torch.no_grad():
        bare = [net(input_ids=ids).logits[0] for ids in texts]
        model = PeftModel.from_pretrained(net, str(folder)).eval()
        return [model(input_ids=ids).logits[0] for ids in texts], bare


def _rows(experiment: Experiment, client: ClientData) -> list[Rendered]:
    return [render(experiment.base, e, experiment.recipe.model.max_length) for e in client.test]


def _largest(logits: Sequence[Tensor]) -> float:
    return max(float(t.abs().max()) for t in logits)


def _recipe(dtype: str, asked: argparse.Namespace) -> Recipe:
    return build_recipe(
        {
            "model": {"dtype": dtype},
            "data": {"atlas": {"clients": asked.clients, "examples": 20, "public": 8}},
            "algorithm": {"name": "fedsdr"},
            "training": {"rounds": asked.rounds},
            "rewriting": {"max_new_tokens": 72},
            "evaluation": {"every": asked.rounds, "select": "last"},
            "run": {"threads": asked.threads},
        }
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
