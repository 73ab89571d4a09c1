"""What disqualifies a rewrite: a leak of the prompt, truncation, a lost answer, changed facts.

Each check returns reasons: short stable keys which hold no text of the record.
"""

from __future__ import annotations

import re

from fedsdr.distill.answers import call, calls, keeps_final_answer, looks_like_code
from fedsdr.distill.facts import compare_facts
from fedsdr.distill.words import plain, words
from fedsdr.types import Example

# The first five are those of the SDFT code (sail-sg/sdft); the others are phrases of our templates
# and of models that talk about the rewriting instead of answering.
LEAK_PHRASES: tuple[str, ...] = (
    "reference answer",
    "your response",
    "my response",
    "your own response",
    "now it's your turn",
    "your turn",
    "in your own words",
    "in my own words",
    "original response",
    "original answer",
    "provided answer",
    "provided reference",
    "given reference",
    "the reference as a guide",
    "my rewritten",
    "the rewritten",
    "a rewritten",
    "rewritten version",
    "rewritten answer",
    "rewritten response",
    "my version of the",
    "keep its final answer",
)
_LEAKS = tuple((phrase, re.compile(rf"\b{re.escape(phrase)}\b")) for phrase in LEAK_PHRASES)
_DANGLING = re.compile(r"(?:[,:(\[{]|(?<![\w'\u2019-])(?:and|or|the|a|an|of|with|because|which))$")


def sdft_reasons(example: Example, rewrite: str, hit_limit: bool) -> tuple[str, ...]:
    """The SDFT code's filter: empty, leaking, truncated, or without the original's answer.

    A phrase that the original itself uses is no leak.
    """
    if not rewrite.strip():
        return ("empty",)
    original = example.response
    leaked = [phrase for phrase in leaks(rewrite) if phrase not in leaks(original)]
    return (
        *(f"leak:{phrase}" for phrase in leaked),
        *(("truncated",) if is_truncated(rewrite, hit_limit) else ()),
        *lost_answer(original, rewrite),
    )


def fact_reasons(example: Example, rewrite: str) -> tuple[str, ...]:
    """Numbers, names, dates or negations lost or invented, or the one word of the answer gone."""
    difference = compare_facts(example.response, rewrite, prompt_text(example))
    said = words(example.response)
    gone = len(said) == 1 and said[0] not in words(rewrite)
    return (*difference.reasons, *(("lost-label",) if gone else ()))


def prompt_text(example: Example) -> str:
    """All that the model was told before it answers."""
    return "\n".join((example.system, *(m.content for m in example.history), example.prompt))


def leaks(text: str) -> tuple[str, ...]:
    """The phrases by which a text speaks of the rewriting prompt."""
    flat = " ".join(plain(text).split())
    return tuple(phrase for phrase, pattern in _LEAKS if pattern.search(flat))


def is_truncated(text: str, hit_limit: bool = False) -> bool:
    """Cut off by the token limit, inside a code fence, or with a sentence left hanging."""
    if hit_limit or text.count("```") % 2 == 1:
        return True
    return _DANGLING.search(text.rstrip()) is not None and not looks_like_code(text)


def lost_answer(original: str, rewrite: str) -> tuple[str, ...]:
    """Which checkable answers of the original the rewrite no longer gives."""
    asked = call(original)
    if asked is not None:
        return () if any(asked in given for given in calls(rewrite)) else ("lost-call",)
    if looks_like_code(original):
        return () if looks_like_code(rewrite) else ("lost-code",)
    return () if keeps_final_answer(original, rewrite) else ("lost-answer",)
