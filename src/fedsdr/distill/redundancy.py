"""What a rewrite adds without saying more: length, repetition, filler, unsupported sentences."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from fedsdr.text.words import plain, sentences, words

FILLER: tuple[str, ...] = (
    "additionally", "furthermore", "moreover", "overall", "basically", "essentially", "actually",
    "certainly", "of course", "in conclusion", "in summary", "to summarize", "to sum up",
    "in other words", "that being said", "as mentioned", "as you can see", "as you may know",
    "as an ai", "it is important to note", "it's important to note", "important to remember",
    "it is worth noting", "it's worth noting", "worth mentioning", "please note", "note that",
    "keep in mind", "needless to say", "great question", "good question", "happy to help",
    "glad to help", "i hope this helps", "i hope that helps", "hope this helps", "let me know",
    "feel free", "i'd be happy", "sure thing", "here is", "here are", "here's", "in this response",
    "by the way", "you know", "to be honest", "i would say",
)  # fmt: skip
_FILLER = re.compile(r"\b(?:" + "|".join(sorted(FILLER, key=len, reverse=True)) + r")\b")
# Words that carry no content: sharing them makes no sentence a counterpart of another.
_FUNCTION_WORDS = """
a an the and or but of to in on at by for with from as is are was were be been it its this that
these those which who he she they we you i your their his her our my me them us has have had
will would can could should may might do does did so if then than there here also s t
"""
_EMPTY = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True, slots=True)
class Redundancy:
    """Measures of one text on its own; put side by side for an original and its rewrite."""

    words: int
    distinct_2: float
    repeated_4: float
    compression: float
    filler: int


def redundancy(text: str) -> Redundancy:
    text_words = words(text)
    return Redundancy(
        words=len(text_words),
        distinct_2=distinct_share(text_words, 2),
        repeated_4=1.0 - distinct_share(text_words, 4),
        compression=compression_ratio(text),
        filler=count_filler(text),
    )


def distinct_share(text_words: list[str], n: int) -> float:
    """Different n-grams over all n-grams; 1 for a text too short to have any."""
    grams = [tuple(text_words[i : i + n]) for i in range(len(text_words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def compression_ratio(text: str) -> float:
    """zlib's size over the text's own: low where a text repeats itself, above 1 for short ones."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(zlib.compress(raw, 9)) / len(raw) if raw else 1.0


def count_filler(text: str) -> int:
    return len(_FILLER.findall(plain(text)))


def length_ratio(original: str, rewrite: str) -> float:
    """Words of the rewrite per word of the original."""
    return len(words(rewrite)) / max(1, len(words(original)))


def unsupported_share(original: str, rewrite: str, prompt: str) -> float:
    """Share of the rewrite's sentences of which less than half the content words occur in the
    original or the prompt."""
    known = set(words(original)) | set(words(prompt))
    contents = [set(words(sentence)) - _EMPTY for sentence in sentences(rewrite)]
    contents = [content for content in contents if content]
    unsupported = sum(2 * len(content & known) < len(content) for content in contents)
    return unsupported / len(contents) if contents else 0.0
