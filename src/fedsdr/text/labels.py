"""Answers out of a few: option letters, labels, yes and no."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedsdr.text.checkable import final_answer, marked_answer
from fedsdr.text.languages import LANGUAGES, language, language_of, negations
from fedsdr.text.names import SPACELESS, mentions, plain, sentences, words

_LONGEST_LABEL = 3  # words; one less with a full stop, for "Ada built it." is a statement
_LONGEST_SPACELESS = 6  # characters
_STOP = re.compile(r"[.!?\u3002\uff01\uff1f][\"'\u201d]*\s*$")
_QUOTES = re.compile(r"[\"'\u201c\u201d\u2018\u2019\u300c\u300d]")
_LISTED = re.compile(
    r"\b\w+(?:\s*(?:,|/|\||\u3001)\s*(?:(?:and|or|und|oder|et|ou|y|o)\s+)?\w+"
    r"|\s*[或和]\s*\w+|\s+(?:or|oder|ou|o)\s+\w+)+"
)
_OPTION_LINE = re.compile(r"^[ \t]*\(?([A-J])[).:\uff1a\u3001][ \t]*(\S[^\n]*)$", re.MULTILINE)
_OPTION_INLINE = re.compile(r"\(([A-J])\)[ \t]*([^()\n]+?)(?=[ \t]*(?:\([A-J]\)|\n|$))")
_OPENING_LETTER = re.compile(r"\s*\(?([A-J])(?:[).:\uff1a\u3001]|\s*$)")
_LETTER = re.compile(r"\(([A-J])\)|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer(?: is)?:?)\s+\(?([A-J])\b")


def option_reasons(original: str, rewrite: str, prompt: str) -> tuple[str, ...] | None:
    """Whether the chosen option survives, by letter or by text; None where none was chosen."""
    options = dict(_OPTION_INLINE.findall(prompt)) | dict(_OPTION_LINE.findall(prompt))
    chosen = _letter(original, options)
    if chosen is None or (options and chosen not in options):
        return None
    given = _letter(rewrite, options)
    if given is not None:
        return () if given == chosen else ("lost-option",)
    named = {a or b for a, b in _LETTER.findall(rewrite)}
    if not named:
        named = {letter for letter, text in options.items() if mentions(rewrite, text)}
        # "Oslo" also stands in "Oslo and Bergen": the longest one that is said counts.
        named -= {k for k in named for other in named - {k} if mentions(options[other], options[k])}
    if not named and not options:
        named = set(re.findall(rf"(?<!\w){chosen}(?=[).:,]|\s*$)", rewrite))
    return () if named == {chosen} else ("lost-option",)


def is_label(text: str) -> bool:
    """A word or two that answer all by themselves."""
    text_words = words(text)
    if "\n" in text.strip():
        return False
    short = sum(re.fullmatch(rf"[{SPACELESS}]", word) is not None for word in text_words)
    most = _LONGEST_SPACELESS if short == len(text_words) else _LONGEST_LABEL
    most -= _STOP.search(text) is not None
    return 0 < len(text_words) <= most and not any(word.isdigit() for word in text_words)


def label_reasons(original: str, rewrite: str, prompt: str) -> tuple[str, ...]:
    """The label must be said, not denied, and before any other of those offered."""
    if not mentions(rewrite, original):
        return ("lost-label",)
    marked = marked_answer(rewrite)
    if marked is not None and len(marked) > 1:
        return () if mentions(marked, original) else ("lost-label",)
    others = _offered(prompt, original)
    first = next(
        s
        for s in [*sentences(rewrite), rewrite]
        if any(mentions(s, x) for x in (original, *others))
    )
    if any(mentions(first, other) for other in others):
        return ("lost-label",)
    return ("lost-label",) if _denied(first, original) else ()


def turned_round(original: str, rewrite: str) -> bool:
    """An answer that begins with yes and now begins with no, or the other way."""
    before, after = _yes_or_no(original), _yes_or_no(rewrite)
    return before is not None and after is not None and before != after


def _letter(text: str, options: Mapping[str, str]) -> str | None:
    """The option that a text commits to, marks by its letter, or says word for word."""
    answer = final_answer(text)
    if answer is not None and len(answer) == 1 and answer.isupper():
        return answer
    match = _OPENING_LETTER.match(text)
    if match and match[1] in options and "\n" not in text.strip():
        return match[1]
    return next((k for k, option in options.items() if words(option) == words(text)), None)


def _offered(prompt: str, label: str) -> set[str]:
    """The other members of the first list in the prompt that holds the label."""
    for listed in _LISTED.finditer(_QUOTES.sub("", prompt)):
        members = {
            part.strip()
            for part in re.split(
                r"\s*[,/|\u3001]\s*(?:(?:and|or|und|oder|et|ou|y|o)\s+)?|\s*[或和]\s*"
                r"|\s+(?:or|oder|ou|o)\s+",
                listed.group(),
            )
        }
        if any(words(member) == words(label) for member in members):
            return {member for member in members if words(member) != words(label)}
    return set()


def _denied(sentence: str, label: str) -> bool:
    spoken = language_of(sentence)
    before, _, _ = plain(sentence).partition(plain(label).strip(" .!\u3002"))
    near = before[-3:] if spoken in ("zh", "ja") else " ".join(before.split()[-2:])
    return negations(near, spoken) > 0 and negations(label, spoken) == 0


def _yes_or_no(text: str) -> int | None:
    first_words = words(text[:40])
    for pair in {language(language_of(text)).yes_no, LANGUAGES["en"].yes_no}:
        for answer, word in enumerate(pair):
            sought = words(word)
            if sought and first_words[: len(sought)] == sought:
                return answer
    return None
