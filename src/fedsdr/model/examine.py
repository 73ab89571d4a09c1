"""Whether a chat template can be used at all: found out before any record is read."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from fedsdr.errors import ModelError
from fedsdr.model.rendering import OTHER, TemplateFailure
from fedsdr.model.speech import PROBE, render_unguarded

ANSWER = "Its Answer, 1"


def examine(tokenizer: PreTrainedTokenizerFast, template: str) -> tuple[str, ...]:
    """What is to be said about a template; an error if it cannot be used. Why may be told, for no
    record is in it."""
    asked = [{"role": "user", "content": PROBE}]
    try:
        opened, whole = _asked_and_answered(tokenizer, template, asked)
    except TemplateFailure as error:
        try:  # it may insist on a system line
            asked = [{"role": "system", "content": "Be brief."}, *asked]
            opened, whole = _asked_and_answered(tokenizer, template, asked)
        except TemplateFailure:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ModelError(f"its chat template cannot be used: {why}; {OTHER}") from None
    if PROBE not in opened:
        raise ModelError(f"its chat template leaves out what the user says; {OTHER}")
    if ANSWER not in whole:
        raise ModelError(f"its chat template does not write an answer as it was given; {OTHER}")
    before = whole.removeprefix(opened).partition(ANSWER)[0]
    if whole.startswith(opened) and before.strip():
        return (f"the chat template writes {before!r} before an answer: trained as part of it",)
    return ()


def _asked_and_answered(
    tokenizer: PreTrainedTokenizerFast, template: str, asked: list[dict[str, str]]
) -> tuple[str, str]:
    answered = [*asked, {"role": "assistant", "content": ANSWER}]
    opened = render_unguarded(tokenizer, template, asked, True)
    return opened, render_unguarded(tokenizer, template, answered, False)
