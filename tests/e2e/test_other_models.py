"""Any Hugging Face causal LM folder can stand in for atlas-base: a whole FedSDR run on each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from fedsdr import ClientData, Example, build_recipe, resume, run
from fedsdr.model.fresh import train_tokenizer
from toy import TEXTS

ROWS = tuple(Example(f"r{i}", TEXTS[i % len(TEXTS)][:30], TEXTS[-i % 5][:20]) for i in range(16))
CLIENTS = [
    ClientData(name, ROWS[at : at + 6], ROWS[12:14], ROWS[14:]) for name, at in (("a", 0), ("b", 6))
]


def config_of(kind: str, tokens: int) -> Any:
    if kind == "gpt2":
        return GPT2Config(vocab_size=tokens, n_positions=256, n_embd=16, n_layer=2, n_head=2)
    return Qwen2Config(
        vocab_size=tokens,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("template", ["auto", "plain"])
def test_a_whole_run(kind: str, template: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = AutoModelForCausalLM.from_config(config_of(kind, len(tokenizer) + 8))
    net.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = build_recipe(
        {
            "model": {"path": str(tmp_path / "model"), "chat_template": template},
            "training": {"rounds": 2, "local_steps": 2, "batch": 2},
            "rewriting": {"max_new_tokens": 8},
            "run": {"threads": 1},
        }
    )
    results = run(recipe, tmp_path / "run", clients=CLIENTS)
    assert set(results["scores"]) == {"global", "personal"}
    assert results["scores"]["personal"]["loss"] > 0
    assert resume(tmp_path / "run", clients=CLIENTS) == results
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        before = base(ids).logits.clone()
        worn = PeftModel.from_pretrained(base, tmp_path / "run/adapters/personal/a")
        assert not torch.equal(worn(ids).logits, before)
