"""adapter_config.json, read by allow-list: whatever changes what an adapter computes, and is not
plain LoRA, is refused.

Adapters may come from anywhere, so nothing in the file is trusted: not its size, not its types. A
pattern in it is never run as a regular expression (it could take forever), and what it says is
quoted in part only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, cast

from fedsdr.errors import AdapterError

CONFIG = "adapter_config.json"
LARGEST = 1 << 20  # bytes; PEFT's own are a few kilobytes
# Keys that change what an adapter computes, and their harmless values.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    # The other ways to begin (pissa, olora, loftq …) alter the base's own weights.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
    "exclude_modules": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "ensure_weight_tying": (False, None),
}
_HARMLESS = {
    "r",
    "lora_alpha",
    "target_modules",
    "inference_mode",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "lora_dropout",
    "revision",
    "auto_mapping",
    "peft_version",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "runtime_config",
    "qalora_group_size",
    "lora_ga_config",
}


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    rank: int
    alpha: float
    base: str  # the base's name, as whoever wrote it called it
    targets: tuple[str, ...] | None  # None: a pattern

    def names(self, layer: str) -> bool:
        """Whether PEFT would adapt this layer; a pattern is not tried."""
        return self.targets is None or any(
            layer == target or layer.endswith(f".{target}") for target in self.targets
        )


def read_config(folder: Path) -> AdapterConfig:
    """What a plain LoRA's configuration says, or an error that says why it is none."""
    path = folder / CONFIG
    values = _parsed(path)
    for key in ("peft_type", "r", "lora_alpha"):
        if key not in values:
            raise AdapterError(f"{path}: {key} is missing, so this is no LoRA adapter of PEFT's")
    for key, value in values.items():
        if key not in _NEUTRAL and key not in _HARMLESS and value is not None:
            # null: a feature of a newer PEFT, not used
            raise AdapterError(
                f"{path}: key {shown(key)} is not known to be harmless, so it is refused"
            )
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            fit = " or ".join(json.dumps(v) for v in _NEUTRAL[key])
            raise AdapterError(
                f"{path}: {key}: {shown(value)} is not supported; it has to be {fit}"
            )
    rank, alpha = values["r"], values["lora_alpha"]
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 1 << 20:
        raise AdapterError(f"{path}: r must be a whole number above 0, it is {shown(rank)}")
    if not _is_number(alpha):
        raise AdapterError(f"{path}: lora_alpha must be a number, it is {shown(alpha)}")
    base = values.get("base_model_name_or_path")
    return AdapterConfig(
        rank, float(alpha), base if isinstance(base, str) else "", _targets(path, values)
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > LARGEST:
        raise AdapterError(
            f"{path}: larger than {LARGEST >> 20} MiB, which no adapter's configuration is"
        )
    try:
        values: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not valid JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise AdapterError(f"{path}: not a JSON object")
    return cast("dict[str, Any]", values)


def _targets(path: Path, values: Mapping[str, Any]) -> tuple[str, ...] | None:
    given = values.get("target_modules")
    if given is None or isinstance(given, str):
        return None
    if isinstance(given, list) and all(isinstance(t, str) for t in cast("list[Any]", given)):
        return tuple(cast("list[str]", given))
    raise AdapterError(
        f"{path}: target_modules must be a list of names or one pattern, it is {shown(given)}"
    )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
