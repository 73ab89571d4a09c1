"""Merging against PEFT's own merge_and_unload, and what must not be merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from fedsdr.errors import ModelError
from fedsdr.model.adapters import save_adapter
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import train_tokenizer
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.model.merge import merge_into_base, save_merged
from toy import TEXTS

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[5, 40, 41, 42, 7], [9, 80, 81, 6, 6]])
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def config_of(kind: str, tokens: int) -> Any:
    common = {"vocab_size": tokens, **SIZES, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    match kind:
        case "gpt2":
            return GPT2Config(vocab_size=tokens, n_positions=128, n_embd=16, n_layer=2, n_head=2)
        case "llama untied":
            return LlamaConfig(**common, **heads, tie_word_embeddings=False)
        case "llama tied":
            return LlamaConfig(**common, **heads, tie_word_embeddings=True)
        case _:  # with biases, which a merge leaves alone
            return Qwen2Config(**common, **heads)


def make(folder: Path, kind: str, dtype: str = "float32") -> BaseModel:
    tokenizer = train_tokenizer(TEXTS, 300)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = AutoModelForCausalLM.from_config(config_of(kind, len(tokenizer) + 8))
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base(folder, dtype)


def wearing(base: BaseModel, targets: str = "all-linear") -> tuple[StackedLora, torch.Tensor]:
    lora = StackedLora(base, targets, {"R": BranchSpec(2, 5.0)})
    random = torch.Generator().manual_seed(1)
    return lora, 0.3 * torch.randn(lora.layouts["R"].size, generator=random)


@pytest.mark.parametrize("kind", ["gpt2", "llama tied", "llama untied", "qwen2"])
@pytest.mark.parametrize("targets", ["all-linear", ".*attn.*"])
def test_every_weight_is_the_one_that_peft_merges(kind: str, targets: str, tmp_path: Path) -> None:
    base = make(tmp_path / "model", kind)
    lora, flat = wearing(base, targets)
    save_adapter(tmp_path / "adapter", lora, {"R": flat}, ["R"])
    merge_into_base(lora, "R", flat)
    save_merged(base, tmp_path / "merged", "float32")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    theirs = PeftModel.from_pretrained(net, tmp_path / "adapter").merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-6), name
    changed = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert changed == {f"{name}.weight" for name in lora.layers}


def test_the_merged_weight_is_the_rounding_of_the_exact_one(tmp_path: Path) -> None:
    """w + 2.5 · b·a, reckoned by hand in Python's own doubles, then rounded once to bf16."""
    base = make(tmp_path / "model", "gpt2")
    lora, flat = wearing(base)
    name = "transformer.h.1.mlp.c_fc"  # a Conv1D: its weight is [in, out]
    weight = lora.layers[name].base.get_parameter("weight").double().tolist()
    pairs = lora.layouts["R"].named(flat.double())
    a, b = pairs[f"{name}.A"].tolist(), pairs[f"{name}.B"].tolist()
    exact = weight[3][7] + 2.5 * sum(b[7][r] * a[r][3] for r in range(2))
    merge_into_base(lora, "R", flat)
    found = base.net.get_parameter(f"{name}.weight")[3, 7]
    assert found == torch.tensor(exact, dtype=torch.float64).float()
    save_merged(base, tmp_path / "merged", "bfloat16")
    again = load_base(tmp_path / "merged", "bfloat16").net.get_parameter(f"{name}.weight")[3, 7]
    assert again == found.bfloat16()


@pytest.mark.parametrize("kind", ["llama tied", "llama untied"])
def test_heads_stay_tied_or_not(kind: str, tmp_path: Path) -> None:
    base = make(tmp_path / "model", kind)
    lora, flat = wearing(base)
    merge_into_base(lora, "R", flat)
    save_merged(base, tmp_path / "merged", "float32")
    net: Any = load_base(tmp_path / "merged").net
    tied = net.lm_head.weight.data_ptr() == net.model.embed_tokens.weight.data_ptr()
    assert tied == (kind == "llama tied")


def test_the_folder_stands_alone(tmp_path: Path) -> None:
    """Tokenizer, template, generation settings and licence come along; the dtype is stated."""
    make(tmp_path / "model", "qwen2")
    (tmp_path / "model" / "LICENSE.txt").write_text("as it was")
    generation = '{"do_sample": false, "temperature": 0.5, "eos_token_id": 1}\n'  # contradictory
    (tmp_path / "model" / "generation_config.json").write_text(generation)
    base = load_base(tmp_path / "model")
    lora, flat = wearing(base)
    merge_into_base(lora, "R", flat)
    save_merged(base, tmp_path / "merged", "float16")
    again = load_base(tmp_path / "merged", "float16")
    assert again.template == base.template
    assert again.encode(TEXTS[0]) == base.encode(TEXTS[0])
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float16"
    assert (tmp_path / "merged" / "generation_config.json").read_text() == generation
    assert (tmp_path / "merged" / "LICENSE.txt").read_text() == "as it was"


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "model", "qwen2")
    lora, flat = wearing(base)
    merge_into_base(lora, "R", flat * 1e4)
    with pytest.raises(ModelError, match="does not fit into float16; choose --dtype bfloat16"):
        save_merged(base, tmp_path / "merged", "float16")


def test_a_shared_weight_is_not_changed_under_another_layer(tmp_path: Path) -> None:
    base = make(tmp_path / "model", "qwen2")
    layers: Any = base.net.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    lora, flat = wearing(base)
    with pytest.raises(ModelError, match="shares its weight with another one"):
        merge_into_base(lora, "R", flat)
