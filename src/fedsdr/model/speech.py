"""A tokenizer and its chat template: conversations to text, text to tokens.

What stands in a record never becomes a special token, so that no record can end its own turn: such
a string is cut in two before it is rendered (GUARD marks the place) and its halves are tokenised
apart. A piece of text that continues another one gets no space in front, which SentencePiece would
add at the beginning of a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from fedsdr.errors import DataError, ModelError
from fedsdr.model.rendering import GUARD, HALF, OTHER, TemplateFailure, render_chat
from fedsdr.text.templates import BOS, PLAIN_TEMPLATE, TEMPLATES, check_choice

Conversation = Sequence[Mapping[str, str]]
NO_TEMPLATE = "the tokenizer has no chat template: fedsdr's plain one is used"
DATED = "the chat template writes today's date: here always 26 Jul 2024, so that runs repeat"
# Shadows the clock that transformers offers to templates.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
PROBE = "fedsdr probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What tokenizer and template have in common; `find_speech` finds it."""

    tokenizer: PreTrainedTokenizerFast
    template: str
    ends: frozenset[int]  # what ends a turn of the assistant
    added: re.Pattern[str]  # tokens that stand outside the vocabulary proper
    reserved: re.Pattern[str]  # the first character of what only the template may write
    inner: Tokenizer | None  # the tokenizer without the space that it puts before a text
    around: tuple[list[int], list[int]]  # what it puts before and behind a text: Llama's <s>

    def chat(self, messages: Conversation, opened: bool) -> str:
        """The conversation as text in which GUARD cuts what a record may not say."""
        shielded = [{**m, "content": self._shielded(m["content"])} for m in messages]
        return rendered(self.tokenizer, self.template, shielded, opened)

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """`continued`: other text stands before it."""
        ids = list[int]()
        for number, part in enumerate(text.split(GUARD)):
            ids += self._inside(part) if continued or number else _encoded(self.tokenizer, part)
        return ids

    def encode_whole(self, text: str) -> list[int]:
        """Raw text, without any template: with what the tokenizer itself puts around a text."""
        before, after = self.around
        return [*before, *self.encode(self._shielded(text)), *after]

    def _shielded(self, text: str) -> str:
        if HALF.search(text):
            raise DataError("what is said holds half of a surrogate pair, which is no text")
        return self.reserved.sub(rf"\g<0>{GUARD}", text)

    def _inside(self, text: str) -> list[int]:
        if self.inner is None:
            return _encoded(self.tokenizer, text)
        match = self.added.search(text)
        start = match.start() if match else len(text)
        with encoding():
            ids = self.inner.encode(text[:start], add_special_tokens=False).ids
        return ids + _encoded(self.tokenizer, text[start:])


@lru_cache(maxsize=16)
def find_speech(tokenizer: PreTrainedTokenizerFast, template: str) -> Speech:
    """Rendered probes tell which tokens the template opens and ends turns with."""
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    added = _any_of(known)
    asked = {"role": "user", "content": PROBE}
    tail = _probe(tokenizer, template, [asked, {**asked, "role": "assistant"}], opened=False)
    end = added.search(tail.rpartition(PROBE)[2])
    ends = {end[0]} if end else set[str]()
    structure = set[str]()
    for messages in ([asked], [{**asked, "role": "system"}, asked]):
        structure |= set(added.findall(_probe(tokenizer, template, messages, opened=True)))
    special = {text for text, token in known.items() if token.special}
    # A token of one character cannot be cut in two; no tokenizer has such a special one.
    reserved = {text for text in special | structure | ends if len(text) > 1}
    return Speech(
        tokenizer=tokenizer,
        template=template,
        ends=frozenset(cast(int, tokenizer.convert_tokens_to_ids(text)) for text in ends),
        added=added,
        reserved=re.compile(f"(?={_any_of(reserved).pattern}).", re.DOTALL),
        inner=_without_prefix(tokenizer),
        around=_around(tokenizer),
    )


def rendered(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: Conversation, opened: bool
) -> str:
    try:
        return render_unguarded(tokenizer, template, messages, opened)
    except TemplateFailure:
        # Its own message could quote the record.
        raise DataError(
            "the chat template refuses the conversation (its system line, say, or the order "
            f"of its turns); {OTHER}"
        ) from None


def render_unguarded(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: Conversation, opened: bool
) -> str:
    """What it raises could quote the messages."""
    variables = {
        **dict(tokenizer.special_tokens_map),
        "messages": [dict(m) for m in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": opened,
    }
    return render_chat(template, variables, sum(len(m["content"]) for m in messages))


def own_template(tokenizer: PreTrainedTokenizerFast) -> tuple[str, tuple[str, ...]]:
    """The tokenizer's chat template, or the plain one, and what is to be said about it."""
    chat_template: Any = tokenizer.chat_template
    template = chat_template.get("default") if isinstance(chat_template, dict) else chat_template
    if not isinstance(template, str):
        return named_template(tokenizer, "plain"), (NO_TEMPLATE,)
    if HALF.search(template):
        raise ModelError(f"its chat template holds half of a surrogate pair; {OTHER}")
    if "strftime_now" in template:
        return FIXED_DATE + template, (DATED,)
    return template, ()


def named_template(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """A named template for this tokenizer. bos stands in front, once, where the source writes it or
    the tokenizer itself would add it."""
    try:
        chosen = TEMPLATES[check_choice(name)]
    except ValueError as error:
        raise ModelError(f"model.chat_template {name!r}: {error}") from None
    for token in chosen.tokens:
        number = tokenizer.convert_tokens_to_ids(token)
        if _encoded(tokenizer, token) != [number]:
            raise ModelError(
                f"model.chat_template: {name} needs the token {token!r}, which this tokenizer does "
                "not have; take auto (the tokenizer's own template) or plain"
            )
    bos: Any = tokenizer.bos_token_id
    adds_bos = bos is not None and tokenizer.encode("a")[0] == bos
    lacks_bos = adds_bos and "bos_token" not in chosen.text
    return (BOS if lacks_bos else "") + chosen.text


def is_plain(template: str) -> bool:
    return template.endswith(PLAIN_TEMPLATE)


def _probe(
    tokenizer: PreTrainedTokenizerFast, template: str, messages: Conversation, opened: bool
) -> str:
    try:
        return rendered(tokenizer, template, messages, opened)
    except DataError:  # it takes no system line, say; rows that it refuses are told one by one
        return ""


def _encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    with encoding():
        return tokenizer.encode(text, add_special_tokens=False) if text else []


@contextmanager
def encoding() -> Generator[None]:
    """A tokenizer that was well on every trial can still break on a text; what it says of it could
    quote it."""
    try:
        yield
    except BaseException as error:
        # tokenizers raises nothing narrower than Exception.
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise ModelError(
                f"the model's tokenizer breaks on a text ({type(error).__name__}); is "
                "tokenizer.json whole, and the model's own?"
            ) from None
        raise


def _around(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    bare, whole = _encoded(tokenizer, "a"), tokenizer.encode("a")
    starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
    first = starts[0] if starts else 0
    return whole[:first], whole[first + len(bare) :]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _without_prefix(tokenizer: PreTrainedTokenizerFast) -> Tokenizer | None:
    """The tokenizer with nothing put before the text, where it puts something there."""
    whole: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    bare = {**whole, **{key: _bare(whole[key]) for key in ("normalizer", "pre_tokenizer")}}
    if bare == whole:
        return None
    inner = Tokenizer.from_str(json.dumps(bare))
    inner.no_truncation()
    inner.no_padding()
    return inner


def _bare(step: Any) -> Any:
    """One step of a tokenizers pipeline, or a sequence of steps."""
    if step is None:
        return None
    for key in ("normalizers", "pretokenizers"):
        if key in step:
            return {
                **step,
                key: [bare for inner in step[key] if (bare := _bare(inner)) is not None],
            }
    match step["type"]:
        case "Prepend":
            return None
        case "Metaspace":
            return {**step, "prepend_scheme": "never"}
        case "ByteLevel" if "add_prefix_space" in step:
            return {**step, "add_prefix_space": False}
        case _:
            return step
