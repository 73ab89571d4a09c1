"""What a server answered: the draft in it, or why it is none.

A server knows the record and the key, and may say either anywhere, in words or in disguise. So
nothing that it sent is repeated in a message: what is wrong is said in words of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

from fedsdr.distill.selection import Draft
from fedsdr.runs.plain import NamedTwice, once

LONGEST_TOKEN = 256  # characters
LONGEST_WORDS = 2000  # characters of a server's own message that are looked at
JSON = re.compile(r"(application|text)/([a-z0-9.-]{1,40}\+)?json")
KNOWN_KINDS = (
    *("text/html", "text/plain", "text/xml", "text/css", "text/event-stream", "image/png"),
    *("application/xml", "application/x-ndjson", "application/octet-stream", "application/pdf"),
)
# What servers complain of, and how it is passed on; the first that fits.
COMPLAINTS = {
    r"context|too long|too large|too many tokens|max_(model_)?(len|tokens)|maximum length": (
        "the request is too long for the model"
    ),
    r"loading|starting|warming": "the model is loading",
    r"out of memory|\boom\b": "it is out of memory",
    r"rate.?limit|quota|billing|credit": "a quota is used up",
    r"overload|capacity|\bbusy\b|\bqueue": "it is overloaded",
    r"model.{0,200}(not found|not exist|unknown|no such)|(unknown|no|invalid) (such )?model": (
        "it does not have the model"
    ),
    r"top_k|seed|parameter|argument|unrecognized|not permitted|unsupported": (
        "it does not take a parameter (top_k, seed)"
    ),
    r"chat.?template|\brole\b|system (message|prompt)": (
        "the model's chat template does not take such messages"
    ),
}


class BadReply(Exception):
    """The server's answer is not one of the protocol."""


def read_answer(kind: str, coding: str, body: bytes) -> Mapping[str, Any]:
    """The object in an answer of this Content-Type and Content-Encoding."""
    if coding.strip().lower() not in ("", "identity"):
        raise BadReply("its answer is compressed, which it was not asked for")
    media = kind.partition(";")[0].strip().lower()
    if not JSON.fullmatch(media):
        named = media if media in KNOWN_KINDS else "of an unknown kind"
        raise BadReply(f"its answer is {named}, not application/json")
    answer = _parsed(body)
    if answer is None:
        raise BadReply("its answer is not valid JSON")
    return answer


def read_draft(
    protocol: Literal["chat", "completions"], answer: Mapping[str, Any], tokens: int
) -> Draft:
    """The first choice's text, and whether it stopped at the limit of so many tokens."""
    if answer.get("error"):
        raise BadReply(f"its answer is an error{_complaint(answer)}")
    choices: Any = answer.get("choices")
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
        raise BadReply(f"its answer has more characters than {tokens} tokens can have")
    return Draft(text.strip(), end in ("length", "max_tokens", "content_filter"))


def complaint(body: bytes) -> str:
    """What an error's body complains of as ` (…)`, in words of ours; empty where they say nothing
    known."""
    try:
        answer = _parsed(body)
    except BadReply:
        return ""
    return "" if answer is None else _complaint(answer)


def _complaint(answer: Mapping[str, Any]) -> str:
    for words in _messages(answer):
        for pattern, ours in COMPLAINTS.items():
            if re.search(pattern, words[:LONGEST_WORDS], re.IGNORECASE):
                return f" (it seems that {ours})"
    return ""


def _messages(answer: Mapping[str, Any]) -> Iterator[str]:
    """{"error": {"message": …}}, {"error": …}, {"message": …} and {"detail": …} are all in use."""
    error = answer.get("error")
    inner = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else error
    for words in (inner, answer.get("message"), answer.get("detail")):
        if isinstance(words, str):
            yield words


def _parsed(body: bytes) -> Mapping[str, Any] | None:
    """None where it is no JSON in UTF-8 to the letter: NaN is none."""
    try:
        answer: Any = json.loads(
            body.decode("utf-8-sig"), object_pairs_hook=once, parse_constant=_no_number
        )
    except NamedTwice:
        raise BadReply("its answer says one key twice") from None
    except (ValueError, RecursionError):
        return None
    return _mapping(answer, "its answer")


def _no_number(name: str) -> None:
    raise ValueError


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadReply(f"{name} is no object")
    return cast("dict[str, Any]", value)
