"""Small models of the true architectures, made on the spot: real classes of transformers, random
weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from fedsdr.model.fresh import END, PAD, SPECIAL, train_tokenizer
from toy import TEXTS

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**WIDE, "intermediate_size": 48, "num_key_value_heads": 2}
LONG = {"max_position_embeddings": 512}
WINDOW = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
# name -> (config.model_type, what is special).
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "llama": ("llama", {**GATED, **LONG}, "grouped queries, own head"),
    "llama, tied": ("llama", {**GATED, **LONG, "tie_word_embeddings": True}, "tied head"),
    "llama, wide": (
        "llama",
        {**GATED, **LONG, "hidden_size": 64, "intermediate_size": 128},
        "whole blocks of 64, as 4-bit weights have them",
    ),
    "qwen2": ("qwen2", {**GATED, **LONG, "tie_word_embeddings": True}, "biases on q, k, v; tied"),
    "qwen2, window": (
        "qwen2",
        {**GATED, **LONG, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "a window in its second layer",
    ),
    "qwen3": ("qwen3", {**GATED, **LONG, "head_dim": 8}, "norms on q and k"),
    "mistral": ("mistral", {**GATED, **LONG, "sliding_window": 16}, "sliding window"),
    "gemma": ("gemma", {**GATED, **LONG, "head_dim": 8, "num_key_value_heads": 1}, "one key, tied"),
    "gemma2": ("gemma2", {**GATED, **LONG, **WINDOW}, "capped scores and logits, windows"),
    "gemma3": ("gemma3_text", {**GATED, **LONG, **WINDOW}, "windows, two rotations"),
    "phi": ("phi", {**WIDE, **LONG, "intermediate_size": 48}, "parallel blocks, biased head"),
    "phi3": ("phi3", {**GATED, **LONG}, "fused q, k, v and gate"),
    "gpt_neox": ("gpt_neox", {**WIDE, **LONG, "intermediate_size": 48}, "parallel, embed_out"),
    "gpt2": (
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
        "Conv1D, learned positions",
    ),
    "falcon": (
        "falcon",
        {**WIDE, "multi_query": True, "parallel_attn": True, "alibi": False},
        "multi-query, padded",
    ),
    "opt": (
        "opt",
        {**WIDE, **LONG, "ffn_dim": 48, "word_embed_proj_dim": 32},
        "positions from 2 on",
    ),
}


def family_folder(path: Path, name: str, spare: int = 8) -> Path:
    """Its folder, as `save_pretrained` writes it; the embedding has `spare` rows that no token
    uses, as many published models have."""
    kind, keys, _ = FAMILIES[name]
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
