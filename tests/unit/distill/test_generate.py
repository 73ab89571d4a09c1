"""Generation against transformers', and draws that depend on nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from fedsdr.data.render import render_prompt
from fedsdr.distill.generate import Sampling, _draw, generate, generate_stacked
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from toy import SPECS, examples

HOT = Sampling(temperature=1.3, top_p=0.95, top_k=40, max_new_tokens=8)


@pytest.fixture
def prompts(base64: BaseModel) -> list[list[int]]:
    made = [render_prompt(base64, e) for e in examples("asked", 7)]
    assert len({len(p) for p in made}) > 3
    return made


def test_greedy_is_transformers_greedy(base64: BaseModel, prompts: list[list[int]]) -> None:
    ours = generate(base64, prompts, Sampling(temperature=0, max_new_tokens=9), batch=4)
    for prompt, answer in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        out = base64.net.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=9,
            pad_token_id=base64.pad,
        )
        fresh = out[0, len(prompt) :].tolist()
        fresh = fresh[: fresh.index(base64.eos)] if base64.eos in fresh else fresh
        text = base64.tokenizer.decode(fresh, skip_special_tokens=True).strip()
        assert (answer.text, answer.tokens) == (text, len(fresh))
        assert answer.hit_limit is (len(fresh) == 9)


def test_a_draw_depends_on_its_own_seed_alone(base64: BaseModel, prompts: list[list[int]]) -> None:
    seeds = list(range(100, 107))
    whole = generate(base64, prompts, HOT, seeds)
    assert len({a.text for a in whole}) > 3
    for batch in (1, 3):
        assert generate(base64, prompts, HOT, seeds, batch=batch) == whole
    turned = generate(base64, prompts[::-1], HOT, seeds[::-1])
    assert turned[::-1] == whole
    assert generate(base64, prompts[2:3], HOT, seeds[2:3]) == whole[2:3]
    assert generate(base64, prompts, HOT, [s + 50 for s in seeds]) != whole


def test_a_longer_limit_only_adds(base64: BaseModel, prompts: list[list[int]]) -> None:
    seeds = list(range(7))
    short = generate(base64, prompts, replace(HOT, max_new_tokens=3), seeds)
    long = generate(base64, prompts, replace(HOT, max_new_tokens=6), seeds)
    for a, b in zip(short, long, strict=True):
        assert a.tokens == min(3, b.tokens)
        assert a.hit_limit is (b.tokens >= 3)


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", {"R": SPECS["R"]})
    yield made
    made.remove()


@pytest.mark.parametrize("counts", [(3, 3, 3), (5, 1, 3), (2, 0, 4), (0, 0, 1)])
def test_clients_side_by_side_answer_as_each_alone(
    counts: tuple[int, ...], lora: StackedLora, base64: BaseModel
) -> None:
    random = torch.Generator().manual_seed(1)
    size = lora.layouts["R"].size
    flat = 0.5 * torch.randn((3, size), generator=random, dtype=torch.float64)
    asked = [[render_prompt(base64, e) for e in examples(f"c{k}", n)] for k, n in enumerate(counts)]
    seeds = [[10 * k + i for i in range(n)] for k, n in enumerate(counts)]
    done: list[int] = []
    with torch.no_grad(), lora.wear({"R": flat}, ["R"]):
        together = generate_stacked(base64, asked, HOT, seeds, batch=6, progress=done.append)
    assert sum(done) == sum(counts)
    assert [len(own) for own in together] == list(counts)
    for k, own in enumerate(together):
        if own:
            with torch.no_grad(), lora.wear({"R": flat[k : k + 1]}, ["R"]):
                assert generate(base64, asked[k], HOT, seeds[k]) == own


def kept_by_transformers(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    scores, ids = logits / sampling.temperature, torch.zeros((len(logits), 1), dtype=torch.long)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    return scores


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.95, 0.7, 50),
        Sampling(1.0, 0.3, 5),
        Sampling(0.5, 1.0, 3),
        Sampling(1.5, 0.9, 0),
        Sampling(1.0, 1.0, 0),
        Sampling(1.0, 0.999, 1),
        Sampling(2.0, 1e-6, 50),
        Sampling(1.0, 0.8, 10_000),
    ],
)
def test_what_may_be_drawn_and_how_often_is_transformers(sampling: Sampling) -> None:
    """A sweep of the uniform number over (0, 1) hits each token for as long as it is likely."""
    logits = 3 * torch.randn((4, 30), generator=torch.Generator().manual_seed(2))
    expected = kept_by_transformers(logits, sampling).softmax(-1)
    sweep, counts = 4000, torch.zeros_like(expected)
    for step in range(sweep):
        token = _draw(logits, sampling, torch.full((4,), (step + 0.5) / sweep))
        counts[torch.arange(4), token] += 1
    assert ((counts > 0) <= (expected > 0)).all()
    assert float((counts / sweep - expected).abs().max()) < 2 / sweep + 1e-5


def test_the_edges_of_the_unit_interval() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    sampling = Sampling(1.0, 0.99, 0)
    assert _draw(logits, sampling, torch.zeros(1)).item() == 0
    assert _draw(logits, sampling, torch.tensor([1 - 2**-24])).item() == 2


def test_nothing_to_do(base64: BaseModel) -> None:
    assert generate(base64, [], HOT) == []
