"""A model's answers to raw prompts: transformers' greedy ones, white space and all, with what the
tokenizer puts in front and with the adapter really on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedsdr.distill.generate import Sampling
from fedsdr.evaluate.benchmarks.answerer import ModelAnswerer
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import BranchSpec, StackedLora

GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=12)
PROMPTS = ["Question: 1+1?\nAnswer:", "def f(x):\n", "Name a city in the north.\nAnswer:"]


@pytest.fixture
def lora(base64: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base64, "all-linear", {"R": BranchSpec(2, 4.0)})
    yield made
    made.remove()


def answerer(lora: StackedLora, size: float) -> ModelAnswerer:
    random = torch.Generator().manual_seed(3)
    shape = (1, lora.layouts["R"].size)
    flat = size * torch.randn(shape, generator=random, dtype=torch.float64)
    return ModelAnswerer(lora, {"R": flat}, {"R": 1.0})


def theirs(base: BaseModel, prompt: str, new: int) -> str:
    ids = torch.tensor([base.tokenizer.encode(prompt)])
    out = base.net.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new,
        pad_token_id=base.pad,
    )
    text = base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def test_they_are_transformers_own_unstripped(lora: StackedLora) -> None:
    alone = ModelAnswerer(lora, {}, {})
    found = alone.answer(PROMPTS, GREEDY, [0] * 3)
    assert found == [theirs(lora.base, p, 12) for p in PROMPTS]
    with_adapter = answerer(lora, 0.5)
    worn = with_adapter.answer(PROMPTS, GREEDY, [0] * 3)
    with lora.wear(with_adapter.flats, with_adapter.mix):
        assert worn == [theirs(lora.base, p, 12) for p in PROMPTS]
    assert worn != found


def test_the_end_of_a_prompt_without_room_is_what_is_kept(lora: StackedLora) -> None:
    one = answerer(lora, 0.5)
    room = one.positions - GREEDY.max_new_tokens
    long = "x " * one.positions + PROMPTS[0]
    assert one.count(long) > one.positions
    ids = lora.base.tokenizer.encode(long)[-room:]
    (found,) = one.answer([long], GREEDY, [0])
    kept = str(lora.base.tokenizer.decode(ids))
    assert one.count(kept) == room
    assert found == one.answer([kept], GREEDY, [0])[0]


def test_a_prompt_cannot_write_a_special_token(lora: StackedLora) -> None:
    alone = ModelAnswerer(lora, {}, {})
    end = lora.base.tokenizer.convert_tokens_to_ids("<|end|>")
    said = "What does <|end|> mean?"
    assert end in lora.base.tokenizer.encode(said)
    assert end not in lora.base.encode_whole(said)
    assert alone.count(said) == len(lora.base.encode_whole(said))
    assert alone.answer([said], GREEDY, [0]) != [theirs(lora.base, said, 12)]


def test_draws_follow_the_seed_alone(lora: StackedLora) -> None:
    hot = Sampling(temperature=1.5, top_p=1.0, top_k=50, max_new_tokens=8)
    one = answerer(lora, 0.5)
    whole = one.answer(PROMPTS, hot, [1, 2, 3])
    assert one.answer(PROMPTS[1:], hot, [2, 3]) == whole[1:]
    assert one.answer(PROMPTS, hot, [4, 5, 6]) != whole
