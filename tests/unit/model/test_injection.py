"""Disturbances: what is drawn, for whom, and that nobody's neighbours can matter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsdr.model import flat
from fedsdr.model.flat import Rows, make_blocks
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.injection import Disturbance
from fedsdr.parts.objectives import Injected
from fedsdr.tensors import generator

ATTENTION, FEED_FORWARD, OTHER = "layers.0.self_attn.q_proj", "layers.0.mlp.up_proj", "score"
SURE: dict[str, Any] = {"rho_attention": 1.0, "rho_feed_forward": 1.0, "warmup": 0.0}


def drawn(settings: Disturbance, lengths: list[int], progress: float = 1.0) -> Injected:
    """Of as many clients as there are lengths, one row each."""
    noise = [generator("noise", k) for k in range(len(lengths))]
    return settings.draw(noise, torch.tensor(lengths), [progress] * len(lengths))


def flat_rows(lengths: list[int], width: int) -> AbstractContextManager[None]:
    slots = torch.cat([torch.arange(n) + i * width for i, n in enumerate(lengths)])
    rows = Rows(tuple(lengths), width, slots, slots % width, make_blocks(lengths, width, slots), {})

    class Running:
        def __enter__(self) -> None:
            self.token = flat._CURRENT.set(rows)

        def __exit__(self, *_: object) -> None:
            flat._CURRENT.reset(self.token)

    return Running()


@pytest.mark.parametrize(
    ("layer", "module", "rho"),
    [
        ("model.layers.3.self_attn.o_proj", "model.layers.3.self_attn", 0.25),
        ("transformer.h.0.attn.c_attn", "transformer.h.0.attn", 0.25),
        ("gpt_neox.layers.1.attention.dense", "gpt_neox.layers.1.attention", 0.25),
        ("model.layers.3.mlp.experts.0.up_proj", "model.layers.3.mlp", 0.5),
        ("blocks.2.ffn.w1", "blocks.2.ffn", 0.5),
        ("blocks.2.feed_forward.w1", "blocks.2.feed_forward", 0.5),
        ("model.attn_scale.proj", "model.attn_scale.proj", 0.0),
        ("project_out", "project_out", 0.0),
    ],
)
def test_modules_are_told_apart_by_their_names(layer: str, module: str, rho: float) -> None:
    settings = Disturbance(rho_attention=0.25, rho_feed_forward=0.5)
    assert settings.rho(layer) == (module, rho)


def test_a_module_is_disturbed_as_a_whole_and_at_its_rate() -> None:
    """At ρ = .3, of 3000 modules' draws between .26 and .34 fall (5 standard deviations); all
    layers of a module, and both of a layer's hooks, share one draw."""
    settings = Disturbance("module_drop", rho_attention=0.3, rho_feed_forward=0.0, warmup=0.0)
    injected = drawn(settings, [1, 1, 1])
    hidden = torch.ones(3, 1, 4)
    hit = 0
    for block in range(1000):
        first, second = (
            injected.latent(f"layers.{block}.self_attn.{which}", hidden)[:, 0, 0] == 0
            for which in ("q_proj", "v_proj")
        )
        assert torch.equal(first, second)
        hit += int(first.sum())
    assert 0.26 < hit / 3000 < 0.34
    assert torch.equal(injected.latent(FEED_FORWARD, hidden), hidden)


def test_kinds_of_modules_have_probabilities_of_their_own() -> None:
    settings = Disturbance("module_drop", rho_attention=0.0, rho_feed_forward=1.0, warmup=0.0)
    injected, hidden = drawn(settings, [2]), torch.ones(1, 2, 4)
    assert torch.equal(injected.latent(ATTENTION, hidden), hidden)
    assert injected.latent(FEED_FORWARD, hidden).abs().max() == 0
    assert torch.equal(injected.latent(OTHER, hidden), hidden)


def test_the_warm_up_is_linear_in_the_clients_own_progress() -> None:
    """ρ = .8 and warm-up .5: at progress 0 never, at .25 .4, from .5 on .8."""
    settings = Disturbance("module_drop", rho_attention=0.8, warmup=0.5)
    noise = [generator("warm", k) for k in range(4)]
    injected = settings.draw(noise, torch.ones(4, dtype=torch.long), [0.0, 0.25, 0.5, 1.0])
    hits = torch.zeros(4)
    for block in range(2000):
        hits += injected.latent(f"l.{block}.attn.q", torch.ones(4, 1, 1))[:, 0, 0] == 0
    assert hits[0] == 0
    assert (hits[1:] / 2000).tolist() == pytest.approx([0.4, 0.8, 0.8], abs=0.05)


def test_rank_drop_masks_at_its_rate_and_keeps_the_mean() -> None:
    """Each latent dimension is 0 or 1/(1 − .25) = 4/3 times what it was, for all tokens alike."""
    injected = drawn(Disturbance("rank_drop", rate=0.25, **SURE), [5, 5])
    out = injected.latent(ATTENTION, torch.ones(2, 5, 4000, dtype=torch.float64))
    assert set(out.unique().tolist()) == {0.0, 1 / 0.75}
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert (out[:, 0] == 0).double().mean(dim=1).tolist() == pytest.approx([0.25, 0.25], abs=0.04)
    assert not torch.equal(out[0, 0], out[1, 0])
    again = injected.latent(FEED_FORWARD, torch.ones(2, 5, 4000, dtype=torch.float64))
    assert not torch.equal(out, again)


def test_gaussian_noise_is_sigma_times_each_tokens_rms() -> None:
    """A token of constant value 3 has rms 3: σ · rms = .5 · 3; a token of zeros stays zero."""
    injected = drawn(Disturbance("gaussian", sigma=0.5, **SURE), [2])
    change = torch.tensor([3.0, 0.0]).repeat_interleave(20_000).view(1, 2, 20_000)
    noise = injected.output(ATTENTION, change) - change
    assert noise[0, 0].std().item() == pytest.approx(1.5, rel=0.03)
    assert noise[0, 0].mean().item() == pytest.approx(0.0, abs=0.05)
    assert noise[0, 1].abs().max() == 0
    assert torch.equal(injected.latent(ATTENTION, change), change)


def test_gradients_pass_also_where_a_fresh_adapter_puts_out_zeros() -> None:
    change = torch.zeros(1, 2, 3, requires_grad=True)
    injected = drawn(Disturbance("gaussian", sigma=0.5, **SURE), [2])
    injected.output(ATTENTION, change).sum().backward()
    assert change.grad is not None
    assert torch.equal(change.grad, torch.ones(1, 2, 3))


@pytest.mark.parametrize("kind", ["gaussian", "rank_drop", "module_drop"])
def test_neighbours_and_padding_do_not_matter(kind: Any) -> None:
    """Client 1 of three, its rows padded, flat, or alone: the same numbers for the same tokens."""
    settings = Disturbance(kind, 0.6, 0.6, sigma=0.7, rate=0.4, warmup=0.0)
    layers = [f"b.{i}.{part}" for i in range(6) for part in ("attn.q", "attn.v", "mlp.up")]
    lengths, rank, out = [7, 3, 0], 4, 5
    shape = generator("values")
    values = {
        layer: (torch.rand(7, rank, generator=shape), torch.rand(7, out, generator=shape))
        for layer in layers
    }

    def run(noise: list[torch.Generator], own: list[int], flat: bool) -> list[Tensor]:
        injected = settings.draw(noise, torch.tensor(own), [1.0] * len(own))
        found = list[Tensor]()
        for layer in layers:
            hidden, change = values[layer]
            with flat_rows(own, 7) if flat else nullcontext():
                if flat:
                    latent = torch.zeros(sum(own), len(own) * rank)
                    first = 0
                    for k, n in enumerate(own):
                        latent[first : first + n, k * rank : (k + 1) * rank] = hidden[:n]
                        first += n
                    wide = torch.cat([change[:n] for n in own])
                else:
                    width = max(own) + 2
                    latent = torch.zeros(len(own), width, rank)
                    wide = torch.zeros(len(own), width, out)
                    for k, n in enumerate(own):
                        latent[k, :n], wide[k, :n] = hidden[:n], change[:n]
                latent, wide = injected.latent(layer, latent), injected.output(layer, wide)
            at = own.index(3)
            if flat:
                rows = slice(sum(own[:at]), sum(own[: at + 1]))
                found += [latent[rows, at * rank : (at + 1) * rank], wide[rows]]
            else:
                found += [latent[at, :3], wide[at, :3]]
        return found

    ends = [
        run([generator("n", k) for k in range(3)], lengths, flat=False),
        run([generator("n", k) for k in range(3)], lengths, flat=True),
        run([generator("n", 1)], [3], flat=False),
        run([generator("n", 1)], [3], flat=True),
    ]
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


def test_a_client_without_tokens_draws_nothing() -> None:
    """In the last micro-batches of a client with fewer rows; alone, these would not be run."""
    noise = [generator("a"), generator("b")]
    before = noise[1].get_state()
    injected = Disturbance("rank_drop", **SURE).draw(noise, torch.tensor([4, 0]), [1.0, 1.0])
    injected.latent(ATTENTION, torch.ones(2, 4, 3))
    assert torch.equal(noise[1].get_state(), before)
    assert not torch.equal(noise[0].get_state(), generator("a").get_state())


@pytest.mark.parametrize("kind", ["rank_drop", "module_drop"])
def test_several_branches_are_dropped_over_all_their_dimensions(base64: Any, kind: Any) -> None:
    """R (rank 2) and S (rank 3) are worn as one product of five dimensions: module_drop leaves the
    base alone; rank_drop draws five numbers a layer and changes what comes out."""
    lora = StackedLora(base64, "all-linear", {"R": BranchSpec(2, 4.0), "S": BranchSpec(3, 3.0)})
    try:
        flats = {b: lora.fresh(b, b)[None] + 0.05 for b in ("R", "S")}
        ids, lengths = torch.tensor([[7, 8, 9, 10]]), torch.tensor([4])
        chosen = torch.ones(1, 3, dtype=torch.bool)
        seen = list[tuple[int, ...]]()

        def logits(*worn: str, injected: Injected | None = None) -> Tensor:
            with lora.wear(flats, worn, injected=injected):
                return lora.base.predictions(ids, lengths, chosen)[0].logits()

        class Watched:
            def __init__(self, inner: Injected) -> None:
                self.latent: Callable[[str, Tensor], Tensor] = lambda layer, hidden: (
                    seen.append(tuple(hidden.shape)) or inner.latent(layer, hidden)
                )
                self.output = inner.output

        injected = Disturbance(kind, rate=0.5, **SURE).draw([generator("x")], lengths, [1.0])
        disturbed = logits("R", "S", injected=Watched(injected))
        assert set(seen) == {(4, 5)}
        same = logits() if kind == "module_drop" else logits("R", "S")
        assert bool(torch.equal(disturbed, same)) is (kind == "module_drop")
    finally:
        lora.remove()
