"""Generation against transformers', and draws that depend on nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fedsdr.data.render import render_prompt
from fedsdr.distill import generate as places
from fedsdr.distill.generate import Sampling, draw, generate, generate_stacked
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import train_tokenizer
from fedsdr.model.loading import load_base
from fedsdr.model.lora import StackedLora
from toy import SPECS, TEXTS, examples, loud

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
def _early_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token of twelve ends an answer, so that their lengths differ by far."""
    often = frozenset(range(0, 300, 12))
    monkeypatch.setattr(BaseModel, "stops", property(lambda base: often))


def varied(base: BaseModel, count: int) -> list[list[int]]:
    rows = [render_prompt(base, e) for e in examples("many", count)]
    return [row * (1 + i % 3) for i, row in enumerate(rows)]


@pytest.mark.usefixtures("_early_ends")
def test_places_are_taken_again_and_nobody_notices(
    base64: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, seeds = varied(base64, 40), list(range(40))
    sampling = Sampling(1.6, 1.0, 0, 24)
    alone = [generate(base64, [p], sampling, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    lengths = sorted(answer.tokens for answer in alone)
    assert lengths[-1] >= 3 * max(1, lengths[5])
    steps: list[int] = []
    plain = BaseModel.generation

    def generation(self: BaseModel, ids: torch.Tensor, *rest: Any) -> Any:
        steps.append(ids.shape[0])
        return plain(self, ids, *rest)

    monkeypatch.setattr(BaseModel, "generation", generation)
    for refill in (1, 4, 8):
        monkeypatch.setattr(places, "REFILL", refill)
        steps.clear()
        assert generate(base64, prompts, sampling, seeds, batch=8) == alone
        assert max(steps) <= 8
    read = sum(steps)
    steps.clear()
    monkeypatch.setattr(places, "can_regroup", lambda cache: False)
    assert generate(base64, prompts, sampling, seeds, batch=8) == alone
    assert read < 0.75 * sum(steps)  # a row read by the model in a step, of a batch that waits


@pytest.mark.usefixtures("_early_ends")
def test_rows_join_in_sliding_windows_too(tmp_path: Path) -> None:
    """Mistral's layers keep the last few columns only."""
    tokenizer = train_tokenizer(TEXTS, 300)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=12,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = loud(MistralForCausalLM(config))
    net.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base = load_base(tmp_path, "float64")
    prompts, seeds = varied(base, 12), list(range(12))
    sampling = Sampling(1.6, 1.0, 0, 20)
    assert max(map(len, prompts)) > 12
    alone = [generate(base, [p], sampling, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert len({answer.tokens for answer in alone}) > 4
    assert generate(base, prompts, sampling, seeds, batch=4) == alone


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", {"R": SPECS["R"]})
    yield made
    made.remove()


@pytest.mark.usefixtures("_early_ends")
@pytest.mark.parametrize("counts", [(3, 3, 3), (5, 1, 3), (2, 0, 4), (0, 0, 1), (9, 2, 14)])
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
        token = draw(logits, sampling, torch.full((4,), (step + 0.5) / sweep))
        counts[torch.arange(4), token] += 1
    assert ((counts > 0) <= (expected > 0)).all()
    assert float((counts / sweep - expected).abs().max()) < 2 / sweep + 1e-5


def test_the_edges_of_the_unit_interval() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    sampling = Sampling(1.0, 0.99, 0)
    assert draw(logits, sampling, torch.zeros(1)).item() == 0
    assert draw(logits, sampling, torch.tensor([1 - 2**-24])).item() == 2


def test_nothing_to_do(base64: BaseModel) -> None:
    assert generate(base64, [], HOT) == []
