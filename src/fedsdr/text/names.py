"""Names in a text, found by their capitals, without a dictionary.

How the checks and measures cut a text into words and sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Scripts written without spaces count one character as one word, so that lengths stay comparable:
# Thai to Lao, Burmese, Khmer; Chinese and Japanese.
SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Marks that Python's \w leaves out, and that would cut a word: accents, Hebrew and Arabic points,
# the vowel signs of India.
_MARKS = (
    "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0980-\u0dff"
)
_WORD = re.compile(rf"[{SPACELESS}]|[^\W_{SPACELESS}](?:[^\W_{SPACELESS}]|[{_MARKS}])*")
_SENTENCE_END = re.compile(
    r"(?<=[.!?\u0964])[\"'\u201d\u2019)\]*]*\s+|(?<=[\u3002\uff01\uff1f])|\n+"
)
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e)|\b[A-Z])\.$")
_LIST_MARK = re.compile(
    r"^[ \t]*(?:[-*•][ \t]+|#+[ \t]+|\(?\d{1,2}[.)]+[ \t]+"
    r"|[(\uff08]?\d{1,2}[\u3001\uff0e\uff09]\s*)(?=\S)",
    re.MULTILINE,
)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)


def plain(text: str) -> str:
    """Case folded, with straight apostrophes."""
    return text.casefold().replace("\u2019", "'")


def words(text: str) -> list[str]:
    """Runs of letters and digits, case folded: `"Don't"` gives `["don", "t"]`."""
    return _WORD.findall(text.casefold())


def sentences(text: str) -> list[str]:
    """Sentences and lines, without list marks; `Dr. Goodall` does not end one."""
    unmarked = without_list_marks(text)
    pieces: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(unmarked):
        if "\n" not in end.group() and _ABBREVIATION.search(unmarked[start : end.start()][-6:]):
            continue
        pieces.append(unmarked[start : end.start()].strip())
        start = end.end()
    pieces.append(unmarked[start:].strip())
    return [piece for piece in pieces if words(piece)]


def without_list_marks(text: str) -> str:
    """`"2. Wash it"` gives `"Wash it"`: the number of an item is no statement."""
    return _LIST_MARK.sub("", text)


def is_list_item(line: str) -> bool:
    return _LIST_MARK.match(line) is not None


def code_blocks(text: str) -> tuple[str, ...]:
    """The contents of the closed code fences."""
    return tuple(_FENCE.findall(text))


def without_code(text: str) -> str:
    return _FENCE.sub("\n", text)


def mentions(text: str, phrase: str) -> bool:
    """Whether the phrase's words stand in the text one after another."""
    sought, text_words = words(phrase), words(text)
    return bool(sought) and any(
        text_words[at : at + len(sought)] == sought
        for at in range(len(text_words) - len(sought) + 1)
    )


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
