"""Which linear layers wear LoRA branches: presets, or a pattern over their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from transformers import PreTrainedModel, conversion_mapping
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from fedsdr.errors import ModelError, RecipeError, nearest
from fedsdr.model.rehearsal import Damage, rehearse

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


# In some mixtures of experts, PEFT takes every layer of these names for one of the routed experts,
# whose weights had them before transformers 5 (peft 0.21, utils/transformers_weight_conversion.py):
# what was trained on a shared expert, or on a dense block, is then not worn. Which models these are
# it looks up in transformers, by the scheme that their names follow.
PEFT = "0.21"
EXPERTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "mixtral": frozenset(("gate", "w1", "w2", "w3")),
        "qwen2_moe": frozenset(("gate", "gate_proj", "up_proj", "down_proj")),
    }
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The layers to adapt, and what a preset had to leave out."""

    layers: list[str]
    notes: tuple[str, ...] = ()


def choose_layers(
    targets: str,
    layers: Sequence[str],
    model_type: str,
    rigid: Collection[str] = (),
    renamed: Collection[str] = (),
) -> Chosen:
    """Those of the model's linear layers (without its head) that `targets` names. `rigid` are
    those that cannot be replaced in this model, `renamed` those that PEFT will not find."""
    named = _named(targets, layers, model_type)
    chosen, notes = [name for name in layers if name in named], list[str]()
    for barred, why in _barred(chosen, model_type, rigid, renamed):
        if targets not in PRESETS:
            raise RecipeError(
                f"lora.targets {targets!r} names {_counted(barred)}: {why}; set lora.targets: "
                "attention, or leave them out of the pattern"
            )
        notes.append(f"lora.targets {targets} leaves out {_counted(barred)}: {why}")
        chosen = [name for name in chosen if name not in barred]
    if not chosen and notes:
        raise ModelError(f"lora.targets {targets!r} matches no linear layer: {'; '.join(notes)}")
    if not chosen:
        tails = sorted(set(map(_tail, layers)))
        raise ModelError(
            f"lora.targets {targets!r} matches no linear layer of this model; its layers are "
            f"called {', '.join(tails)}, and there are the presets {', '.join(PRESETS)}."
            f"{nearest(targets, [*PRESETS, *tails])}"
        )
    return Chosen(chosen, tuple(notes))


def renamed_layers(net: PreTrainedModel, layers: Sequence[str]) -> frozenset[str]:
    """Those whose names a rule meant for old checkpoints of this model would change: PEFT applies
    it to adapters too."""
    rules = [r for r in get_model_conversion_mapping(net) if isinstance(r, WeightRenaming)]

    def now(name: str) -> str:
        return rename_source_key(f"{name}.weight", rules, [])[0].removesuffix(".weight")

    return frozenset(name for name in layers if now(name) != name)


def _named(targets: str, layers: Sequence[str], model_type: str) -> set[str]:
    if targets == "all-linear":
        return set(layers)
    if targets == "attention" or (targets == "default" and model_type not in DEFAULTS):
        return {name for name in layers if BLOCKS & set(name.split(".")[:-1])}
    return _matching(DEFAULTS[model_type] if targets == "default" else targets, layers)


def _barred(
    chosen: Sequence[str], model_type: str, rigid: Collection[str], renamed: Collection[str]
) -> Iterator[tuple[list[str], str]]:
    """Which of them cannot be adapted, and why."""
    if fixed := [name for name in chosen if name in rigid]:
        yield (
            fixed,
            "the model reads their weights itself, or takes more from them than W x, so that an "
            "adapter cannot act there",
        )
    schemes: Mapping[str, str] = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    scheme = "mixtral" if model_type == "mixtral" else schemes.get(model_type, "")  # as PEFT has it
    taken = EXPERTS.get(scheme, frozenset())
    if lost := [name for name in chosen if _tail(name) in taken and name not in rigid]:
        yield (
            lost,
            f"in a model of this kind ({model_type}) PEFT {PEFT} takes them for the routed "
            "experts', and would not wear what they learnt",
        )
    if moved := [n for n in chosen if n in renamed and n not in rigid and _tail(n) not in taken]:
        yield (
            moved,
            f"in a model of this kind ({model_type}) PEFT {PEFT} looks for them under other names, "
            "and would not wear what they learnt",
        )


def _counted(layers: Sequence[str]) -> str:
    if len(layers) == 1:
        return f"1 layer ({layers[0]})"
    tails = ", ".join(sorted(set(map(_tail, layers))))
    return f"{len(layers)} layers ({tails}; the first is {layers[0]})"


def _tail(name: str) -> str:
    return name.split(".")[-1]


def _matching(targets: str, layers: Sequence[str]) -> set[str]:
    """The layers of which the last part of the dotted name, or all of it, matches in full."""
    if re.fullmatch(r"[\w.|]+", targets):  # names and dots: no such pattern takes long
        pattern = re.compile(targets)
        return {n for n in layers if pattern.fullmatch(n) or pattern.fullmatch(_tail(n))}

    def match() -> set[str]:
        try:
            pattern = re.compile(targets)
        except (re.error, OverflowError, ValueError) as error:
            problem = f"is no regular expression: {error}"
        except RecursionError:
            problem = "is nested too deeply"
        else:
            return {n for n in layers if pattern.fullmatch(n) or pattern.fullmatch(_tail(n))}
        raise ModelError(f"lora.targets {targets!r} {problem}")

    # Some patterns take longer than the world will last, and nothing stops `re` that has begun.
    try:
        rehearse(match, cpu=1, memory=1 << 30)
    except Damage:
        raise _too_slow(targets) from None
    return match()


def _too_slow(targets: str) -> RecipeError:
    return RecipeError(
        f"lora.targets {targets!r} takes too long to match; write it without repetitions within "
        "repetitions, such as q_proj|v_proj"
    )
