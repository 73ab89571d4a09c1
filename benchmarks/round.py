"""A round of local training: stacked, one client after another, and as today's tools do it.

Prints ratios of wall time and of achieved FLOP/s, and asserts none: they are the machine's. Every
contender goes from the same broadcast adapter over the same rows in the same steps to K adapters,
and all are measured in turn, cycle after cycle, so that what disturbs the machine disturbs them
alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from fedsdr.data.render import Rendered, draw_steps, render
from fedsdr.jobs.assembly import Experiment, assemble
from fedsdr.parts.local import LocalSettings
from fedsdr.recipe.settings import build_recipe
from fedsdr.training.stage import StageJob, train_stage

MATRIX_SIZES = (256, 512, 1024, 2048)
Adapter = Mapping[str, Tensor]  # "R/<layer>.A" -> tensor


def main() -> None:
    asked = _arguments()
    work = Work.of(asked)
    if asked.profile:
        print(profiled(work))
        return
    kept = wrapped_base(work)
    contenders: Mapping[str, Callable[[], list[Adapter]]] = {
        "stacked": lambda: stacked(work),
        "one by one": lambda: one_by_one(work),
        "trainer": lambda: with_trainers(work, lambda: kept),
        "trainer, base reloaded": lambda: with_trainers(work, lambda: wrapped_base(work)),
    }
    answers = {name: run() for name, run in contenders.items()}  # the warm-up
    matrix_peak()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: list[dict[int, float]] = []
    for _ in range(asked.pairs):
        for name, run in contenders.items():
            gc.collect()
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
        peaks.append(matrix_peak())
    report = summary(work, answers, seconds, peaks)
    print(json.dumps(report, indent=2) if asked.json else as_text(report))


@dataclass(frozen=True, slots=True)
class Work:
    """What every contender has to do."""

    experiment: Experiment
    jobs: tuple[StageJob, ...]
    settings: LocalSettings
    lr: float

    @classmethod
    def of(cls, asked: argparse.Namespace) -> Work:
        recipe = build_recipe(
            {
                "data": {"atlas": {"clients": asked.clients}},
                "algorithm": {"name": "fedavg"},
                "training": {"batch": asked.batch},
                "run": {"stack": asked.clients, "threads": asked.threads},
            }
        )
        experiment = assemble(recipe)
        settings = LocalSettings(epochs=recipe.training.local_epochs, batch=asked.batch)
        jobs = tuple(
            StageJob(c.client_id, ([render(experiment.base, e, 1024) for e in c.train],), seed)
            for seed, c in enumerate(experiment.trained)
        )
        return cls(experiment, jobs, settings, recipe.training.lr)

    @property
    def broadcast(self) -> Adapter:
        return self.experiment.branches.first()

    def batches(self, job: StageJob) -> list[list[int]]:
        """The row numbers of every step, as `train_stage` draws them."""
        steps = job.steps(self.experiment.algorithm.stages[0], self.settings)
        return draw_steps(len(job.rows[0]), self.settings.batch, steps, job.seed, "batches", 0)


def stacked(work: Work) -> list[Adapter]:
    return _trained(work, work.jobs)


def one_by_one(work: Work) -> list[Adapter]:
    return [adapter for job in work.jobs for adapter in _trained(work, [job])]


def _trained(work: Work, jobs: Sequence[StageJob]) -> list[Adapter]:
    branches, stage = work.experiment.branches, work.experiment.algorithm.stages[0]
    flats, start = branches.enter(work.broadcast, [{}] * len(jobs))
    result = train_stage(
        work.experiment.lora,
        stage,
        flats=flats,
        jobs=jobs,
        settings=work.settings,
        lr=work.lr,
        start=start,
    )
    return [branches.shared({"R": flat}) for flat in result.flats["R"]]


def wrapped_base(work: Work) -> Any:
    """The base from its folder, as a PEFT model of the same rank, scale and layers."""
    base, spec = work.experiment.base, work.experiment.lora.layouts["R"].spec
    net = AutoModelForCausalLM.from_pretrained(base.path, dtype=base.dtype)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=spec.rank, lora_alpha=int(spec.alpha), target_modules="all-linear"
    )
    return get_peft_model(net, config)


class HandedTrainer(Trainer):
    """A Trainer whose batches are handed to it: all see the same rows in the same steps."""

    batches: list[list[int]]

    def get_train_dataloader(self) -> Any:
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # a list is a map-style dataset
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)


def with_trainers(work: Work, model_for: Callable[[], Any]) -> list[Adapter]:
    """PEFT, and a Trainer built anew per client: on one base, as OpenFedLLM's loop does, or on a
    base loaded each time, as FlowerTune's clients do."""
    found = list[Adapter]()
    for job in work.jobs:
        model = model_for()
        set_peft_model_state_dict(model, _to_peft(work.broadcast))
        with tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(work, job, model, folder)
            trainer.train()
        found.append(
            {n: t.clone() for n, t in _from_peft(get_peft_model_state_dict(model)).items()}
        )
    return found


def _trainer(work: Work, job: StageJob, model: Any, folder: str) -> HandedTrainer:
    batches = work.batches(job)
    trainer = HandedTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.settings.batch,
            max_steps=len(batches),
            learning_rate=work.lr,
            lr_scheduler_type="constant",
            weight_decay=work.settings.weight_decay,
            max_grad_norm=work.settings.clip or 0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=[_features(row) for row in job.rows[0]],
        data_collator=DataCollatorForSeq2Seq(work.experiment.base.tokenizer),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.batches = batches
    return trainer


def _features(row: Rendered) -> dict[str, list[int]]:
    labels = [i if w else -100 for i, w in zip(row.ids, row.weights, strict=True)]
    return {"input_ids": list(row.ids), "attention_mask": [1] * len(row.ids), "labels": labels}


def _to_peft(adapter: Adapter) -> dict[str, Tensor]:
    names = {n: n.removeprefix("R/").rpartition(".") for n in adapter}
    return {
        f"base_model.model.{layer}.lora_{half}.weight": adapter[n]
        for n, (layer, _, half) in names.items()
    }


def _from_peft(state: Mapping[str, Tensor]) -> Adapter:
    plain = {n: n.removeprefix("base_model.model.").removesuffix(".weight") for n in state}
    return {f"R/{p.replace('.lora_', '.')}": state[n] for n, p in plain.items()}


@dataclass(frozen=True, slots=True)
class Flops:
    """Of a stacked round. `needed`: by formula, on real tokens alone; `executed`: as PyTorch counts
    them, padding included but attention (which it does not count on a CPU) left out."""

    needed: float
    executed: float


def count_flops(work: Work) -> Flops:
    """Products only. Frozen weights: 2·params per token forward, and as many backward."""
    lora, config = work.experiment.lora, work.experiment.base.net.config
    frozen = sum(i * o for i, o in lora.shapes.values())
    entry = sum(  # what embeddings enter: nothing before it wants a gradient
        i * o
        for name, (i, o) in lora.shapes.items()
        if "layers.0." in name and name.endswith(("q_proj", "k_proj", "v_proj"))
    )
    low_rank = lora.layouts["R"].size
    head = config.hidden_size * config.vocab_size
    needed = 0.0
    for job in work.jobs:
        for row in [job.rows[0][i] for batch in work.batches(job) for i in batch]:
            length = len(row.ids)
            needed += length * (2 * frozen + 2 * (frozen - entry))
            needed += length * 6 * low_rank  # forward, d activations, d weights
            needed += row.trained * 4 * head
            # Q Kᵀ and A V, causal: half of 4·T²·width forward, twice that backward
            needed += config.num_hidden_layers * 6 * length**2 * config.hidden_size
    with FlopCounterMode(display=False) as counter:
        stacked(work)
    return Flops(needed, float(counter.get_total_flops()))


def matrix_peak() -> dict[int, float]:
    """Size -> FLOP/s of torch.mm on squares of that size; the best of several repeats."""
    return {size: _speed(size) for size in MATRIX_SIZES}


def _speed(size: int) -> float:
    a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    best, until = float("inf"), time.perf_counter() + 0.25
    while time.perf_counter() < until:
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def summary(
    work: Work,
    answers: Mapping[str, Sequence[Adapter]],
    seconds: Mapping[str, Sequence[float]],
    peaks: Sequence[Mapping[int, float]],
) -> dict[str, Any]:
    flops = count_flops(work)
    best = [max(found.values()) for found in peaks]
    paired = list(zip(seconds["stacked"], best, strict=True))
    steps = [len(work.batches(job)) for job in work.jobs]
    return {
        "clients": len(work.jobs),
        "batch": work.settings.batch,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "pairs": len(paired),
        "seconds": {name: _spread(found) for name, found in seconds.items()},
        "times the stacked round": {
            name: _spread([o / s for o, s in zip(found, seconds["stacked"], strict=True)])
            for name, found in seconds.items()
            if name != "stacked"
        },
        "largest difference of an adapter entry to stacked": {
            name: _difference(found, answers["stacked"])
            for name, found in answers.items()
            if name != "stacked"
        },
        "stacked gflop": {"needed": flops.needed / 1e9, "executed": flops.executed / 1e9},
        "stacked gflop/s": {
            "needed": _spread([flops.needed / s / 1e9 for s, _ in paired]),
            "executed": _spread([flops.executed / s / 1e9 for s, _ in paired]),
        },
        "torch.mm gflop/s": {
            str(size): _spread([found[size] / 1e9 for found in peaks]) for size in MATRIX_SIZES
        },
        "share of the torch.mm peak": {
            "needed": _spread([flops.needed / s / peak for s, peak in paired]),
            "executed": _spread([flops.executed / s / peak for s, peak in paired]),
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _difference(ours: Sequence[Adapter], theirs: Sequence[Adapter]) -> float:
    return max(
        float((a[name] - b[name]).abs().max())
        for a, b in zip(ours, theirs, strict=True)
        for name in b
    )


def as_text(report: Mapping[str, Any]) -> str:
    steps = report["steps"]
    lines = [
        f"{report['clients']} clients, batch {report['batch']}, {min(steps)} to {max(steps)} steps "
        f"each, {report['threads']} threads, {report['pairs']} interleaved pairs after a warm-up",
        "median (min to max)",
    ]
    for title, found in report.items():
        if not isinstance(found, Mapping):
            continue
        lines.append(f"\n{title}")
        for name, value in found.items():
            if isinstance(value, Mapping):
                shown = f"{value['median']:10.3g}  ({value['min']:.3g} to {value['max']:.3g})"
            else:
                shown = f"{value:10.3g}"
            lines.append(f"  {name:<24}{shown}")
    return "\n".join(lines)


def profiled(work: Work) -> str:
    """The operators of one stacked step by their own time."""
    short = replace(work, settings=replace(work.settings, steps=1))
    stacked(short)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        stacked(short)
    return seen.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=48
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="measured cycles of all contenders")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--batch", type=int, default=4, help="rows per client and step")
    parser.add_argument("--clients", type=int, default=8, help="K, all side by side")
    parser.add_argument("--profile", action="store_true", help="only the operators of one step")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
