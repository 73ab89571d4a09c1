"""Names in a text, found by their capitals, without a dictionary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fedsdr.text.words import plain, without_code

_TOKEN = re.compile(r"(?<!\w)[^\W\d_]\w*(?:[-'\u2019]\w+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")
# Between two words: what ends a sentence, opens a line, a quotation or a value.
_BREAK = re.compile(
    r"[.!?][\"'\u201d\u2019)\]*]*\s|[:;|=\n\"\u201c\u201d()\[\]{}•]|\s[-\u2013\u2014]+\s|\*\*"
)
_TITLE = re.compile(r"^(?:Mr|Mrs|Ms|Dr|Prof|St|[A-Z])$")
_LABEL_END = re.compile(r"[\"'\u201d\u2019)*_]*\s*:")
_HEADING = re.compile(r"^[ \t]*\#{1,6}[ \t]", re.MULTILINE)
# Capitalised by position or convention, never names.
_COMMON_WORDS = """
i i'm i've i'd i'll a an the this that these those there here it its it's he she they we you my
your his her their our and or but nor so yet if when while where why how what which who whose
whom as at by for from in into of on onto to with without within about above after before
because since until although though despite during between among through over under once also
additionally furthermore moreover however therefore thus hence overall finally first second
third next then later lastly instead meanwhile both each every all any some many most more few
several such other another one two three four five six seven eight nine ten is are was were be
been being am do does did has have had will would can could shall should may might must not no
never none yes sure okay ok please thank thanks dear hello hi true false let let's explanation
note answer question example input output step steps part final
"""
_COMMON = frozenset(_COMMON_WORDS.split())
_JOINTS = frozenset(("of", "the", "and", "de", "la", "du", "von", "van", "der", "di", "da", "le"))


@dataclass(frozen=True, slots=True)
class _Word:
    text: str
    capital: bool
    weak: bool  # capitalised by its position, perhaps
    joined: bool  # follows the word before it within one segment


def names(text: str, context: str = "", nouns_too: bool = False) -> frozenset[str]:
    """Runs of capitalised words, case folded.

    The first word of a sentence, a label or a heading counts only where the text or `context` has
    the same word capitalised inside a sentence: "Velorin" does where the prompt asks about Velorin,
    "Technology" in "Technology enables it." does not. So the other way round, a name that only
    ever begins sentences is not seen. Where a language writes its nouns with capitals too
    (`nouns_too`), only runs of two and more words count, and words such as BASF.
    """
    here = list(_words_of(text))
    certain = {_fold(w.text) for w in here if w.capital and not w.weak}
    certain |= {_fold(w.text) for w in _words_of(context) if w.capital and not w.weak}
    runs: set[str] = set()
    run: list[str] = []
    sure = False  # that the run is a name even where nouns have capitals

    def close() -> None:
        if run and (not nouns_too or len(run) > 1 or sure):
            runs.add(" ".join(run))
        run.clear()

    for word in here:
        folded = _fold(word.text)
        counts = word.capital and folded not in _COMMON and folded in certain
        if not (counts and word.joined):
            close()
            sure = False
        if counts:
            run.append(folded)
            sure = sure or any(letter.isupper() for letter in word.text[1:])
    close()
    return frozenset(runs)


def _words_of(text: str) -> Iterator[_Word]:
    for segment, label in _segments(_HEADING.sub("\n# ", without_code(text))):
        capital = [token[0][:1].isupper() for token in segment]
        name_like = all(
            upper or token[0].casefold() in _JOINTS
            for token, upper in zip(segment, capital, strict=True)
        )
        for at, (token, joined) in enumerate(segment):
            weak = label if name_like else at == 0
            yield _Word(token, capital[at], weak, joined)


def _segments(text: str) -> Iterator[tuple[list[tuple[str, bool]], bool]]:
    """Stretches between breaks as (word, joined to the one before), and whether each is a label."""
    segment: list[tuple[str, bool]] = []
    heading = False
    end = 0
    for token in _TOKEN.finditer(text):
        gap = text[end : token.start()]
        titled = bool(segment) and gap == ". " and _TITLE.match(segment[-1][0]) is not None
        if segment and _BREAK.search(gap) and not titled:
            yield segment, heading or _LABEL_END.match(gap) is not None
            segment = []
        if not segment:
            heading = "#" in gap
        segment.append((token.group(), bool(segment) and (titled or gap.isspace())))
        end = token.end()
    if segment:
        yield segment, heading or _LABEL_END.match(text[end:]) is not None


def _fold(token: str) -> str:
    return plain(_POSSESSIVE.sub("", token))
