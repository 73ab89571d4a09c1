"""Which layers a preset leaves out, and that PEFT really has no use for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import CONFIG_MAPPING

from families import family_folder
from fedsdr.errors import ModelError, RecipeError
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.model.targets import EXPERTS, choose_layers

ATTENTION = ["layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj"]
SHARED = [f"layers.0.mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")]
TAILS = sorted({"q_proj", "w4", "gate_up_proj"}.union(*EXPERTS.values()))


def worn_by_peft(tail: str, kind: str) -> bool:
    """Whether PEFT still adapts the layers of this name when it has looked at the model."""
    model: Any = nn.Module()
    config = LoraConfig(target_modules=[tail])
    model.config = SimpleNamespace(model_type=kind)
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two that it would fuse
        return False
    return tail in (config.target_modules or ())


def test_of_every_model_that_transformers_knows_just_what_peft_would_not_wear_is_left_out() -> None:
    odd = set[str]()
    for kind in CONFIG_MAPPING:
        left = choose_layers("all-linear", [f"layers.0.{tail}" for tail in TAILS], kind).layers
        assert left == [f"layers.0.{tail}" for tail in TAILS if worn_by_peft(tail, kind)], kind
        if len(left) < len(TAILS):
            odd.add(kind)
    assert {"deepseek_v3", "glm4_moe", "qwen3_next"} <= odd
    assert not {"llama", "qwen3", "gemma3_text", "llama4_text"} & odd


@pytest.mark.parametrize("preset", ["all-linear", "default", "attention"])
def test_a_preset_leaves_them_out_and_says_so(preset: str) -> None:
    gate = "layers.0.self_attn.gate_proj"  # AFMoE's
    chosen = choose_layers(preset, [*ATTENTION, gate, *SHARED], "afmoe")
    assert chosen.layers == ATTENTION
    (note,) = chosen.notes
    lost = [gate, *SHARED] if preset == "all-linear" else [gate]
    assert f"lora.targets {preset} leaves out {len(lost)} layer" in note
    assert "gate_proj" in note
    assert "PEFT 0.21" in note
    assert "(afmoe)" in note


def test_the_same_layers_of_a_model_without_experts_are_adapted() -> None:
    assert choose_layers("all-linear", [*ATTENTION, *SHARED], "llama").layers == ATTENTION + SHARED


def test_a_pattern_that_names_them_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        choose_layers("q_proj|up_proj", [*ATTENTION, *SHARED], "deepseek_v3")
    for part in ("'q_proj|up_proj'", SHARED[1], "PEFT 0.21", "set lora.targets: attention"):
        assert part in str(caught.value)
    assert choose_layers("q_proj", [*ATTENTION, *SHARED], "deepseek_v3").layers == ATTENTION[:1]


def test_layers_that_cannot_be_replaced_are_left_out_or_refused() -> None:
    layers = ["layers.0.mixer.in_proj", "layers.0.mixer.dt_proj"]
    chosen = choose_layers("all-linear", layers, "jamba", layers[1:])
    assert chosen.layers == layers[:1]
    assert "leaves out 1 layer (layers.0.mixer.dt_proj): the model reads" in chosen.notes[0]
    with pytest.raises(RecipeError, match=r"names 1 layer \(layers.0.mixer.dt_proj\)"):
        choose_layers(".*_proj", layers, "jamba", layers[1:])


def test_where_nothing_is_left_it_says_why() -> None:
    with pytest.raises(ModelError, match=r"(?s)matches no linear layer.*leaves out 3 layers"):
        choose_layers("all-linear", SHARED, "deepseek_v3")


def test_layers_that_peft_looks_for_elsewhere_are_left_out(tmp_path: Path) -> None:
    base = load_base(family_folder(tmp_path / "model", "laguna"))
    lora = StackedLora(base, "all-linear", {"R": BranchSpec(2, 4.0)})
    assert {name.split(".")[-1] for name in lora.layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "g_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert not any("shared" in name for name in lora.layers)
    (note,) = lora.notes
    assert "leaves out 3 layers" in note
    assert "PEFT 0.21 looks for them under other names" in note


@pytest.mark.parametrize(
    ("name", "left"),
    [("jamba", ["model.layers.0.mamba.dt_proj"]), ("llama4", ["router", "router"]), ("llama", [])],
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_trial_shows_what_cannot_be_replaced(
    name: str, left: list[str], dtype: str, tmp_path: Path
) -> None:
    base = load_base(family_folder(tmp_path / "model", name), dtype)
    assert [n[-len(end) :] for n, end in zip(sorted(base.rigid), left, strict=True)] == left
    lora = StackedLora(base, "all-linear", {"R": BranchSpec(2, 4.0)})
    assert not base.rigid & set(lora.layers)
    assert len(lora.notes) == bool(left)


def test_a_model_of_which_generation_knows_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="MambaForCausalLM keeps no keys and values"):
        load_base(family_folder(tmp_path / "model", "mamba"))


def test_a_model_that_does_not_run_in_this_dtype_says_so(tmp_path: Path) -> None:
    folder = family_folder(tmp_path / "model", "xlnet")
    with pytest.raises(ModelError, match=r"model: XLNetLMHeadModel does not run .*model\.dtype"):
        load_base(folder, "float64")
