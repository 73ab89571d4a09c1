"""How wide words may come out: a figure is drawn before anybody knows the font of its reader.

Of the common fonts (DejaVu Sans, Verdana, Liberation, Arial, Noto, Roboto, Segoe UI) the widest
counts, which is DejaVu Sans for nearly all letters: what fits there fits everywhere.
"""

from __future__ import annotations

import unicodedata
from functools import cache

from fedsdr.report.safe_text import visible

# Widths in units of the size of type, rounded up.
LETTERS = {
    0.3: "'ijl|",
    0.4: " ,.:;I()-/[\\]ft·",
    0.45: "!r",
    0.55: 'cszJ"`',
    0.65: "$0123456789FTabdeghnopquvxykL_?*{}–",
    0.7: "ABEKPSVXYZ",
    0.75: "CRU",
    0.85: "#+<=>^w~&DGHNOQ−×",
    1.0: "MmW—…→",
    1.1: "%@",
}
WIDTHS = {letter: width for width, letters in LETTERS.items() for letter in letters}
BOLD = 1.15  # times as wide
SQUARE = 1.25  # a letter of the East, or an emoji
OTHER = {"Lu": 1.1, "Ll": 0.9}  # and of any other kind the wider


def measured(words: str, size: float = 11, bold: bool = False) -> float:
    """Units of a figure that the words take at most."""
    ems = sum(map(_wide, visible(words)))
    return ems * size * (BOLD if bold else 1.0)


def fitted(words: str, most: float, size: float = 11, bold: bool = False) -> str:
    """As much of a label as fits; the whole of it stands in the tooltip and the table."""
    shown = visible(words)
    if measured(shown, size, bold) <= most:
        return shown
    room = most - measured("…", size, bold)
    end = 0
    while end < len(shown) and (room := room - measured(shown[end], size, bold)) >= 0:
        end += 1
    return f"{shown[:end].rstrip()}…"


@cache
def _wide(letter: str) -> float:
    if letter in WIDTHS:
        return WIDTHS[letter]
    if unicodedata.category(letter) in ("Mn", "Me"):  # upon the letter before
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return SQUARE
    plain = unicodedata.normalize("NFD", letter)[0]  # é is as wide as e
    if plain in WIDTHS:
        return WIDTHS[plain]
    return OTHER.get(unicodedata.category(letter), max(OTHER.values()))
