"""Rewriting with places that are filled up again, against batches that wait for their longest row.

The rows are of atlas clients in all styles, so that answers differ in length; the base is
atlas-base, as rewriting uses it. Both ways answer the same prompts with the same seeds; the answers
are compared, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fedsdr.data.render import render_prompt
from fedsdr.distill import generate as places
from fedsdr.distill.generate import Generated, Sampling, generate
from fedsdr.distill.prompts import choose_template, render
from fedsdr.jobs.assembly import open_base
from fedsdr.jobs.sources import load_federation
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import build_recipe
from fedsdr.tensors import derive_seed


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    recipe = build_recipe(
        {"data": {"atlas": {"clients": 8, "examples": -(-asked.rows // 8) * 5 // 4 + 8}}}
    )
    base = open_base(recipe)
    examples = [e for c in load_federation(recipe).clients for e in c.train][: asked.rows]
    prompts = [render_prompt(base, render(choose_template(e, "auto"), e)) for e in examples]
    found = [compare(base, prompts, batch, asked) for batch in asked.batch]
    print(json.dumps(found, indent=2) if asked.json else "\n".join(map(as_text, found)))


def compare(
    base: BaseModel, prompts: Sequence[Sequence[int]], batch: int, asked: argparse.Namespace
) -> dict[str, Any]:
    sampling = Sampling(temperature=asked.temperature, max_new_tokens=asked.max_new_tokens)
    seeds = [derive_seed("benchmark", i) for i in range(len(prompts))]
    ways: dict[str, Callable[[], list[Generated]]] = {
        "fixed": lambda: fixed_batches(base, prompts, sampling, seeds, batch),
        "refilled": lambda: generate(base, prompts, sampling, seeds, batch),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers = {way: answer() for way, answer in ways.items()}  # and a warm-up
    for number in range(asked.pairs):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            began = time.perf_counter()
            ways[way]()
            seconds[way].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(seconds["fixed"], seconds["refilled"], strict=True)]
    lengths = sorted(a.tokens for a in answers["refilled"])
    return {
        "rows": len(prompts),
        "batch": batch,
        "tokens": {"median": lengths[len(lengths) // 2], "longest": lengths[-1]},
        "rows_per_second": {w: len(prompts) / statistics.median(s) for w, s in seconds.items()},
        "times_as_fast": {
            "median": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        },
        "answers_that_differ": sum(
            a != b for a, b in zip(answers["fixed"], answers["refilled"], strict=True)
        ),
    }


def fixed_batches(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seeds: Sequence[int],
    batch: int,
) -> list[Generated]:
    """No place is taken again, none is given up before the batch's longest answer is there."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = dict[int, Generated]()
    shrink, places.SHRINK = places.SHRINK, 0
    try:
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            made = generate(
                base, [prompts[i] for i in some], sampling, [seeds[i] for i in some], batch
            )
            found |= dict(zip(some, made, strict=True))
    finally:
        places.SHRINK = shrink
    return [found[i] for i in range(len(prompts))]


def as_text(row: dict[str, Any]) -> str:
    speed, ratio = row["rows_per_second"], row["times_as_fast"]
    return (
        f"{row['rows']} rows, {row['tokens']['median']} tokens in the median and at most "
        f"{row['tokens']['longest']}, batch {row['batch']}: {speed['fixed']:.1f} rows/s in fixed "
        f"batches, {speed['refilled']:.1f} refilled: {ratio['median']:.2f} times as fast "
        f"({ratio['least']:.2f} to {ratio['most']:.2f}); answers that differ: "
        f"{row['answers_that_differ']}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--temperature", type=float, default=0.95)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
