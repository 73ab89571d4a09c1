"""What is read and what is trained: masks from rendering, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedsdr.data.render import Rendered, messages_of, render, render_prompt
from fedsdr.errors import DataError
from fedsdr.model.base import BaseModel
from fedsdr.text.templates import PLAIN_TEMPLATE
from fedsdr.types import Example, Message
from toy import examples

ROW = Example("a", "What is the dose?", "It is 40 mg.", system="Be brief.")


def trained(base: BaseModel, row: Rendered) -> str:
    chosen = [i for i, w in zip(row.ids, row.weights, strict=True) if w]
    return str(base.tokenizer.decode(chosen))


def test_the_response_and_its_end_are_trained_and_nothing_else(base32: BaseModel) -> None:
    row = render(base32, ROW, 256)
    assert trained(base32, row) == "It is 40 mg.<|end|>"
    assert base32.tokenizer.decode(row.ids) == (
        "<|system|>Be brief.<|end|><|user|>What is the dose?<|end|><|assistant|>It is 40 mg.<|end|>"
    )
    assert set(row.weights) == {0.0, 1.0}
    assert row.trained == sum(row.weights)
    assert row.ids[-1] == base32.eos
    assert not row.truncated


def test_training_sees_exactly_what_generation_will_see(base32: BaseModel) -> None:
    for example in (ROW, *examples("a", 8)):
        row, prompt = render(base32, example, 256), render_prompt(base32, example)
        assert list(row.ids[: len(prompt)]) == prompt
        assert row.weights[: len(prompt)] == (0.0,) * len(prompt)
        assert all(w == 1.0 for w in row.weights[len(prompt) :])


def test_earlier_turns_are_read_not_trained(base32: BaseModel) -> None:
    history = (Message("user", "Hello"), Message("assistant", "Good day"))
    example = replace(ROW, history=history)
    assert [m["role"] for m in messages_of(example)] == ["system", "user", "assistant", "user"]
    row = render(base32, example, 256)
    assert trained(base32, row) == "It is 40 mg.<|end|>"
    assert "Good day" in str(base32.tokenizer.decode(row.ids))


def test_all_answers_are_trained_where_asked(base32: BaseModel) -> None:
    """With what ends each of them; what stands between is read."""
    history = (Message("user", "Hello"), Message("assistant", "Good day"))
    example, base = replace(ROW, history=history), replace(base32, train_on="all")
    row = render(base, example, 256)
    assert trained(base, row) == "Good day<|end|>It is 40 mg.<|end|>"
    assert row.ids == render(base32, example, 256).ids
    assert row.prompt == render(base32, example, 256).prompt == len(render_prompt(base, example))
    assert render(base, ROW, 256) == render(base32, ROW, 256)


def test_of_many_answers_only_the_last_is_cut(base32: BaseModel) -> None:
    history = (Message("user", "Hello"), Message("assistant", "Good day"))
    example, base = replace(ROW, history=history), replace(base32, train_on="all")
    whole = render(base, example, 256)
    cut = render(base, example, whole.prompt + 1)
    assert cut.truncated
    assert cut.trained == whole.trained - (len(whole.ids) - whole.prompt) + 1
    # What is trained before the response does not make up for the response that is lost.
    with pytest.raises(DataError, match="its prompt alone fills"):
        render(base, example, whole.prompt)


def test_no_system_line_no_system_turn() -> None:
    assert [m["role"] for m in messages_of(replace(ROW, system=""))] == ["user"]


def test_what_does_not_fit_is_cut_from_the_end_of_the_response(base32: BaseModel) -> None:
    whole = render(base32, ROW, 256)
    cut = render(base32, ROW, len(whole.ids) - 3)
    assert cut.truncated
    assert cut.ids == whole.ids[:-3]
    assert cut.trained == whole.trained - 3
    assert not render(base32, ROW, len(whole.ids)).truncated


def test_what_stands_before_the_response() -> None:
    assert Rendered((5, 6, 7, 8), (0.0, 1.0, 0.0, 1.0)).prompt == 3
    assert Rendered((5, 6), (0.0, 0.0)).prompt == 2
    assert Rendered((5,), (1.0,)).prompt == 0


@pytest.mark.parametrize("short", [0, 1, 5])
def test_a_prompt_that_leaves_no_room_is_refused_by_name(short: int, base32: BaseModel) -> None:
    length = len(render_prompt(base32, ROW)) - short
    with pytest.raises(DataError, match=r"example 'a': its prompt alone .*raise max_length"):
        render(base32, ROW, length)
    assert render(base32, ROW, len(render_prompt(base32, ROW)) + 1).trained == 1


def test_the_plain_template_for_tokenizers_without_one(base32: BaseModel) -> None:
    base = replace(base32, template=PLAIN_TEMPLATE)
    row = render(base, ROW, 256)
    assert trained(base, row) == "It is 40 mg.<|end|>"
    assert "user:\nWhat is the dose?<|end|>" in str(base.tokenizer.decode(row.ids))


def test_a_template_without_an_end_gets_one(base32: BaseModel) -> None:
    """The model has to learn where to stop."""
    bare = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    base = replace(base32, template=bare + "{% if add_generation_prompt %}[assistant]{% endif %}")
    row = render(base, ROW, 256)
    assert trained(base, row) == "It is 40 mg.<|end|>"


def test_nothing_after_the_end_is_trained(base32: BaseModel) -> None:
    base = replace(
        base32, template=base32.template + "{% if not add_generation_prompt %}\n{% endif %}"
    )
    assert trained(base, render(base, ROW, 256)) == "It is 40 mg.<|end|>"


def test_a_template_that_rewrites_the_past_is_refused(base32: BaseModel) -> None:
    template = "{{ messages | length }}" + base32.template
    with pytest.raises(DataError, match=r"set model\.chat_template: plain"):
        render(replace(base32, template=template), ROW, 256)


def test_any_text_survives(base32: BaseModel) -> None:
    odd = "größe 40 µg — 《x》 \n\t{{ m }} \u2028 😀"
    assert trained(base32, render(base32, replace(ROW, response=odd), 256)) == odd + "<|end|>"
