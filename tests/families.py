"""Small models of the true architectures, made on the spot: real classes of transformers, random
weights; and two clients to train them on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from fedsdr import ClientData, Example, Recipe, build_recipe
from fedsdr.model.fresh import END, PAD, SPECIAL, train_tokenizer
from toy import TEXTS

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
GATED = {**WIDE, "intermediate_size": 48, "num_key_value_heads": 2}
LONG = {"max_position_embeddings": 512}
WINDOW = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
OLD = {"n_layer": 2, "n_head": 4}
DEEPSEEK = {
    **GATED, **LONG, "num_key_value_heads": 4, "v_head_dim": 8, "kv_lora_rank": 8,
    "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "n_group": 1,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
QWEN3_NEXT = {
    **GATED, **LONG, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 16,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
JAMBA = {
    **GATED, **LONG, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False,
    "mamba_d_state": 8, "mamba_dt_rank": 4,
}  # fmt: skip
ZAMBA2 = {
    **GATED, **LONG, "mamba_d_state": 8, "mamba_headdim": 16, "n_mamba_heads": 4,
    "mamba_ngroups": 1, "layers_block_type": ["mamba", "hybrid"], "adapter_rank": 4,
    "use_mamba_kernels": False,
}  # fmt: skip
# name -> (config.model_type, its keys, what is special).
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "llama": ("llama", {**GATED, **LONG}, "grouped queries"),
    "llama, tied": ("llama", {**GATED, **LONG, "tie_word_embeddings": True}, "grouped queries"),
    "llama, wide": (
        "llama",
        {**GATED, **LONG, "hidden_size": 64, "intermediate_size": 128},
        "whole blocks of 64, as 4-bit weights have them",
    ),
    "qwen2": (
        "qwen2",
        {**GATED, **LONG, "tie_word_embeddings": True},
        "grouped queries, biases on q, k, v",
    ),
    "qwen2, window": (
        "qwen2",
        {**GATED, **LONG, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "sliding window in its second layer",
    ),
    "qwen3": ("qwen3", {**GATED, **LONG, "head_dim": 8}, "grouped queries, norms on q and k"),
    "qwen3, experts": (
        "qwen3_moe",
        {**GATED, **LONG, **EXPERTS, "head_dim": 8},
        "mixture of experts, of which attention is adapted",
    ),
    "mistral": ("mistral", {**GATED, **LONG, "sliding_window": 16}, "sliding window"),
    "mixtral": (
        "mixtral",
        {**GATED, **LONG, "num_local_experts": 4, "num_experts_per_tok": 2},
        "mixture of experts, of which attention is adapted",
    ),
    "gemma": (
        "gemma",
        {**GATED, **LONG, "head_dim": 8, "num_key_value_heads": 1},
        "one key head, scaled embedding",
    ),
    "gemma2": (
        "gemma2",
        {**GATED, **LONG, **WINDOW},
        "sliding window in every other layer, capped scores and logits, four norms",
    ),
    "gemma3": (
        "gemma3_text",
        {**GATED, **LONG, **WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        "sliding window in its first layer, two rotations, norms on q and k",
    ),
    "phi": ("phi", {**WIDE, **LONG, "intermediate_size": 48}, "parallel residual, head with bias"),
    "phi3": ("phi3", {**GATED, **LONG}, "q, k, v in one layer, gate and up in another"),
    "gpt_neox": (
        "gpt_neox",
        {**WIDE, **LONG, "intermediate_size": 48},
        "parallel residual, q, k, v in one layer, head called embed_out",
    ),
    "gpt2": ("gpt2", {"n_embd": 32, "n_positions": 512, **OLD}, "Conv1D, learned positions"),
    "falcon": (
        "falcon",
        {**WIDE, "multi_query": True, "parallel_attn": True, "alibi": False},
        "multi-query, parallel residual",
    ),
    "opt": (
        "opt",
        {**WIDE, **LONG, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "learned positions from 2 on",
    ),
    "bloom": ("bloom", {"hidden_size": 32, **OLD}, "ALiBi, normed embedding"),
    "cohere": ("cohere", {**GATED, **LONG}, "parallel residual, scaled logits"),
    "starcoder2": ("starcoder2", {**GATED, **LONG, "sliding_window": 16}, "sliding window, biases"),
    "olmo2": ("olmo2", {**GATED, **LONG}, "norms after the blocks, on q and on k"),
    "granite": (
        "granite",
        {**GATED, **LONG, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        "scaled residual and logits",
    ),
    "smollm3": (
        "smollm3",
        {**GATED, **LONG, "num_hidden_layers": 4},
        "no positions in its fourth layer",
    ),
    "llama4": (
        "llama4_text",
        {**GATED, **LONG, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4},
        "mixture of experts with a shared one, whose router is left out",
    ),
    "deepseek_v3": (
        "deepseek_v3",
        DEEPSEEK,
        "latent attention; mixture of experts with a shared one, which PEFT could not wear",
    ),
    "qwen3_next": (
        "qwen3_next",
        QWEN3_NEXT,
        "linear attention in its first layer; a shared expert, which PEFT could not wear",
    ),
    "laguna": (
        "laguna",
        {
            **GATED,
            **LONG,
            **EXPERTS,
            "head_dim": 8,
            "shared_expert_intermediate_size": 16,
            "num_attention_heads_per_layer": None,
        },
        "a shared expert, which PEFT would not find",
    ),
    "jamba": (
        "jamba",
        JAMBA,
        "Mamba in its first layer, of which dt_proj is left out",
    ),
    "zamba2": (
        "zamba2",
        ZAMBA2,
        "Mamba, attention shared between layers; layers called 0 and 1",
    ),
}
# What is refused.
REFUSED: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "mamba": (
        "mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        "no attention",
    ),
    "xlnet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "fp32 alone"),
}
# Two clients; what they hold back is shared, and has prompts of its own.
ROWS = tuple(Example(f"r{i}", TEXTS[i % len(TEXTS)][:30], TEXTS[-i % 5][:20]) for i in range(22))
CLIENTS = [
    ClientData(name, ROWS[at : at + 6], ROWS[12:14], ROWS[14:]) for name, at in (("a", 0), ("b", 6))
]


def family_recipe(folder: Path, **model: Any) -> Recipe:
    """Two short rounds of FedSDR."""
    return build_recipe(
        {
            "model": {"path": str(folder), **model},
            "training": {"rounds": 2, "local_steps": 2, "batch": 2, "lr": 0.02},
            "rewriting": {"max_new_tokens": 8},
            "run": {"threads": 1},
        }
    )


def family_folder(path: Path, name: str, spare: int = 8) -> Path:
    """Its folder, as `save_pretrained` writes it; the embedding has `spare` rows that no token
    uses, as many published models have."""
    kind, keys, _ = {**FAMILIES, **REFUSED}[name]
    tokenizer = train_tokenizer(TEXTS, 300)
    own = {"vocab_size": len(tokenizer) + spare, **keys}
    config = CONFIG_MAPPING[kind](
        pad_token_id=SPECIAL.index(PAD), bos_token_id=None, eos_token_id=SPECIAL.index(END), **own
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = AutoModelForCausalLM.from_config(config)
        for weight in net.parameters():
            if weight.ndim > 1:  # far enough from zero that an adapter is felt
                weight.data.normal_(std=0.15)
    net.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


# config.json of published models, as far as it decides on shapes.
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Llama-2-7b": {
        **_LLAMA,
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "Llama-3.1-8B": {
        **_LLAMA,
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
}


def published_folder(path: Path, name: str) -> Path:
    """Its true config.json, with a small tokenizer and without weights."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    train_tokenizer(TEXTS, 300).save_pretrained(path)
    return path


def add_tokens(folder: Path, tokens: Sequence[str]) -> None:
    """Special ones, as a named template asks for."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(folder)
