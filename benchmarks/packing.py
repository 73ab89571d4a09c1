"""Packed against padded rows: training tokens per second, in the same process, step by step.

    python benchmarks/packing.py --data FOLDER    # client folders or files of records, jsonl
    python benchmarks/packing.py                  # Atlas clients

A small Llama made here (its tokenizer trained on the very rows); K clients' rows of one optimiser
step, forward and backward, in turn packed, packed but one client after another, packed with all
rows in one block of attention, and padded. Prints tokens per second of CPU, the median over the
steps of each way's time by packed's, the share of padding, and how far losses are apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from fedsdr.data.formats import read_table
from fedsdr.data.render import Rendered, make_block, render
from fedsdr.jobs.assembly import open_base
from fedsdr.jobs.sources import load_federation
from fedsdr.model import flat as blocks
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import fresh_llama, save_folder, train_tokenizer
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.recipe.settings import build_recipe
from fedsdr.tensors import generator
from fedsdr.training.step import summed_nll
from fedsdr.types import Example


def clients(data: Path | None) -> list[Sequence[Example]]:
    if data is None:
        recipe = build_recipe({"data": {"atlas": {"preset": "medium", "clients": 8}}})
        return [client.train for client in load_federation(recipe).clients]
    files = sorted(data.glob("*/train.jsonl")) or sorted(data.glob("*.jsonl"))
    return [read_table(file).examples for file in files]


def standin(rows: Sequence[Sequence[Example]], width: int, layers: int) -> BaseModel:
    texts = [f"{e.prompt}\n{e.response}" for own in rows for e in own]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(texts, 4096)
        net = fresh_llama(tokenizer, width=width, layers=layers, heads=width // 32, seed=1)
        save_folder(Path(folder), net, tokenizer)
        return load_base(folder)


def timed(
    base: BaseModel, lora: StackedLora, rows: Sequence[Sequence[Rendered]], together: int
) -> tuple[float, float]:
    """Seconds of CPU for one forward and backward pass of every client, so many side by side, and
    the loss."""
    seconds = total = 0.0
    for first in range(0, len(rows), together):
        group = rows[first : first + together]
        flat = lora.fresh("R", 1).float().repeat(len(group), 1).requires_grad_()
        block = make_block(group, base.pad, torch.device("cpu"))
        began = time.process_time()
        with lora.wear({"R": flat}, ["R"]):
            loss = summed_nll(base, block).sum()
            loss.backward()
        seconds += time.process_time() - began
        total += float(loss.detach())
    return seconds, total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = clients(given.data)
    base = (
        open_base(build_recipe({}))
        if given.data is None
        else standin(found, given.width, given.layers)
    )
    lora = StackedLora(base, "all-linear", {"R": BranchSpec()})
    limit = min(given.max_length, base.max_length)
    tokens = list[list[Rendered]]()
    for own in found:
        kept = [e for e in own if len(base.encode(e.prompt)) < limit - 64]
        tokens.append([render(base, e, limit) for e in kept])
    ways = {
        "packed": (True, blocks.WORTH, len(found)),
        "packed, one client after another": (True, blocks.WORTH, 1),
        "packed, attention in one block": (True, 1 << 60, len(found)),
        "padded": (False, blocks.WORTH, len(found)),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    real = padded = worst = 0.0
    for step in range(given.steps + 1):
        picks = [
            [
                own[i]
                for i in torch.randint(len(own), (given.batch,), generator=generator(1, step, k))
            ]
            for k, own in enumerate(tokens)
        ]
        losses = list[float]()
        for way in ways if step % 2 else reversed(ways):
            packing, blocks.WORTH, together = ways[way]
            took, loss = timed(replace(base, packing=packing), lora, picks, together)
            losses.append(loss)
            if step:  # the first pays for what is set up once
                seconds[way].append(took)
        worst = max(worst, (max(losses) - min(losses)) / abs(losses[0]))
        lengths = [len(r.ids) for own in picks for r in own]
        if step:
            real += sum(lengths)
            padded += max(lengths) * len(lengths)
    print(
        f"{len(found)} clients, batch {given.batch}, {given.steps} steps, "
        f"{given.threads} thread(s): {1 - real / padded:.0%} of a padded block is padding; "
        f"losses differ by at most {worst:.1e}"
    )
    for way, own in seconds.items():
        pairs = [other / packed for other, packed in zip(own, seconds["packed"], strict=True)]
        rate = real / given.steps / median(own)
        print(f"{way}: {rate:,.0f} tokens/s, {median(pairs):.2f} of the time that packed takes")


if __name__ == "__main__":
    main()
