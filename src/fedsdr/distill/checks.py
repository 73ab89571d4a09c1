"""What disqualifies a rewrite: a leak of the prompt, truncation, a lost answer, changed facts.

Each check returns reasons: short stable keys which hold no text of the record.

What a rewrite adds without saying more: length, repetition, filler, unsupported sentences.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from fedsdr.text.checkable import call, calls, keeps_final_answer, looks_like_code
from fedsdr.text.facts import compare_facts
from fedsdr.text.languages import language, language_of
from fedsdr.text.names import is_list_item, plain, sentences, words
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
# The same in other languages; without word borders, which Chinese has not.
FOREIGN_LEAKS: tuple[str, ...] = (
    "referenzantwort",
    "in eigenen worten",
    "in deinen eigenen worten",
    "in meinen eigenen worten",
    "ursprüngliche antwort",
    "umformulierte antwort",
    "réponse de référence",
    "avec mes propres mots",
    "avec vos propres mots",
    "réponse reformulée",
    "respuesta de referencia",
    "con mis propias palabras",
    "con tus propias palabras",
    "respuesta reescrita",
    "参考答案",
    "用自己的话",
    "用我自己的话",
    "改写后的",
    "原始答案",
)
# Talk about the exercise itself, as models add it behind an answer that must stand alone.
_ABOUT_THE_TASK = re.compile(
    r"\b(?:end of (?:response|task|answer)|(?:provided|given) instruction\b|the instruction asks"
    r"|i hope (?:this|it) is correct|if (?:the|my|this) response is correct"
    r"|as (?:per the|the) instruction|(?:the|my|this) response is formatted as)"
)
_REFUSAL = re.compile(
    r"\b(?:i'?m (?:sorry|afraid),? (?:but )?(?:i|as an)"
    r"|i (?:can(?:no|')t|am (?:not able|unable) to) "
    r"(?:help|assist|provide|answer|comply|fulfill|satisfy|create|write|generate|rewrite|do that)"
    r"|i apologi[sz]e,? but i"
    r"|as an? (?:\w+ ){0,2}(?:ai|language model)(?=[,.]| language| model| assistant)|i'm just an ai"
    r"|es tut mir leid,? (?:aber )?ich|ich kann (?:dir |ihnen )?(?:dabei |leider )?nicht"
    r"|als (?:ki|sprachmodell)\b|je suis désolée?,? mais je|je ne peux pas"
    r"|en tant qu'(?:ia|intelligence|modèle)|lo siento,? (?:pero )?no puedo|no puedo ayudar"
    r"|como (?:una )?(?:ia|inteligencia artificial|modelo de lenguaje))\b"
    r"|(?:抱歉|对不起)[，,]?我|我(?:无法|不能)(?:提供|回答|帮助|协助)"
    r"|作为(?:一个|一名)?(?:ai|人工智能|语言模型)"
)
_REFUSAL_STANDS_WITHIN = 200  # characters from the start
_LEAKS = tuple((phrase, re.compile(rf"\b{re.escape(phrase)}\b")) for phrase in LEAK_PHRASES)
_DANGLING = re.compile(r"[,:(\[{\uff0c\u3001\uff1a\uff08]$")
_LAST_WORD = re.compile(r"(?<![\w'\u2019-])\w+$")
_ENDED = re.compile(r"[.!?…:;\u3002\uff01\uff1f\u0964][\"'\u201d\u2019\u300d)\]*_`]*$")
_FRAGMENT = 5  # words: a shorter last line may be a name or an item of a list


def surface_reasons(original: str, rewrite: str, hit_limit: bool) -> tuple[str, ...]:
    """Empty, leaking or truncated; with `lost_answer`, the SDFT code's filter.

    A phrase that the original itself uses is no leak, and an end like its own no cut.
    """
    if not rewrite.strip():
        return ("empty",)
    leaked = [phrase for phrase in leaks(rewrite) if phrase not in leaks(original)]
    cut = hit_limit or (is_truncated(rewrite) and not is_truncated(original))
    return (*(f"leak:{phrase}" for phrase in leaked), *(("truncated",) if cut else ()))


def fact_reasons(example: Example, rewrite: str) -> tuple[str, ...]:
    """Numbers, names, dates or negations lost or invented, or the one word of the answer gone."""
    difference = compare_facts(example.response, rewrite, prompt_text(example))
    answer_words = words(example.response)
    gone = len(answer_words) == 1 and answer_words[0] not in words(rewrite)
    return (*difference.reasons, *(("lost-label",) if gone else ()))


def prompt_text(example: Example) -> str:
    """All that the model was told before it answers."""
    return "\n".join((example.system, *(m.content for m in example.history), example.prompt))


def leaks(text: str) -> tuple[str, ...]:
    """The phrases by which a text speaks of the rewriting prompt."""
    flat = " ".join(plain(text).split())
    return (
        *(phrase for phrase, pattern in _LEAKS if pattern.search(flat)),
        *(phrase for phrase in FOREIGN_LEAKS if phrase in flat),
    )


def refuses(text: str) -> bool:
    """Whether it begins with a refusal, or with being a mere program."""
    return _REFUSAL.search(plain(text[:_REFUSAL_STANDS_WITHIN])) is not None


def behaviour_reasons(original: str, rewrite: str) -> tuple[str, ...]:
    """Refusing, talking about the exercise, or stopping within a sentence, where the original did
    none of it."""
    faults = {
        "refusal": refuses(rewrite) and not refuses(original),
        "about-the-task": bool(
            _ABOUT_THE_TASK.search(plain(rewrite)) and not _ABOUT_THE_TASK.search(plain(original))
        ),
        "truncated": _ENDED.search(original.rstrip()) is not None and stops_within(rewrite),
    }
    return tuple(reason for reason, there in faults.items() if there)


def stops_within(text: str) -> bool:
    """Whether the last line stops within a sentence: not where code, or a list without full stops,
    or a signature ends."""
    if looks_like_code(text):
        return False
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or _ENDED.search(lines[-1].rstrip()):
        return False
    last = sentences(lines[-1])
    if len(last) > 1 and not is_list_item(lines[-1]):
        return bool(re.search(r"\w$", last[-1]))  # a sentence ended before it in the same line
    unfinished = re.search(r"[\w,]$", lines[-1].rstrip()) is not None
    alike = len(lines) > 1 and not _ENDED.search(lines[-2].rstrip()) and ":" not in lines[-2][-1]
    return unfinished and not alike and len(words(lines[-1])) >= _FRAGMENT


def is_truncated(text: str, hit_limit: bool = False) -> bool:
    """Cut off by the token limit, inside a code fence, or with a sentence left hanging."""
    if hit_limit or text.count("```") % 2 == 1:
        return True
    end = text.rstrip()
    last = _LAST_WORD.search(end)
    hangs = _DANGLING.search(end) is not None or (
        last is not None and last[0] in language(language_of(text)).dangling
    )
    return hangs and not looks_like_code(text)


def lost_answer(original: str, rewrite: str) -> tuple[str, ...]:
    """Which checkable answers of the original the rewrite no longer gives."""
    asked = call(original)
    if asked is not None:
        return () if any(asked in given for given in calls(rewrite)) else ("lost-call",)
    if looks_like_code(original):
        return () if looks_like_code(rewrite) else ("lost-code",)
    return () if keeps_final_answer(original, rewrite) else ("lost-answer",)


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
