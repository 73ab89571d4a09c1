"""What a text states that can be compared without a model: numbers, dates, names, negations.

A false alarm is harmless in training: the example keeps its original response.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from fedsdr.distill.names import names
from fedsdr.distill.words import plain, without_list_marks, words

_NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)(?P<sign>(?<![)\]%])[-\u2212](?=[$€£]?\.?[0-9]))?[$€£]?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,]*[0-9])|[0-9]+|(?=\.[0-9]))"
    r"(?P<decimals>\.[0-9]+)?(?P<percent>\s?%|\s?per\s?cent\b)?"
    r"(?P<unit>[A-Za-z]{1,3}\b)?(?!\w|\.[0-9])"
)
_MONTH_NAMES = """
January February March April May June July August September October November December
"""
_MONTHS = {name[:3]: number for number, name in enumerate(_MONTH_NAMES.split(), 1)}
_MONTH = rf"(?P<month>(?:{'|'.join((*_MONTH_NAMES.split(), *_MONTHS, 'Sept'))})\b\.?)"
_DATE_FORMS = tuple(
    re.compile(form)
    for form in (
        r"\b(?P<year>\d{4})-(?P<monthnumber>\d{1,2})-(?P<day>\d{1,2})\b",
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH}(?:,? (?P<year>\d{{4}}))?\b",
        rf"\b{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (?P<year>\d{{4}})\b)?",
        rf"\b{_MONTH},? (?P<year>\d{{4}})\b",
        r"\b(?P<slashed>\d{1,2}[/.]\d{1,2}[/.]\d{4})\b",
    )
)
_NEGATION = re.compile(
    r"\b(?:not(?! only\b)|no|never|none|nor|neither|nobody|nothing|nowhere|cannot|without)\b|n't\b"
)
_UNIT_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
"""
_TENS_WORDS = """
twenty thirty forty fifty sixty seventy eighty ninety
"""
_ORDINAL_WORDS = """
first second third fourth fifth sixth seventh eighth ninth tenth
"""
_UNITS, _TENS, _ORDINALS = (
    {word: value for value, word in enumerate(listed.split(), start)}
    for listed, start in ((_UNIT_WORDS, 0), (_TENS_WORDS, 2), (_ORDINAL_WORDS, 1))
)
_SPELLED = (
    _UNITS
    | {word: 10 * tens for word, tens in _TENS.items()}
    | _ORDINALS
    | {"once": 1, "twice": 2, "dozen": 12, "hundred": 100, "thousand": 1000}
)


@dataclass(frozen=True, slots=True)
class FactDifference:
    """What a rewrite lost of its original; what it says that neither that nor the prompt says."""

    numbers_lost: tuple[str, ...]
    numbers_invented: tuple[str, ...]
    names_lost: tuple[str, ...]
    names_invented: tuple[str, ...]
    dates_lost: tuple[str, ...]
    dates_invented: tuple[str, ...]
    negation_lost: bool
    negation_invented: bool

    @property
    def reasons(self) -> tuple[str, ...]:
        found = {
            "lost-number": self.numbers_lost,
            "invented-number": self.numbers_invented,
            "lost-name": self.names_lost,
            "invented-name": self.names_invented,
            "lost-date": self.dates_lost,
            "invented-date": self.dates_invented,
            "lost-negation": self.negation_lost,
            "invented-negation": self.negation_invented,
        }
        return tuple(reason for reason, what in found.items() if what)


def compare_facts(original: str, rewrite: str, prompt: str) -> FactDifference:
    """A fact is lost by what the original says alone (a prompt that offers two names excuses no
    swap); what the prompt says is not invented."""
    source = f"{prompt}\n{original}"
    return FactDifference(
        numbers_lost=_missing(numbers(original), _number_forms(rewrite)),
        numbers_invented=_missing(numbers(rewrite), _number_forms(source)),
        names_lost=_unsaid(_names(original, f"{prompt}\n{rewrite}"), rewrite),
        names_invented=_unsaid(_names(rewrite, source), source),
        dates_lost=_missing(dates(original), dates(rewrite)),
        dates_invented=_missing(dates(rewrite), dates(source)),
        negation_lost=negations(original) > 0 and negations(rewrite) == 0,
        negation_invented=negations(source) == 0 and negations(rewrite) > 0,
    )


def numbers(text: str) -> frozenset[str]:
    """Normalised numbers outside dates, identifiers and list marks: `1,000.0` gives `1000`."""
    return frozenset(_in_order(text))


def last_number(text: str) -> str | None:
    found = _in_order(text)
    return found[-1] if found else None


def dates(text: str) -> frozenset[str]:
    """`12 March 2021`, `March 12, 2021` and `2021-03-12` are one date.

    `12/03/2021` stays as written: countries read it differently. A year alone is a number.
    """
    return frozenset(_split_dates(text)[0])


def negations(text: str) -> int:
    return len(_NEGATION.findall(plain(text)))


def _names(text: str, context: str) -> frozenset[str]:
    return names(_split_dates(text)[1], context)


def _in_order(text: str) -> list[str]:
    undated = without_list_marks(_split_dates(text)[1])
    found: list[str] = []
    for match in _NUMBER.finditer(undated):
        whole = match["digits"].replace(",", "").lstrip("0") or "0"
        decimals = (match["decimals"] or "").rstrip("0").rstrip(".")
        sign = "-" if match["sign"] and whole + decimals != "0" else ""
        found.append(sign + whole + decimals + ("%" if match["percent"] else ""))
    return found


def _split_dates(text: str) -> tuple[list[str], str]:
    """The dates, normalised, and the text without them."""
    found: list[str] = []

    def take(match: re.Match[str]) -> str:
        part = match.groupdict()
        if slashed := part.get("slashed"):
            found.append("/".join(str(int(p)) for p in re.split("[/.]", slashed)))
            return " ; "
        month = part.get("month")
        number = _MONTHS[month[:3]] if month else int(part["monthnumber"] or 0)
        day = part.get("day")
        found.append(
            f"{part.get('year') or '?'}-{number:02d}" + (f"-{int(day):02d}" if day else "")
        )
        return " ; "

    for form in _DATE_FORMS:
        text = form.sub(take, text)
    return found, text


def _number_forms(text: str) -> frozenset[str]:
    """The numbers a text says in any form: digits, parts of dates, words (`twenty-five`)."""
    said = words(text)
    spelled = [_SPELLED[word] for word in said if word in _SPELLED]
    spelled += [
        10 * _TENS[tens] + _UNITS[unit]
        for tens, unit in pairwise(said)
        if tens in _TENS and 0 < _UNITS.get(unit, 0) < 10
    ]
    parts = [int(part) for date in dates(text) for part in re.findall(r"\d+", date)]
    return numbers(text) | {str(value) for value in (*spelled, *parts)}


def _missing(wanted: frozenset[str], there: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(wanted - there))


def _unsaid(wanted: frozenset[str], text: str) -> tuple[str, ...]:
    said = set(words(text))
    return tuple(sorted(name for name in wanted if not said.issuperset(words(name))))
