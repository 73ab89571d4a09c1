"""The loss without the logits: same numbers, same gradients, no [n, V] tensor."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from fedsdr.model import head as room
from fedsdr.model.head import Head, Outputs, find_head


@pytest.mark.parametrize(
    ("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 0.7)], ids=str
)
def test_the_fused_loss_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, scale: float, cap: float | None
):
    """7 tokens in pieces of 2 (2 · 11 = 22 logits), weighted unequally, in fp64."""
    random = torch.Generator().manual_seed(5)
    layer = nn.Linear(6, 11).double().requires_grad_(False)
    layer.weight.copy_(torch.randn(11, 6, generator=random, dtype=torch.float64))
    states = torch.randn(7, 6, generator=random, dtype=torch.float64)
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 5])
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 3.0], dtype=torch.float64)
    logits = layer(plain := states.clone().requires_grad_()) * scale
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    wanted = F.cross_entropy(logits, targets, reduction="none")
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), plain)

    monkeypatch.setattr(room, "PIECE", 22)
    outputs = Outputs(leaf := states.clone().requires_grad_(), Head(layer, scale, cap))
    found = outputs.nll(targets)
    (its,) = torch.autograd.grad((found * weights).sum(), leaf)
    assert outputs.ready is None, "the logits were made"
    assert torch.allclose(found, wanted, rtol=0, atol=1e-13)
    assert torch.allclose(its, gradient, rtol=0, atol=1e-13)


def test_logits_that_somebody_asked_for_are_used_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "PIECE", 1)
    outputs = Outputs(torch.ones(2, 3), Head(nn.Linear(3, 4)))
    assert outputs.logits() is outputs.logits()
    wanted = F.cross_entropy(outputs.logits(), torch.tensor([1, 2]), reduction="none")
    assert torch.equal(outputs.nll(torch.tensor([1, 2])), wanted)


def test_bf16_states_lose_nothing_in_the_loss(monkeypatch: pytest.MonkeyPatch):
    layer = nn.Linear(3, 5).bfloat16().requires_grad_(False)
    states = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets = torch.tensor([0, 1, 2, 4])
    wanted = F.cross_entropy(layer(states).float(), targets, reduction="none")
    monkeypatch.setattr(room, "PIECE", 5)
    found = Outputs(states.requires_grad_(), Head(layer)).nll(targets)
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6)


def test_a_head_that_no_key_explains_is_left_to_the_model():
    config = CONFIG_MAPPING["llama"](
        vocab_size=30,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    net = AutoModelForCausalLM.from_config(config)
    assert find_head(net) is not None
    forward = net.forward

    def bent(*args: object, **kwargs: object):
        out = forward(*args, **kwargs)
        out.logits = out.logits + torch.arange(30.0)
        return out

    net.forward = bent
    assert find_head(net) is None
