"""Which words of an answer its reference says too, in the same order.

The rewrite viewer compares in the page's script (templates/diff.js): there a comparison is made
when a rewrite is chosen, and needs no room in the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

MOST_WORDS = 600  # of one text; beyond, nothing is marked
_WORD = re.compile(r"[^\W_]+(?:[.,'’-][^\W_]+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    shared: bool


def shared_words(reference: str, answer: str) -> tuple[Piece, ...]:
    """The answer cut into pieces, by whether the reference says them; whatever case it is in."""
    words = list(_WORD.finditer(answer))
    asked = [match.group().casefold() for match in _WORD.finditer(reference)]
    if not words or not asked or max(len(words), len(asked)) > MOST_WORDS:
        return (Piece(answer, False),) if answer else ()
    matcher = SequenceMatcher(None, asked, [match.group().casefold() for match in words])
    pieces: list[Piece] = []
    end = 0
    for block in matcher.get_matching_blocks():
        inside = words[block.b : block.b + block.size]
        # A full stop in common is no agreement.
        if not any(match.group()[0].isalnum() for match in inside):
            continue
        start, stop = inside[0].start(), inside[-1].end()
        pieces += [Piece(answer[end:start], False), Piece(answer[start:stop], True)]
        end = stop
    pieces.append(Piece(answer[end:], False))
    return tuple(piece for piece in pieces if piece.text)


def same_words(one: str, other: str) -> bool:
    """But for case, spaces and signs."""
    return _plain(one) == _plain(other)


def _plain(text: str) -> list[str]:
    return [w for match in _WORD.finditer(text) if (w := match.group().casefold())[0].isalnum()]
