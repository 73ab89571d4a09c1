"""How the checks and measures cut a text into words and sentences."""

from __future__ import annotations

import re

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
