"""What rewriting did to answers: kinds of damage, in counts and words, without any text.

Which words of an answer its reference says too, in the same order.

The rewrite viewer compares in the page's script (templates/diff.js): there a comparison is made
when a rewrite is chosen, and needs no room in the page.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import median
from typing import Any

from fedsdr.report.record import natural, number

FAITHFUL = "faithful"  # the exact verdict where there is nothing to complain of
TOO_LONG = 2.0  # words of the rewrite per word of the raw answer

# In the order of gravity; the words are those of the page.
KINDS: Mapping[str, str] = {
    "number-invented": "number invented",
    "number-lost": "number lost",
    "name-invented": "name invented",
    "name-lost": "name lost",
    "date": "date changed",
    "negation": "negation changed",
    "answer": "answer lost",
    "meaning": "meaning changed",
    "language": "language changed",
    "leak": "speaks of its prompt",
    "refusal": "refuses",
    "truncated": "truncated",
    "empty": "empty",
    "too-long": "over twice as long",
}
# What only a check tells: without one, nobody looked for it.
TOLD_BY_CHECKS = ("answer", "meaning", "language", "refusal", "truncated")
_WORDS = {
    "lost-number": "lost a number",
    "invented-number": "invented a number",
    "lost-name": "lost a name",
    "invented-name": "invented a name",
    "lost-date": "lost a date",
    "invented-date": "invented a date",
    "lost-negation": "lost a negation",
    "invented-negation": "invented a negation",
    "lost-label": "lost the label",
    "lost-answer": "lost the final answer",
    "lost-option": "lost the option chosen",
    "lost-call": "lost the function call",
    "other-call": "calls another function",
    "lost-code": "lost the code",
    "lost-function": "lost a function",
    "lost-meaning": "no longer says the same",
    "invented-meaning": "says more than the answer",
    "changed-language": "changed the language",
    "changed-signature": "changed a function's signature",
    "about-the-task": "talks about the exercise",
    "refusal": "refuses",
    "truncated": "breaks off",
    "empty": "is empty",
}

# What a reason ends with that tells of a checkable answer: lost, or another one given.
_ANSWERS = ("-label", "-answer", "-option", "-call", "-code", "-function", "-signature")


@dataclass(frozen=True, slots=True)
class Damage:
    """One rewrite, measured."""

    client: str
    kept: bool
    ratio: float
    kinds: tuple[str, ...]
    verdict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDamage:
    """Counts over all rewrites of a client: as they came, and of those that are trained on."""

    client: str
    rewrites: int
    kept: int
    ratio: float
    written: Mapping[str, int]
    trained: Mapping[str, int]
    judged: int
    faithful: int

    @property
    def fell_back(self) -> int:
        return self.rewrites - self.kept


def damage_of(client: str, row: Mapping[str, Any]) -> Damage:
    """From a row of the audit, of a client's rewrites, or of both put together."""
    verdict = row.get("judged")
    return Damage(
        client=client,
        kept=bool(row.get("kept")),
        ratio=number(row.get("length_ratio")) or 0.0,
        kinds=kinds_of(row),
        verdict=verdict if isinstance(verdict, str) else None,
    )


def kinds_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The kinds found in the rewrite itself; what is only told as a reason for refusing it (which
    speaks of every draft) counts where the row has no field of its own."""
    reasons = {reason.partition(":")[0] for reason in reasons_of(row)}

    def reported(field: str, reason: str) -> bool:
        return bool(row[field]) if field in row else reason in reasons

    present = {
        "number-invented": reported("numbers_invented", "invented-number"),
        "number-lost": reported("numbers_lost", "lost-number"),
        "name-invented": reported("names_invented", "invented-name"),
        "name-lost": reported("names_lost", "lost-name"),
        "date": reported("dates_lost", "lost-date") or reported("dates_invented", "invented-date"),
        "negation": reported("negation_lost", "lost-negation")
        or reported("negation_invented", "invented-negation"),
        "answer": any(reason.endswith(_ANSWERS) for reason in reasons),
        "meaning": any(reason.endswith("-meaning") for reason in reasons),
        "language": "changed-language" in reasons,
        "leak": reported("leaks", "leak") or "about-the-task" in reasons,
        "refusal": "refusal" in reasons,
        "truncated": "truncated" in reasons,
        "empty": "empty" in reasons,
        "too-long": (number(row.get("length_ratio")) or 0.0) > TOO_LONG,
    }
    return tuple(kind for kind in KINDS if present[kind])


def reasons_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row.get("reasons")
    return tuple(str(reason) for reason in given) if isinstance(given, (list, tuple)) else ()


def in_words(reason: str) -> str:
    """`"lost-number"` -> `"lost a number"`; one that nobody here knows keeps its name."""
    name, _, detail = reason.partition(":")
    if name == "leak" and detail:
        return f"says “{detail}”"
    return _WORDS.get(name) or reason.replace("-", " ")


def by_client(measured: Iterable[Damage]) -> list[ClientDamage]:
    held: dict[str, list[Damage]] = {}
    for each in measured:
        held.setdefault(each.client, []).append(each)
    return [totals(client, held[client]) for client in sorted(held, key=natural)]


def totals(name: str, measured: Iterable[Damage]) -> ClientDamage:
    rows = list(measured)

    def counted(chosen: Callable[[Damage], bool]) -> Mapping[str, int]:
        return Counter(kind for row in rows if chosen(row) for kind in row.kinds)

    return ClientDamage(
        client=name,
        rewrites=len(rows),
        kept=sum(row.kept for row in rows),
        ratio=median(row.ratio for row in rows) if rows else 1.0,
        written=counted(lambda row: True),
        trained=counted(lambda row: row.kept),
        judged=sum(row.verdict is not None for row in rows),
        faithful=sum(row.verdict == FAITHFUL for row in rows),
    )


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
