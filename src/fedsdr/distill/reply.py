"""What a server answered: the draft in it, or why it is none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from fedsdr.distill.selection import Draft

LONGEST_TOKEN = 256  # characters
LONGEST_WORDS = 200  # characters of a server's own message that are passed on
SHARED = 12  # characters in a row that such a message may not share with a record …
SHORTEST = 3  # … or a whole text of a record, from this length on


class BadReply(Exception):
    """The server's answer is not one of the protocol."""


def read_reply(
    protocol: Literal["chat", "completions"], kind: str, body: bytes, tokens: int
) -> Draft:
    """The first choice's text, and whether it stopped at the limit of so many tokens."""
    if "json" not in kind.lower():
        raise BadReply(f"its answer is {_named(kind)}, not application/json")
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise BadReply("its answer is not valid JSON") from None
    held = _mapping(answer, "its answer")
    if held.get("error"):
        raise BadReply("its answer is an error")
    choices: Any = held.get("choices")
    if not isinstance(choices, list) or not choices:
        raise BadReply("its answer holds no choices")
    choice = _mapping(cast("list[object]", choices)[0], "choices[0]")
    if protocol == "chat":
        text = _mapping(choice.get("message"), "choices[0].message").get("content")
    else:
        text = choice.get("text")
    end = choice.get("finish_reason")
    if text is None and isinstance(end, str):
        text = ""  # of a model that thought until its tokens were used up
    if not isinstance(text, str):
        raise BadReply("its answer holds no text")
    if not isinstance(end, str | None):
        raise BadReply("its finish_reason is no text")
    if re.search("[\0\ud800-\udfff]", text):
        raise BadReply("its answer holds what is no text (NUL, or half of a surrogate pair)")
    if len(text) > LONGEST_TOKEN * tokens:
        raise BadReply(f"its answer has {len(text)} characters, more than {tokens} tokens can have")
    return Draft(text.strip(), end in ("length", "max_tokens", "content_filter"))


def server_words(body: bytes, texts: Sequence[str]) -> str:
    """A server's error message as `: '...'`, if it is short and repeats nothing of the record."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    words = next((w for w in _messages(answer) if w), "")
    words = " ".join(words.split())
    if not words or len(words) > LONGEST_WORDS or "\\u" in words or not words.isprintable():
        return ""
    return "" if _repeats(words, texts) else f": {words!r}"


def other_model(asked: str, body: bytes, texts: Sequence[str]) -> str | None:
    """The model that an answer says it is of, where that is not the one asked for, nor anything of
    the record."""
    found: Any = json.loads(body).get("model")
    known = isinstance(found, str) and re.fullmatch(r"[\x21-\x7e]{1,200}", found)
    return found if known and found != asked and not _repeats(found, texts) else None


def _repeats(words: str, texts: Sequence[str]) -> bool:
    told = _squeezed(words)
    for text in map(_squeezed, texts):
        pieces = (text[i : i + SHARED] for i in range(max(1, len(text) - SHARED + 1)))
        if len(text) >= SHORTEST and any(piece in told for piece in pieces):
            return True
    return False


def _messages(answer: Any) -> Iterable[str]:
    """{"error": {"message": …}}, {"error": …}, {"message": …} and {"detail": …} are all in use."""
    if isinstance(answer, dict):
        held = cast("dict[str, Any]", answer)
        error = held.get("error")
        inner = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else error
        yield from (
            w for w in (inner, held.get("message"), held.get("detail")) if isinstance(w, str)
        )


def _squeezed(text: str) -> str:
    return "".join(text.casefold().split())


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadReply(f"{name} is no object")
    return cast("dict[str, Any]", value)


def _named(kind: str) -> str:
    return repr(kind) if re.fullmatch(r"[\w/.+;= -]{1,60}", kind) else "of an unknown kind"
