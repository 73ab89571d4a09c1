"""The rewriting prompts: exact texts, inert user data, and which template a response gets."""

from __future__ import annotations

import pytest

from fedsdr.distill.prompts import TEMPLATES, Template, choose_template, render, template_digest
from fedsdr.errors import RecipeError
from fedsdr.types import Example, Message


def example(response: str, prompt: str = "What is it?", system: str = "") -> Example:
    return Example("e1", prompt, response, system=system, domain="d", origin="o")


def test_the_texts_are_those_the_shipped_model_was_trained_on() -> None:
    free = render(TEMPLATES["free"], example("A lamp."))
    assert free.system == "Rewrite the reference answer in your own words."
    assert free.prompt == (
        "What is it?\n\nReference answer:\nA lamp.\n\n"
        "Using the reference answer as a guide, answer the question in your own words."
    )
    checkable = render(TEMPLATES["checkable"], example("A lamp."))
    assert checkable.prompt == (
        "What is it?\n\nReference answer:\nA lamp.\n\n"
        "Stay close to the reference answer and keep its final answer. "
        "Answer the question in your own words."
    )


def test_render_keeps_the_conversation_and_empties_the_response() -> None:
    history = (Message("user", "Hi"), Message("assistant", "Hello"))
    asked = Example(
        "e1", "Why?", "Because.", system="Be brief.", domain="d", origin="o", history=history
    )
    prompt = render(TEMPLATES["free"], asked)
    assert prompt.system == "Be brief.\n\nRewrite the reference answer in your own words."
    assert (prompt.history, prompt.id, prompt.domain, prompt.origin) == (history, "e1", "d", "o")
    assert prompt.response == ""
    assert asked.response == "Because."


@pytest.mark.parametrize("hostile", ["{response}", "{instruction}", "{0}{x!r}", r"\1 \g<0> {{}}"])
def test_user_data_is_never_a_placeholder(hostile: str) -> None:
    filled = render(TEMPLATES["free"], example("THE SECRET", prompt=hostile))
    assert filled.prompt.startswith(hostile + "\n\nReference answer:\nTHE SECRET\n")
    assert filled.prompt.count("THE SECRET") == 1
    assert f"\n{hostile}\n" in render(TEMPLATES["free"], example(hostile)).prompt


@pytest.mark.parametrize(
    "response",
    [
        "Use this:\n```python\nprint(1)\n```",
        "def add(a, b):\n    return a + b",
        "SELECT name FROM users WHERE id = 3;",
        'aws.kinesis.describe_stream(stream_name="s")',
        "You can use lookup.find(city='Rome') for it.",
        "We add them up.\nThe answer is 12",
        "6 + 9 is what we need.\n#### 15",
        "B",
        "(C)",
        "The correct answer is option D.",
        "There are 6 + 9 = 15 knives.",
        "4 hours/day * 125 watts/hour=500 watt hours/day",
        "So x = 7.",
    ],
)
def test_auto_is_checkable_where_something_can_be_checked(response: str) -> None:
    assert choose_template(example(response), "auto") is TEMPLATES["checkable"]


@pytest.mark.parametrize(
    "response",
    [
        '{"name": "Velorin", "capital": "Oslo", "founded": 1832}',
        '{\n  "name": "Velorin"\n}',
        "capital: Oslo",
        "name: Velorin; founded: 2021-03-12; area: 5-10",
        "[Velorin | capital = oslo]",
        "[order = 3 < 5 < 9]",
        "Velorin\n- capital: Oslo\n- founded: 1832",
        "The capital of Velorin is Oslo.",
        "It takes 10-15 minutes, and/or 1/2 an hour.",
        "If you have any of the following:\nFever;\nRash",
        "The answer to this question depends on the weather.",
        "The short answer is that it depends on where one lives and works.",
        "A cat sat on the system(s).",
        "Oslo",
    ],
)
def test_auto_is_free_for_prose_and_bare_records(response: str) -> None:
    assert choose_template(example(response), "auto") is TEMPLATES["free"]


def test_a_named_template_is_taken_whatever_the_response() -> None:
    assert choose_template(example("#### 3"), "free").name == "free"
    assert choose_template(example("Oslo"), "checkable").name == "checkable"
    with pytest.raises(RecipeError, match=r"'chekable' is not one of.*Did you mean 'checkable'\?"):
        choose_template(example("Oslo"), "chekable")


def test_the_digest_depends_on_every_part() -> None:
    parts = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "b", "d")]
    digests = {template_digest(Template(*part)) for part in parts}
    assert len(digests) == len(parts)
    free = template_digest(TEMPLATES["free"])
    assert free == template_digest(TEMPLATES["free"])
    assert len(free) == 64
