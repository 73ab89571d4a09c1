"""What must be the same thing is the same thing: limits of one method that are another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from fedsdr.algorithms.registry import make_algorithm
from fedsdr.data.render import Rendered, draw_steps, render
from fedsdr.jobs.train import train
from fedsdr.model.adapters import merged_pairs
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import keep_norms_wide
from fedsdr.model.lora import StackedLora
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.local import LocalSettings
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import derive_seed, digest
from fedsdr.training.stage import StageJob, train_stage
from fedsdr.types import ClientData, Tensors
from toy import SPECS, clients, examples, largest_difference, moved, recipe, toy

# PEFT asks transformers in a way that transformers means to drop.
pytestmark = [
    pytest.mark.usefixtures("no_fsync"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]
SIZES = (2, 7, 4)


def end(base: BaseModel, algorithm: Algorithm, root: Path, **more: Any) -> Tensors:
    with toy(base, algorithm, root, clients(SIZES), cache=root.parent / "drafts", **more) as one:
        outcome = one.play(rounds=2)
        assert moved(outcome.state.shared, one.branches.first()) > 1e-3
        return outcome.state.shared


def test_fedsdr_without_r_is_fedsd_bit_for_bit(base64: BaseModel, tmp_path: Path) -> None:
    """What is FedAvg in a limit is in test_check_algorithm.py."""
    left = end(base64, make_algorithm("fedsdr", {"ablation": "without_r"}), tmp_path / "special")
    right = end(base64, make_algorithm("fedsd"), tmp_path / "plain")
    assert digest(left) == digest(right)


def test_the_idea_itself_makes_a_difference(base64: BaseModel, tmp_path: Path) -> None:
    """Else such a test would say nothing."""
    plain = end(base64, make_algorithm("fedavg"), tmp_path / "fedavg")
    for name in ("fedprox", "fedsd", "fedsdr"):
        options = {"mu": 1.0} if name == "fedprox" else {}
        other = end(base64, make_algorithm(name, options), tmp_path / name)
        assert largest_difference(plain, other) > 1e-4, name


def test_micro_batches_equal_one_batch(base64: BaseModel, tmp_path: Path) -> None:
    algorithm = make_algorithm("fedprox", {"mu": 0.3})
    for loss in ("tokens", "examples"):
        whole, parts = (
            end(
                base64,
                algorithm,
                tmp_path / f"{loss}-{size}",
                training=LocalSettings(batch=5, micro_batch=size, loss=loss),
            )
            for size in (None, 2)
        )
        assert largest_difference(whole, parts) <= 1e-9


def test_one_client_is_plain_fine_tuning_with_peft(
    base64: BaseModel, tiny_folder: Path, tmp_path: Path
) -> None:
    """FedAvg of a single client against peft, torch.optim.AdamW and clip_grad_norm_."""
    settings = LocalSettings(epochs=2, batch=3, weight_decay=0.1, clip=0.5)
    data = clients((7,))
    with toy(base64, make_algorithm("fedavg"), tmp_path / "run", data, training=settings) as one:
        outcome = one.play(rounds=2, lr=1e-2)
        rows = [render(base64, e, 256) for e in data["c0"].train]
        begin = pairs(one.lora, one.branches.first())
        ours = pairs(one.lora, outcome.state.shared)
    theirs = fine_tune_with_peft(tiny_folder, rows, begin, rounds=2, settings=settings)
    assert largest_difference(ours, theirs) <= 1e-9
    assert moved(ours, begin) > 1e-2


def pairs(lora: StackedLora, shared: Tensors) -> Tensors:
    """PEFT's names -> tensors."""
    plain = {n.partition("/")[2]: t for n, t in shared.items()}
    flat = lora.layouts["R"].flat(plain, torch.float64, torch.device("cpu"))
    merged = merged_pairs(lora, {"R": flat}, {"R": 1.0})
    return {
        f"{layer}.lora_{h}": t
        for layer, ab in merged.items()
        for h, t in zip("AB", ab, strict=True)
    }


def fine_tune_with_peft(
    folder: Path, rows: list[Rendered], begin: Tensors, rounds: int, settings: LocalSettings
) -> Tensors:
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    keep_norms_wide(net)
    spec = SPECS["R"]
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules="all-linear")
    model = get_peft_model(net, config, autocast_adapter_dtype=False)
    weights = {
        name.removeprefix("base_model.model.").removesuffix(
            ".default.weight"
        ): weight.requires_grad_()
        for name, weight in model.named_parameters()
        if "lora_" in name
    }
    assert weights.keys() == begin.keys()
    for name, weight in weights.items():
        weight.data = begin[name].clone()
    model.eval()
    for number in range(1, rounds + 1):
        rule = torch.optim.AdamW(weights.values(), lr=1e-2, weight_decay=settings.weight_decay)
        steps = math.ceil(len(rows) / settings.batch) * 2
        seed = derive_seed(5, number, "c0", "stage", 0)
        for chosen in draw_steps(len(rows), settings.batch, steps, seed, "batches", 0):
            rule.zero_grad()
            total = sum(nll(model, rows[i]) for i in chosen)
            (total / sum(rows[i].trained for i in chosen)).backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), settings.clip)
            rule.step()
    return {name: weight.detach() for name, weight in weights.items()}


def nll(model: Any, row: Rendered) -> torch.Tensor:
    """Row by row, without padding (transformers' own loss would round the logits to fp32)."""
    logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(row.ids[1:]), reduction="none")
    return losses[torch.tensor(row.weights[1:]) > 0].sum()


def test_loss_by_tokens_and_by_examples(base64: BaseModel) -> None:
    """Two rows with n1 and n2 trained tokens and mean losses l1 and l2, gradients g1 and g2:
    by tokens (n1 l1 + n2 l2) / (n1 + n2), by examples (l1 + l2) / 2; the gradients likewise
    (less exactly: Llama's norms pass gradients through fp32, whatever the model's dtype)."""
    algorithm = make_algorithm("fedavg")
    (stage,) = algorithm.stages
    lora = StackedLora(base64, "all-linear", {"R": SPECS["R"]})
    try:
        both = sorted((render(base64, e, 256) for e in examples("a", 12)), key=lambda r: r.trained)
        one, two = both[0], both[-1]
        n1, n2 = one.trained, two.trained
        assert n1 * 2 < n2
        start = {"R": lora.fresh("R", 1)[None] + 0.01}

        def step(rows: list[Rendered], loss: Any) -> tuple[float, torch.Tensor]:
            settings = LocalSettings(steps=1, batch=2, optimizer="sgd", clip=None, loss=loss)
            result = train_stage(lora, stage, start, [StageJob("a", (rows,), 1)], settings, lr=1.0)
            assert result.tokens == (sum(r.trained for r in rows),)
            return result.losses[0], start["R"] - result.flats["R"]

        (l1, g1), (l2, g2) = step([one], "tokens"), step([two], "tokens")
        loss, gradient = step([one, two], "tokens")
        assert loss == pytest.approx((n1 * l1 + n2 * l2) / (n1 + n2), rel=1e-12)
        assert torch.allclose(gradient, (n1 * g1 + n2 * g2) / (n1 + n2), rtol=0, atol=1e-7)
        loss, gradient = step([one, two], "examples")
        assert loss == pytest.approx((l1 + l2) / 2, rel=1e-12)
        assert torch.allclose(gradient, (g1 + g2) / 2, rtol=0, atol=1e-7)
    finally:
        lora.remove()


def test_central_is_one_client_that_owns_all_rows(tiny_folder: Path, tmp_path: Path) -> None:
    parts = list(clients(SIZES).values())
    union = ClientData(
        "all",
        tuple(e for c in parts for e in c.train),
        tuple(e for c in parts for e in c.validation),
    )
    central = recipe(tiny_folder, algorithm={"name": "central"})
    alone = recipe(tiny_folder, algorithm={"name": "fedavg"})
    train(central, tmp_path / "central", clients=parts)
    train(alone, tmp_path / "alone", clients=[union])
    left, right = (
        RunDirectory.open(tmp_path / name).load_latest_checkpoint()[1].tensors["shared"]
        for name in ("central", "alone")
    )
    assert digest(left) == digest(right)
