"""A base in other dtypes, quantised, recomputed, or without a template; test_architectures.py goes
through the architectures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from families import CLIENTS, family_folder, family_recipe
from fedsdr import Recipe, run
from fedsdr.errors import ModelError
from fedsdr.model.base import linear_layers
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora

pytestmark = pytest.mark.usefixtures("no_fsync")


def averaged(given: Recipe) -> Recipe:
    """FedAvg in its place: what is rewritten depends on the dtype."""
    return given.model_copy(
        update={"algorithm": given.algorithm.model_copy(update={"name": "fedavg"})}
    )


def test_without_a_template_of_its_own(tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "model", "gpt2")
    (folder / "chat_template.jinja").unlink()
    results = run(family_recipe(folder), tmp_path / "run", clients=CLIENTS)
    assert results["scores"]["global"]["loss"] > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_a_base_under_whole_branches(dtype: str, tmp_path: Path) -> None:
    """The adapters are fp32 whatever the base is."""
    folder = family_folder(tmp_path / "model", "llama")
    half, plain = (averaged(family_recipe(folder, dtype=d)) for d in (dtype, "float32"))
    results = run(half, tmp_path / "run", clients=CLIENTS)
    whole = run(plain, tmp_path / "whole", clients=CLIENTS)
    assert results["scores"]["global"]["loss"] == pytest.approx(
        whole["scores"]["global"]["loss"], rel=0.02
    )
    with safe_open(tmp_path / "run/adapters/global/adapter_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118


def test_checkpointing_trains_the_same_model(tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "model", "llama")
    plain = run(family_recipe(folder, dtype="float64"), tmp_path / "plain", clients=CLIENTS)
    saved = run(
        family_recipe(folder, dtype="float64", checkpointing=True),
        tmp_path / "saved",
        clients=CLIENTS,
    )
    assert saved["scores"] == plain["scores"]


# Eight-bit layers treat a column apart where any row of the batch has an outlier in it: who
# stands beside a client matters there, a little.
@pytest.mark.parametrize(("quantize", "stacking"), [("8bit", 0.03), ("4bit", 1e-5)])
def test_a_quantised_base(quantize: Any, stacking: float, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = family_folder(tmp_path / "model", "llama, wide")
    wanted = averaged(family_recipe(folder, quantize=quantize))
    results = run(wanted, tmp_path / "run", clients=CLIENTS)
    whole = run(averaged(family_recipe(folder)), tmp_path / "whole", clients=CLIENTS)
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
            one.logits(torch.arange(7, 15)[None]).square().mean().backward()
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
