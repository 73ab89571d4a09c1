"""Which linear layers wear LoRA branches: presets, or a pattern over their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from fedsdr.errors import ModelError, nearest

PRESETS = ("all-linear", "attention", "default")
BLOCKS = frozenset(("self_attn", "self_attention", "attn", "attention"))
# The layers that PEFT adapts when nothing is said, by config.model_type (peft 0.21,
# utils/constants.py); what is not listed here gets all layers of its attention blocks.
DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "opt"),
            "q_proj|v_proj",
        ),
        "phi": "q_proj|v_proj|fc1|fc2",
        "gpt2": "c_attn",
        "gpt_neox": "query_key_value",
        "falcon": "query_key_value",
        "bloom": "query_key_value",
    }
)


def choose_layers(targets: str, layers: list[str], model_type: str) -> list[str]:
    """Those of the model's linear layers (without its head) that `targets` names."""
    if targets == "all-linear":
        return layers
    if targets == "attention" or (targets == "default" and model_type not in DEFAULTS):
        found = [name for name in layers if BLOCKS & set(name.split(".")[:-1])]
    else:
        pattern = _pattern(DEFAULTS[model_type] if targets == "default" else targets)
        found = [n for n in layers if pattern.fullmatch(n) or pattern.fullmatch(n.split(".")[-1])]
    if not found:
        tails = sorted({name.split(".")[-1] for name in layers})
        raise ModelError(
            f"lora.targets {targets!r} matches no linear layer of this model; its layers are "
            f"called {', '.join(tails)}, and there are the presets {', '.join(PRESETS)}."
            f"{nearest(targets, [*PRESETS, *tails])}"
        )
    return found


def _pattern(targets: str) -> re.Pattern[str]:
    """A regular expression that the last part of a layer's dotted name, or all of it, must match in
    full."""
    try:
        return re.compile(targets)
    except re.error as error:
        raise ModelError(f"lora.targets {targets!r} is no regular expression: {error}") from error
