"""Chat templates, rendered as transformers renders them, and no longer than a moment."""

from __future__ import annotations

import os

import pytest

from attack import attempt
from fedsdr.errors import ModelError
from fedsdr.model import rendering
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import CHAT_TEMPLATE
from fedsdr.model.rendering import GUARD, TemplateFailure, render_chat
from fedsdr.text.templates import BOS, TEMPLATES

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": f"A {{{{ b }}}} <|im_{GUARD}end|>\n 'ä€😀' & <b>"},
    {"role": "assistant", "content": " ok "},
    {"role": "user", "content": ""},
]
LANGUAGE = (
    "{%- set ns = namespace(n=0) -%}\n{% for m in messages %}\n    {% set ns.n = ns.n + 1 %}"
    "{{ ns.n ~ ': ' ~ m | tojson }}{{ dict(a=1) | tojson(indent=2) }}"
    "{% if loop.first %}{% continue %}{% endif %}{% if ns.n > 3 %}{% break %}{% endif %}\n"
    "{% generation %}{{ m['content'] | trim }}{% endgeneration %}{% endfor %}"
    "{{ eos_token }}{{ bos_token }}{{ tools }}{{ documents is none }}{{ nothing }}"
    "{% if add_generation_prompt %}go{% endif %}\n"
)


def both(base: BaseModel, template: str, opened: bool) -> tuple[str, str]:
    theirs = base.tokenizer.apply_chat_template(
        SAID, chat_template=template, tokenize=False, add_generation_prompt=opened
    )
    variables = {
        **dict(base.tokenizer.special_tokens_map),
        "messages": SAID,
        "tools": None,
        "documents": None,
        "add_generation_prompt": opened,
    }
    return str(theirs), render_chat(template, variables, 100)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(
    "template", [CHAT_TEMPLATE, LANGUAGE, *(t.text for t in TEMPLATES.values())]
)
def test_as_transformers_renders_them(base64: BaseModel, template: str, opened: bool) -> None:
    """Ours here, and the same text as a stranger's, beside."""
    theirs, here = both(base64, template, opened)
    _, beside = both(base64, template + "{# a stranger's #}", opened)
    assert here == beside == theirs


def variables(content: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}]}


SLOW_FOR_SOME = (
    "{% for m in messages %}{% if 'slow' in m.content %}{% for a in range(99999) %}"
    "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}{{ m.content }}{% endfor %}"
)


def test_one_that_is_slow_for_some_records_only() -> None:
    """It passes every trial before; and after it was ended, the others are rendered."""
    assert render_chat(SLOW_FOR_SOME, variables("fast"), 4) == "fast"
    with pytest.raises(ModelError, match="takes longer than 2 seconds"):
        render_chat(SLOW_FOR_SOME, variables("slow"), 4)
    assert render_chat(SLOW_FOR_SOME, variables("fast"), 4) == "fast"


def test_a_long_conversation_is_rendered_as_it_is() -> None:
    content = "word \U0001f600 " * 300_000
    text = render_chat("{{ messages[0].content }} ", variables(content), len(content))
    assert text == f"{content} "


def test_a_fork_has_a_process_of_its_own() -> None:
    """Or both would read one another's answers."""
    assert render_chat("{{ 1 + 1 }}!", {}, 0) == "2!"
    outcome = attempt(lambda: [render_chat("{{ 1 + 2 }}!", {}, 0) for _ in range(20)], 60)
    assert outcome.value == ["3!"] * 20
    assert render_chat("{{ 1 + 1 }}!", {}, 0) == "2!"


def test_a_process_that_is_gone_is_told_and_another_started() -> None:
    assert render_chat("{{ 'a' }} ", {}, 0) == "a "
    process = rendering._BESIDE.process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(ModelError, match="too much memory, or nests too deep"):
        render_chat("{{ 'a' }} ", {}, 0)
    assert render_chat("{{ 'a' }} ", {}, 0) == "a "


def test_it_writes_no_file_and_knows_no_secrets_of_ours() -> None:
    os.environ["FEDSDR_TEST_SECRET"] = "hunter2"
    try:
        render_chat("{{ 'a' }}  ", {}, 0)
        process = rendering._BESIDE.process
        assert process is not None
        with open(f"/proc/{process.pid}/environ") as file:
            assert "hunter2" not in file.read()
        with open(f"/proc/{process.pid}/limits") as file:
            limits = file.read()
        assert "Max file size             0" in limits
    finally:
        del os.environ["FEDSDR_TEST_SECRET"]


def test_a_refusal_of_the_template_is_none_of_ours() -> None:
    with pytest.raises(TemplateFailure, match="no system line"):
        render_chat("{{ raise_exception('no system line') }}", {}, 0)


def test_named_templates_with_bos_in_front_are_ours_too() -> None:
    assert all(BOS + t.text in rendering.OURS for t in TEMPLATES.values())
