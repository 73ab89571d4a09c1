"""FDSP: all off it is FedAvg, each half off costs nothing, and stacking changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from fedsdr.algorithms.fdsp import fdsp
from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.registry import options
from fedsdr.algorithms.server import with_objectives
from fedsdr.errors import RecipeError
from fedsdr.jobs.sweep import read_sweep
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import train_tokenizer
from fedsdr.model.loading import load_base
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.injection import Disturbance
from fedsdr.parts.local import LocalSettings
from fedsdr.parts.objectives import Consistent, CrossEntropy, Distilled, Represented, Sum
from fedsdr.recipe.settings import read_recipe
from fedsdr.tensors import digest
from fedsdr.training.step import LocalStep
from fedsdr.types import ClientData, Example, Tensors
from toy import TEXTS, clients, largest_difference, loud, moved, toy

pytestmark = pytest.mark.usefixtures("no_fsync")
RECIPES = Path(__file__).parents[3] / "recipes"
SIZES = (2, 7, 4)
LOUD: dict[str, Any] = {"rho_attention": 0.7, "rho_feed_forward": 0.6}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "gaussian": LOUD | {"injection": "gaussian", "sigma": 0.8, "warmup": 0.0},
    "rank_drop": LOUD | {"injection": "rank_drop", "rate": 0.5},
    "module_drop": LOUD | {"injection": "module_drop", "warmup": 1.0},
    "gold": {"tokens": "gold", "layers": "depth", "growth": 5.0},
    "drift": {"tokens": "uniform", "layers": "drift", "lambda_r": 2.0, "beta": 0.0},
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A model whose rows are padded."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = train_tokenizer(TEXTS, 300)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=2, n_head=2)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = loud(AutoModelForCausalLM.from_config(config))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return replace(load_base(folder, "float64"), packing=False)


def unequal() -> dict[str, ClientData]:
    """One client's rows are far longer than the others', of which one has a single row."""
    data = clients((1, 5, 3))
    long = tuple(
        Example(f"l{i}", " ".join(TEXTS[:2]), " ".join(TEXTS[i : i + 3])) for i in range(3)
    )
    return {**data, "c2": replace(data["c2"], train=long)}


def end(
    base: BaseModel,
    algorithm: Algorithm,
    root: Path,
    data: dict[str, ClientData] | None = None,
    **more: Any,
) -> Tensors:
    with toy(base, algorithm, root, data or clients(SIZES), **more) as one:
        outcome = one.play(rounds=2)
        assert moved(outcome.state.shared, one.branches.first()) > 1e-3
        return outcome.state.shared


def stacked_or_not(base: BaseModel, algorithm: Algorithm, root: Path, **more: Any) -> float:
    ends = [end(base, algorithm, root / str(k), stack=k, **more) for k in (3, 1)]
    return largest_difference(*ends)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("padded", [False, True], ids=["flat", "padded"])
def test_stacked_equals_one_by_one(
    options: dict[str, Any], padded: bool, base64: BaseModel, gpt2: BaseModel, tmp_path: Path
) -> None:
    base = gpt2 if padded else base64
    assert base.packs is not padded
    training = LocalSettings(epochs=2, batch=2)  # 2, 6 and 4 steps, each with its own warm-up
    algorithm = fdsp(**options)
    assert stacked_or_not(base, algorithm, tmp_path, data=unequal(), training=training) <= 1e-9


@pytest.mark.parametrize("kind", ["gaussian", "rank_drop", "module_drop"])
def test_flat_rows_are_disturbed_as_padded_ones_are(
    kind: Any, base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers are drawn for the same tokens, whichever way these stand."""
    algorithm = fdsp(**LOUD | {"injection": kind, "warmup": 0.0})
    flat = end(base64, algorithm, tmp_path / "flat")
    monkeypatch.setattr("fedsdr.model.base.runs_flat", lambda net: False)
    padded = end(base64, algorithm, tmp_path / "padded")
    assert largest_difference(flat, padded) <= 1e-8


@pytest.mark.parametrize("kind", ["gaussian", "rank_drop", "module_drop"])
def test_stacking_holds_with_micro_batches(kind: Any, base64: BaseModel, tmp_path: Path) -> None:
    """Client c0 has one row: a step of its own is one micro-batch alone, beside the others three;
    what it drew in the empty ones would show in its second step."""
    training = LocalSettings(epochs=2, batch=5, micro_batch=2)
    algorithm = fdsp(**LOUD | {"injection": kind, "warmup": 0.0})
    assert stacked_or_not(base64, algorithm, tmp_path, data=unequal(), training=training) <= 1e-9


def test_micro_batches_do_not_change_what_can_be_exact(base64: BaseModel, tmp_path: Path) -> None:
    for number, layers in enumerate(("uniform", "depth", "drift")):
        algorithm = fdsp(tokens="uniform", layers=layers, lambda_c=0.0, growth=1.0)
        whole, parts = (
            end(
                base64,
                algorithm,
                tmp_path / f"{number}-{size}",
                training=LocalSettings(batch=5, micro_batch=size),
            )
            for size in (None, 2)
        )
        assert largest_difference(whole, parts) <= 1e-9


def test_all_off_is_fedavg_bit_for_bit(base64: BaseModel, tmp_path: Path) -> None:
    off = end(base64, fdsp(lambda_d=0.0, lambda_r=0.0, lambda_c=0.0), tmp_path / "off")
    assert digest(off) == digest(end(base64, fedavg(), tmp_path / "plain"))


def test_every_part_makes_a_difference(base64: BaseModel, tmp_path: Path) -> None:
    none = {"lambda_d": 0.0, "lambda_r": 0.0, "lambda_c": 0.0}
    plain = end(base64, fedavg(), tmp_path / "plain")
    for part in none:
        other = end(base64, fdsp(**none | {part: 1.0}), tmp_path / part)
        assert largest_difference(plain, other) > 1e-4, part


def test_what_is_off_costs_no_pass(
    base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward passes of one step: 1 for the loss, 1 for the teacher, 1 perturbed."""
    asked = list[str]()
    plain = LocalStep.predict

    def predict(self: LocalStep, *how: Any, **more: Any) -> Any:
        before = len(self.passes)
        found = plain(self, *how, **more)
        ran = len(self.passes) > before
        if more.get("injection") is not None:
            asked.append("perturbed")
        elif ran:
            asked.append(how[0] if how else "now")
        return found

    monkeypatch.setattr(LocalStep, "predict", predict)
    training = LocalSettings(steps=1, batch=2)
    wanted = {
        (0.5, 0.1, 0.1): ["now", "perturbed", "start"],
        (0.5, 0.0, 0.0): ["now", "start"],
        (0.0, 0.1, 0.0): ["now", "start"],
        (0.0, 0.0, 0.1): ["now", "perturbed"],
        (0.0, 0.0, 0.0): ["now"],
    }
    for number, (weights, passes) in enumerate(wanted.items()):
        asked.clear()
        root = tmp_path / str(number)
        with toy(base64, fdsp(*weights), root, clients((2,)), training=training) as one:
            one.play(rounds=1)
        assert sorted(asked) == passes, weights


def test_no_pass_is_run_twice_for_its_hidden_states(
    base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block, one step: 3 passes through the first layer, not more."""
    runs = 0
    with toy(base64, fdsp(), tmp_path, clients((2,)), training=LocalSettings(steps=1)) as one:
        layer = next(iter(one.lora.layers.values()))

        def count(*_: Any) -> None:
            nonlocal runs
            runs += 1

        handle = layer.register_forward_hook(count)
        one.play(rounds=1)
        handle.remove()
    assert runs == 3


def test_the_options_reach_their_parts() -> None:
    algorithm = fdsp(
        0.1,
        0.2,
        lambda_c=0.3,
        tau=4.0,
        tokens="gold",
        growth=0.5,
        layers="depth",
        injection="rank_drop",
        rho_attention=0.6,
        rho_feed_forward=0.7,
        sigma=1.0,
        rate=0.9,
        warmup=0.25,
        beta=2.0,
    )
    ((term,),) = (stage.terms for stage in algorithm.stages)
    disturbance = Disturbance("rank_drop", 0.6, 0.7, 1.0, 0.9, 0.25)
    assert term.objective == Sum(
        (
            Represented(0.2, "depth"),
            Consistent(0.3, disturbance, 2.0),
            Distilled(0.1, 4.0, "gold", 0.5),
            CrossEntropy(),
        )
    )
    assert (algorithm.name, algorithm.share) == ("fdsp", "R")


BAD = (-0.1, math.nan, math.inf, -math.inf)
REFUSED = {
    **dict.fromkeys(("lambda_d", "lambda_r", "lambda_c", "growth", "sigma", "beta"), BAD),
    **dict.fromkeys(("rho_attention", "rho_feed_forward", "warmup"), (*BAD, 1.1)),
    "rate": (*BAD, 1.0),
    "tau": (*BAD, 0.0),
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, vs in REFUSED.items() for v in vs])
def test_a_senseless_option_is_refused(option: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"^algorithm\.{option} must .* it is {value}$"):
        fdsp(**{option: value})


def test_other_objectives_stack_too(base64: BaseModel, gpt2: BaseModel, tmp_path: Path) -> None:
    algorithm = with_objectives(fdsp(), {"selfaug": 0.5, "rectified": 0.5})
    for name, base in (("flat", base64), ("padded", gpt2)):
        assert stacked_or_not(base, algorithm, tmp_path / name, data=unequal()) <= 1e-9


def test_the_recipe_shows_the_defaults_and_the_sweeps_are_valid() -> None:
    recipe = read_recipe(RECIPES / "fdsp.yaml")
    assert recipe.algorithm.options == options("fdsp")
    assert fdsp(**recipe.algorithm.options) == fdsp()
    for name, methods in (("fdsp-ablations", 16), ("fdsp-sensitivity", 13)):
        sweep = read_sweep(RECIPES / f"{name}.yaml")
        made = {str(change) for change in sweep.methods.values()}
        assert len(made) == len(sweep.methods) == methods
