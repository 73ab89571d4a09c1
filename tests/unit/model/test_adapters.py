"""Adapter files: PEFT reads ours, we read PEFT's, and nothing else gets in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedsdr.errors import AdapterError
from fedsdr.model.adapters import load_adapter, save_adapter
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import fresh_llama, save_folder
from fedsdr.model.lora import BranchSpec, StackedLora
from toy import SPECS

# PEFT asks transformers in a way that transformers means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[5, 40, 41, 42, 7], [9, 80, 81, 6, 6]])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def lora(base32: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base32, "all-linear", SPECS)
    yield made
    made.remove()


@pytest.fixture
def flats(lora: StackedLora) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {b: 0.2 * torch.randn(lora.layouts[b].size, generator=random) for b in ("R", "S")}


@pytest.fixture
def saved(lora: StackedLora, flats: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_adapter(tmp_path / "r", lora, flats, ["R"])
    return tmp_path / "r"


@pytest.mark.parametrize("mix", [["R"], ["S"], ["R", "S"]])
def test_peft_loads_what_we_save(
    mix: list[str],
    lora: StackedLora,
    flats: dict[str, torch.Tensor],
    base32: BaseModel,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    save_adapter(tmp_path / "adapter", lora, flats, mix)
    net = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(net, tmp_path / "adapter").eval()
    with torch.no_grad():
        with lora.wear({b: flats[b][None] for b in mix}, mix):
            ours = base32.logits(IDS)
        plain = base32.logits(IDS)
        difference = float((ours - theirs(IDS).logits).abs().max())
    assert difference <= 1e-5
    assert float((ours - plain).abs().max()) > 0.01
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["r"] == sum(SPECS[b].rank for b in mix)


def test_round_trip(lora: StackedLora, flats: dict[str, torch.Tensor], saved: Path) -> None:
    assert torch.equal(load_adapter(saved, lora, "R").float(), flats["R"])


def test_the_folder_is_private_and_names_no_path_of_this_machine(saved: Path) -> None:
    assert saved.stat().st_mode & 0o077 == 0
    assert json.loads((saved / CONFIG).read_text())["base_model_name_or_path"] == "tiny"


def test_warm_start_from_an_adapter_that_peft_saved(
    lora: StackedLora, base32: BaseModel, tiny_folder: Path, tmp_path: Path
) -> None:
    """With another α than ours: it is folded into B, and the function is the same."""
    net = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    config = LoraConfig(
        r=2,
        lora_alpha=10,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(net, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    flat = load_adapter(tmp_path / "theirs", lora, "R")
    with torch.no_grad(), lora.wear({"R": flat[None].float()}, ["R"]):
        ours = base32.logits(IDS)
    with torch.no_grad():
        assert float((ours - theirs(IDS).logits).abs().max()) <= 1e-5


def config_of(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        config |= changes
        (folder / CONFIG).write_text(json.dumps(config))

    return change


def weights_of(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {n: t.clone() for n, t in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])


def pickle_in_disguise(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "pickled weights are never loaded"),
        (pickle_in_disguise, "not a readable safetensors file"),
        (truncated, "not a readable safetensors file"),
        (lambda folder: (folder / CONFIG).unlink(), "not a PEFT adapter folder"),
        (lambda folder: (folder / CONFIG).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff"), "not valid JSON"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "peft_type must be LORA"),
        (config_of(peft_type="IA3"), "peft_type must be LORA"),
        (config_of(auto_exec="rm"), "key 'auto_exec' is not known to be harmless"),
        (config_of(use_dora=True), "use_dora: True is not supported"),
        (config_of(use_rslora=True), "use_rslora: True is not supported"),
        (config_of(bias="all"), "bias: 'all' is not supported"),
        (config_of(modules_to_save=["lm_head"]), "modules_to_save"),
        (config_of(alpha_pattern={"q_proj": 3}), "alpha_pattern"),
        (config_of(init_lora_weights="pissa"), "init_lora_weights: 'pissa' is not supported"),
        (config_of(r=4), r"rank is 4, the recipe's 2; set lora.R.rank: 4"),
        (config_of(r="2"), "r and lora_alpha must be numbers"),
        (config_of(lora_alpha=None), "r and lora_alpha must be numbers"),
        (config_of(lora_alpha=float("nan")), "r and lora_alpha must be numbers"),
        (config_of(lora_alpha=float("inf")), "r and lora_alpha must be numbers"),
        (weights_of(lambda t: t.pop(KEY)), "is missing; is it an adapter of this base"),
        (weights_of(lambda t: t.update({KEY: torch.ones(2, 8)})), r"has shape \(2, 8\)"),
        (weights_of(lambda t: t.update({KEY: torch.ones(1, 16)})), r"has shape \(1, 16\)"),
        (weights_of(lambda t: t.update(extra=torch.ones(1))), "'extra' belongs to no layer"),
        (weights_of(lambda t: t[KEY].fill_(float("nan"))), "no finite numbers"),
        (weights_of(lambda t: t[KEY].fill_(float("-inf"))), "no finite numbers"),
        (
            weights_of(lambda t: t.update({KEY: torch.ones(2, 16, dtype=torch.int8)})),
            "no finite numbers",
        ),
    ],
)
def test_a_spoiled_adapter_is_refused(
    spoil: Callable[[Path], Any], said: str, lora: StackedLora, saved: Path
) -> None:
    spoil(saved)
    with pytest.raises(AdapterError, match=said) as caught:
        load_adapter(saved, lora, "R")
    assert str(saved) in str(caught.value)


def test_no_folder_at_all(lora: StackedLora, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a PEFT adapter folder"):
        load_adapter(tmp_path / "nowhere", lora, "R")


@pytest.mark.parametrize(("width", "layers"), [(32, 2), (16, 1), (16, 3)])
def test_an_adapter_of_another_base_is_refused(
    width: int, layers: int, saved: Path, base32: BaseModel, tmp_path: Path
) -> None:
    from fedsdr.model.base import load_base

    net = fresh_llama(base32.tokenizer, width=width, layers=layers, heads=2, seed=1)
    save_folder(tmp_path / "other", net, base32.tokenizer)
    other = StackedLora(load_base(tmp_path / "other"), "all-linear", {"R": BranchSpec(2, 4.0)})
    with pytest.raises(AdapterError, match=r"this base|belongs to no layer"):
        load_adapter(saved, other, "R")
