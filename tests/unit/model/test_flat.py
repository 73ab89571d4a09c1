"""Packed rows give the logits and the gradients that each row gives alone."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from fedsdr.model import flat as blocks
from fedsdr.model.flat import ARCHITECTURES, flat_pass, runs_flat
from fedsdr.model.head import find_head

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = {"intermediate_size": 24}
GROUPED = {**WIDE, "num_key_value_heads": 2}
WINDOW = {"sliding_window": 3, "head_dim": 4, "query_pre_attn_scalar": 4}
# What each needs beyond SMALL; a window of 3 and a cap of 0.5 bite on rows of 7 tokens.
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("llama", "qwen2", "phi3", "olmo2", "granite", "smollm3"), GROUPED),
    "qwen3": {**GROUPED, "head_dim": 4},
    "mistral": {**GROUPED, "sliding_window": 3, "head_dim": 4},
    "gemma": {**GROUPED, "head_dim": 4},
    "gemma2": {**GROUPED, **WINDOW, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.5},
    "gemma3_text": {**GROUPED, **WINDOW},
    "phi": WIDE,
    "gpt_neox": WIDE,
    "gpt2": {},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "qwen2 with a window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "granite that scales": ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.3}),
}
IDS = torch.tensor([[3, 4, 5, 6, 7, 0, 0], [9, 8, 7, 6, 5, 4, 3], [0] * 7, [11, 12, 0, 0, 0, 0, 0]])
LENGTHS = torch.tensor([5, 7, 0, 2])


def model(name: str, **more: Any) -> PreTrainedModel:
    config = CONFIG_MAPPING[name](**SMALL, **OWN.get(name, {}) | more)
    # Eager attention is the reference: fused kernels leave out Gemma 2's cap.
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    for weight in net.parameters():
        weight.data.mul_(4)  # so that scores are far from zero, and a cap is felt
    return net


@pytest.mark.parametrize("worth", [blocks.WORTH, 0], ids=["one block", "blocks by length"])
@pytest.mark.parametrize("case", VARIANTS)
def test_packed_rows_equal_each_row_alone(
    case: str, worth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "WORTH", worth)
    name, more = VARIANTS[case]
    net = model(name, **more)
    assert runs_flat(net)
    head = find_head(net)
    assert head is not None
    chosen = torch.zeros(4, 6, dtype=torch.bool)
    chosen[0, 1:4] = chosen[1, :] = chosen[3, 0] = True
    alone = [
        net(IDS[i : i + 1, :n]).logits[0, :-1][chosen[i, : n - 1]]
        for i, n in enumerate(LENGTHS.tolist())
        if n
    ]
    weight = next(
        p for n, p in net.named_parameters() if (p.ndim == 2 and "layers.0" in n) or "h.0" in n
    )
    found = list[tuple[torch.Tensor, torch.Tensor]]()
    for logits in (
        torch.cat(alone),
        flat_pass(net, head, IDS, LENGTHS, chosen)[0].logits(),
        flat_pass(net, None, IDS, LENGTHS, chosen)[0].logits(),
    ):
        (gradient,) = torch.autograd.grad(logits.square().sum(), weight)
        found.append((logits.detach(), gradient))
    (one, its), *others = found
    assert one.shape == (10, 50)
    for two, theirs in others:
        # Norms and rotations run in fp32 inside transformers, whatever the dtype.
        assert (one - two).abs().max() < 1e-5 * one.abs().max()
        assert (its - theirs).abs().max() < 1e-4 * its.abs().max()
    assert net.config._attn_implementation == "eager"


def test_every_architecture_is_tried():
    assert set(OWN) == set(ARCHITECTURES)


def test_rows_do_not_see_each_other():
    net = model("llama")
    chosen = torch.zeros(4, 6, dtype=torch.bool)
    chosen[1, :] = True
    changed = IDS.clone()
    changed[0, :5] = 40
    one, two = (
        flat_pass(net, find_head(net), ids, LENGTHS, chosen)[0].logits() for ids in (IDS, changed)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["falcon", "bloom"])
def test_what_bends_attention_otherwise_stays_padded(name: str):
    config = CONFIG_MAPPING[name](
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=4
    )
    assert not runs_flat(AutoModelForCausalLM.from_config(config))
