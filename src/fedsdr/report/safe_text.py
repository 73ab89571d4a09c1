"""Text from elsewhere, with every character that hides or misleads made visible."""

from __future__ import annotations

import re

# Controls (but tab and line breaks), soft hyphen, zero width, bidirectional marks and overrides,
# invisible operators, variation selectors, the byte-order mark, interlinear marks, tags, surrogates
# and non-characters, which no encoding takes. Of marks upon one letter, those from the ninth on:
# they would cover the lines around.
MARKS = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
HIDDEN = re.compile(
    f"{MARKS}(?<={MARKS}{{9}})|"
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)
LONGEST_NAME = 200  # characters; fedsdr writes none that long
LONGEST_SENTENCE = 2000


def short(text: object, most: int = LONGEST_NAME) -> str:
    """A name is repeated all over a page: one of a megabyte would fill the memory."""
    name = str(text)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def visible(text: object) -> str:
    """`"a\\u202eb"` -> `"a⟨U+202E⟩b"`. It is not escaped: that is the template's work."""
    # Windows' line ends are line ends.
    return HIDDEN.sub(_named, str(text).replace("\r\n", "\n"))


def _named(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match[0]):04X}⟩"
