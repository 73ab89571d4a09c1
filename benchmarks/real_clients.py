"""Eight real clients from their files to scored models, by the commands that a user types.

    python benchmarks/real_clients.py --data FOLDER    # FOLDER/<client>/{train,test}.jsonl

A small Llama is made on the spot (its tokenizer trained on the training rows, its weights for a
few steps on the same rows); then `fedsdr plan`, `distill`, `train`, `evaluate` and `merge` run one
after another, each a process of its own. Printed: seconds and peak memory of each. What such a
model says is no measure of any method; the path, its time and its memory are real.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECIPE = """\
seed: {seed}
model: {{path: {model}}}
data:
  files: {files}
  test_files: {tests}
  validation: 0.0 # every training row is trained on
algorithm: {{name: {algorithm}{options}}}
training: {{rounds: {rounds}, local_epochs: {epochs}, batch: 8, lr: 3.0e-3}}
rewriting: {{max_new_tokens: {new_tokens}, cache: {drafts}}}
evaluation: {{select: last}}
run: {{threads: 1, stack: {stack}}}
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What a command took: seconds of wall clock and of CPU, and its peak memory in bytes."""

    name: str
    wall: float
    cpu: float
    peak: int


def main() -> None:
    asked = _arguments()
    if asked.make is not None:
        make_standin(asked.make, asked)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model"
        us = [__file__, "--make", str(model), *sys.argv[1:]]
        done = [timed("stand-in made", [sys.executable, *us], folder)]
        recipe, run = folder / "recipe.yaml", folder / "run"
        recipe.write_text(written(asked, folder))
        for name, *rest in (
            ("plan", str(recipe)),
            ("distill", str(recipe), "--out", str(folder / "rewrites")),
            ("train", str(recipe), "--out", str(run)),
            ("evaluate", str(run)),
            ("merge", str(run), "--out", str(folder / "merged")),
        ):
            if name == "distill" and asked.algorithm not in ("fedsd", "fedsdr"):
                continue
            command = Path(sys.executable).with_name("fedsdr")
            done.append(timed(f"fedsdr {name}", [str(command), name, *rest], folder))
        print(table(done))
        print(outcome(folder))


def written(asked: argparse.Namespace, folder: Path) -> str:
    """The recipe, JSON being YAML."""
    names = clients(asked.data)
    boosted = asked.algorithm in ("fedsd", "fedsdr")
    return RECIPE.format(
        seed=asked.seed,
        model=json.dumps(str(folder / "model")),
        files=json.dumps({n: str(asked.data.resolve() / n / "train.jsonl") for n in names}),
        tests=json.dumps({n: str(asked.data.resolve() / n / "test.jsonl") for n in names}),
        algorithm=asked.algorithm,
        options=f", options: {{selection: {asked.selection}}}" if boosted else "",
        rounds=asked.rounds,
        stack=asked.stack,
        epochs=asked.epochs,
        new_tokens=asked.new_tokens,
        drafts=json.dumps(str(folder / "rewrites" / "drafts")),
    )


def clients(data: Path) -> list[str]:
    return sorted(file.parent.name for file in data.glob("*/train.jsonl"))


def timed(name: str, command: Sequence[str], folder: Path) -> Done:
    """Run it to its end. A child's peak begins with its starter's: this process stays small."""
    with (folder / f"{name.replace(' ', '-')}.log").open("w") as log:
        began = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, text=True
        )
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - began
    if status:
        sys.exit(f"{name} failed:\n{Path(log.name).read_text()[-4000:]}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Done(name, wall, used.ru_utime + used.ru_stime, peak)


def table(rows: Sequence[Done]) -> str:
    lines = ["| step | seconds | of CPU | peak memory |", "|---|---|---|---|"]
    lines += [f"| {d.name} | {d.wall:.0f} | {d.cpu:.0f} | {d.peak / 1e6:.0f} MB |" for d in rows]
    wall, cpu = sum(d.wall for d in rows), sum(d.cpu for d in rows)
    return "\n".join([*lines, f"| all | {wall:.0f} | {cpu:.0f} | |"])


def outcome(folder: Path) -> str:
    """What the files say that the commands left behind."""
    results: dict[str, Any] = json.loads((folder / "run/results.json").read_text())
    losses = ", ".join(f"{mix} {s['loss']:.3f}" for mix, s in results["scores"].items())
    lines = [
        f"{results['steps']:.0f} steps, {results['tokens']:,.0f} trained tokens, "
        f"{results['bytes_up']:,} bytes up and {results['bytes_down']:,} down; "
        f"test loss, mean over clients: {losses}"
    ]
    summary = folder / "rewrites/summary.json"
    if summary.exists():
        own: dict[str, Any] = json.loads(summary.read_text())["clients"]
        kept = ", ".join(f"{name} {row['kept']:.0%}" for name, row in own.items())
        lines.append(f"rewrites that the rule keeps: {kept}")
    proof: dict[str, Any] = json.loads((folder / "merged/merge_proof.json").read_text())
    lines.append(
        f"merge: {proof['equal_answers']} of {proof['prompts']} greedy answers equal, logits "
        f"differ by at most {proof['difference']:.1e}"
    )
    return "\n".join(lines)


def make_standin(folder: Path, asked: argparse.Namespace) -> None:
    """A small Llama that has learned which tokens are frequent, and which follow which."""
    import torch
    from torch.nn.functional import cross_entropy

    from fedsdr.data.formats import read_table
    from fedsdr.data.render import render
    from fedsdr.model.fresh import fresh_llama, save_folder, train_tokenizer
    from fedsdr.model.loading import load_base
    from fedsdr.tensors import generator

    torch.set_num_threads(1)
    files = [asked.data / name / "train.jsonl" for name in clients(asked.data)]
    rows = [example for file in files for example in read_table(file).examples]
    tokenizer = train_tokenizer([f"{e.prompt}\n{e.response}" for e in rows], 4096)
    heads = asked.width // 32
    net = fresh_llama(
        tokenizer, width=asked.width, layers=asked.layers, heads=heads, seed=asked.seed
    )
    save_folder(folder, net, tokenizer)
    base, random = load_base(folder), generator(asked.seed, "warm-up")
    order = torch.randperm(len(rows), generator=random).tolist()
    stream = torch.tensor([t for i in order for t in render(base, rows[i], base.max_length).ids])
    blocks = stream[: len(stream) // 256 * 256].view(-1, 256)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    net.train()
    for step in range(asked.warm_up):
        ids = blocks[torch.randint(len(blocks), (16,), generator=random)]
        logits = net(input_ids=ids).logits[:, :-1].flatten(0, 1)
        loss = cross_entropy(logits, ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: {loss.item():.2f}", flush=True)
    save_folder(folder, net, tokenizer)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--keep", type=Path, help="a folder that stays: recipe, logs, run")
    parser.add_argument("--algorithm", default="fedsdr")
    parser.add_argument("--selection", default="task")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=0.25, help="of each stage, in a round")
    parser.add_argument("--stack", type=int, default=1, help="K, clients side by side")
    parser.add_argument("--new-tokens", type=int, default=32, help="of a rewrite, at most")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=50, help="steps of the stand-in")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
