"""Any Hugging Face causal LM can stand in for atlas-base: on every architecture a whole FedSDR run,
its adapter in PEFT, and merged into the weights."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from families import FAMILIES, family_folder
from fedsdr import ClientData, Example, Recipe, build_recipe, resume, run
from fedsdr.errors import ModelError
from fedsdr.evaluate.scoring import Worn
from fedsdr.model.adapters import load_adapter
from fedsdr.model.base import linear_layers
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from toy import TEXTS

pytestmark = pytest.mark.usefixtures("no_fsync")
ROWS = tuple(Example(f"r{i}", TEXTS[i % len(TEXTS)][:30], TEXTS[-i % 5][:20]) for i in range(16))
CLIENTS = [
    ClientData(name, ROWS[at : at + 6], ROWS[12:14], ROWS[14:]) for name, at in (("a", 0), ("b", 6))
]
IDS = torch.tensor([[7, 8, 9, 10, 20, 30, 40, 50]])


def recipe(folder: Path, **model: Any) -> Recipe:
    return build_recipe(
        {
            "model": {"path": str(folder), **model},
            "training": {"rounds": 2, "local_steps": 2, "batch": 2, "lr": 0.02},
            "rewriting": {"max_new_tokens": 8},
            "run": {"threads": 1},
        }
    )


def averaged(given: Recipe) -> Recipe:
    """FedAvg in its place: what is rewritten depends on the dtype."""
    return given.model_copy(
        update={"algorithm": given.algorithm.model_copy(update={"name": "fedavg"})}
    )


@dataclass(frozen=True, slots=True)
class Ran:
    """A run of one architecture."""

    name: str
    folder: Path
    run: Path
    results: Any


@pytest.fixture(scope="module", params=FAMILIES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("family")
    folder = family_folder(root / "model", request.param)
    results = run(recipe(folder), root / "run", clients=CLIENTS)
    return Ran(request.param, folder, root / "run", results)


def worn(ran: Ran, mix: str) -> torch.Tensor:
    """Our logits with an adapter of the run, read back from its PEFT folder."""
    base = load_base(ran.folder)
    rank = 16 if "personal" in mix else 8
    lora = StackedLora(base, "all-linear", {"R": BranchSpec(rank, 16.0)})
    flat = load_adapter(ran.run / "adapters" / mix, lora, "R").float()
    with torch.no_grad(), lora.wear({"R": flat[None]}, ["R"]):
        return base.logits(IDS)


def test_it_trains_and_resumes(ran: Ran) -> None:
    assert set(ran.results["scores"]) == {"global", "personal"}
    first, *_, last = (row["loss"] for row in map(json.loads, (ran.run / "rounds.jsonl").open()))
    assert last < first
    assert resume(ran.run, clients=CLIENTS) == ran.results


@pytest.mark.parametrize("mix", ["global", "personal/a"])
def test_peft_computes_what_we_compute(ran: Ran, mix: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(ran.folder)
    with torch.no_grad():
        before = base(IDS).logits.clone()
        theirs = PeftModel.from_pretrained(base, ran.run / "adapters" / mix)(IDS).logits
    assert float((theirs - before).abs().max()) > 1e-3, "the adapter changes something"
    assert float((worn(ran, mix) - theirs).abs().max()) <= 2e-5 * float(theirs.abs().max())


def test_packed_rows_score_as_padded_ones(ran: Ran) -> None:
    """The loss of rows of different lengths, with the adapter of the run."""
    losses = list[float]()
    for packing in (True, False):
        base = replace(load_base(ran.folder, "float64"), packing=packing)
        lora = StackedLora(base, "all-linear", {"R": BranchSpec(2, 4.0)})
        flat = lora.fresh("R", 1)[None] + 0.01
        model = Worn(lora, {"R": flat}, "R")
        losses.append(model.loss([ROWS])[0][0])
    assert abs(losses[0] - losses[1]) < 1e-6 * losses[1]


def test_without_a_template_of_its_own(tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "model", "gpt2")
    (folder / "chat_template.jinja").unlink()
    results = run(recipe(folder), tmp_path / "run", clients=CLIENTS)
    assert results["scores"]["global"]["loss"] > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_a_base_under_whole_branches(dtype: str, tmp_path: Path) -> None:
    """The adapters are fp32 whatever the base is."""
    folder = family_folder(tmp_path / "model", "llama")
    half, plain = (averaged(recipe(folder, dtype=d)) for d in (dtype, "float32"))
    results = run(half, tmp_path / "run", clients=CLIENTS)
    whole = run(plain, tmp_path / "whole", clients=CLIENTS)
    assert results["scores"]["global"]["loss"] == pytest.approx(
        whole["scores"]["global"]["loss"], rel=0.02
    )
    with safe_open(tmp_path / "run/adapters/global/adapter_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118


def test_checkpointing_trains_the_same_model(tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "model", "llama")
    plain = run(recipe(folder, dtype="float64"), tmp_path / "plain", clients=CLIENTS)
    saved = run(
        recipe(folder, dtype="float64", checkpointing=True), tmp_path / "saved", clients=CLIENTS
    )
    assert saved["scores"] == plain["scores"]


# Eight-bit layers treat a column apart where any row of the batch has an outlier in it: who
# stands beside a client matters there, a little.
@pytest.mark.parametrize(("quantize", "stacking"), [("8bit", 0.03), ("4bit", 1e-5)])
def test_a_quantised_base(quantize: Any, stacking: float, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = family_folder(tmp_path / "model", "llama, wide")
    wanted = averaged(recipe(folder, quantize=quantize))
    results = run(wanted, tmp_path / "run", clients=CLIENTS)
    whole = run(averaged(recipe(folder)), tmp_path / "whole", clients=CLIENTS)
    assert results["scores"] != whole["scores"]
    loss = results["scores"]["global"]["loss"]
    assert loss == pytest.approx(whole["scores"]["global"]["loss"], rel=0.1)
    alone = wanted.model_copy(update={"run": wanted.run.model_copy(update={"stack": 1})})
    apart = run(alone, tmp_path / "apart", clients=CLIENTS)
    assert apart["scores"]["global"]["loss"] == pytest.approx(loss, rel=stacking)


def test_gradients_pass_a_quantised_base(tmp_path: Path) -> None:
    """As they pass the fp32 base of its dequantised weights."""
    functional = pytest.importorskip("bitsandbytes.functional")
    folder = family_folder(tmp_path / "model", "llama, wide")
    base, plain = load_base(folder, quantize="4bit"), load_base(folder)
    assert base.precision == "float32+4bit"
    for name, layer in linear_layers(plain.net).items():
        other = base.net.get_submodule(name)
        if layer is not plain.net.get_output_embeddings():
            weight = other.get_parameter("weight")
            layer.weight.data = functional.dequantize_4bit(weight.data, weight.quant_state)
    found = list[torch.Tensor]()
    for one in (base, plain):
        lora = StackedLora(one, "all-linear", {"R": BranchSpec(2, 4.0)})
        flat = (lora.fresh("R", 1)[None].float() + 0.01).requires_grad_()
        with lora.wear({"R": flat}, ["R"]):
            one.logits(IDS).square().mean().backward()
        assert flat.grad is not None
        found.append(flat.grad)
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-3


def test_without_bitsandbytes_the_error_says_what_to_install(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'fedsdr\[quantized\]'"):
        load_base(tiny_folder, quantize="4bit")
