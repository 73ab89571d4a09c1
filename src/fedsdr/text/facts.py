"""What a text states that can be compared without a model: numbers, dates, names, negations.

A false alarm is harmless in training: the example keeps its original response.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from fedsdr.text.languages import language, language_of, negations
from fedsdr.text.names import SPACELESS, names, without_list_marks, words

_SPACES = "\u00a0\u202f\u2009"  # between groups of three digits, as in French
# Signs and units around the digits; `digits` and `decimals` are filled in per convention.
_NUMBER = (
    r"(?<![\w.])(?<![A-Za-z]-)(?P<sign>(?<![)\]%])[-\u2212](?=[$€£¥]?\.?[0-9]))?[$€£¥]?"
    r"(?P<digits>{whole}|[0-9]+|(?=\.[0-9]))(?P<decimals>{decimals})?"
    r"(?P<percent>\s?%|\s?per\s?cent\b|\s?Prozent\b|\s?pour\s?cent\b|\s?por\s?ciento\b)?"
    r"(?P<unit>[A-Za-z]{{1,3}}\b)?(?!\w|\.[0-9])"
)
_POINT = re.compile(
    _NUMBER.format(
        whole=rf"[0-9]{{1,3}}(?:(?:,[0-9]{{3}})+|(?:['\u2019{_SPACES}][0-9]{{3}})+)(?![0-9,]*[0-9])",
        decimals=r"\.[0-9]+",
    )
)
_COMMA = re.compile(
    _NUMBER.format(
        whole=rf"[0-9]{{1,3}}(?:(?:\.[0-9]{{3}})+|(?:['\u2019{_SPACES}][0-9]{{3}})+)(?![0-9.]*[0-9])",
        decimals=r",[0-9]+|\.[0-9]{1,2}(?![0-9])",
    )
)
# What only one convention can mean.
_SURELY_COMMA = re.compile(rf"(?<![\w.,])[0-9]{{1,3}}(?:[.{_SPACES}][0-9]{{3}})+,[0-9]+(?![\w,])")
_SURELY_POINT = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]+(?!\w)")
_EAST_ASIAN = re.compile(rf"([{SPACELESS}])")
_FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}
_MONTH_NAMES = {
    "January Januar Jänner janvier enero": 1,
    "February Februar février febrero": 2,
    "March März mars marzo": 3,
    "April avril abril": 4,
    "May Mai mayo": 5,
    "June Juni juin junio": 6,
    "July Juli juillet julio": 7,
    "August août agosto": 8,
    "September septembre septiembre setiembre Sept": 9,
    "October Oktober octobre octubre": 10,
    "November novembre noviembre": 11,
    "December Dezember décembre diciembre": 12,
}
_MONTHS = {
    name: number
    for listed, number in _MONTH_NAMES.items()
    for name in (*listed.split(), listed[:3])
}
_MONTH = rf"(?P<month>(?:{'|'.join(sorted(_MONTHS, key=len, reverse=True))})\b\.?)"
_DATE_FORMS = tuple(
    re.compile(form)
    for form in (
        r"(?P<year>\d{4})\s?[年년]\s?(?P<monthnumber>\d{1,2})\s?[月월](?:\s?(?P<day>\d{1,2})\s?[日号일])?",
        r"(?<!\d)(?P<monthnumber>\d{1,2})\s?[月월]\s?(?P<day>\d{1,2})\s?[日号일]",
        r"\b(?P<year>\d{4})-(?P<monthnumber>\d{1,2})-(?P<day>\d{1,2})\b",
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th|er|\.)?(?: of| de)? {_MONTH}"
        r"(?:(?:,| de| del)? (?P<year>\d{4}))?\b",
        rf"\b{_MONTH} (?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (?P<year>\d{{4}})\b)?",
        rf"\b{_MONTH}(?:,| de)? (?P<year>\d{{4}})\b",
        r"\b(?P<slashed>\d{1,2}[/.]\d{1,2}[/.]\d{4})\b",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
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
        differences = {
            "lost-number": self.numbers_lost,
            "invented-number": self.numbers_invented,
            "lost-name": self.names_lost,
            "invented-name": self.names_invented,
            "lost-date": self.dates_lost,
            "invented-date": self.dates_invented,
            "lost-negation": self.negation_lost,
            "invented-negation": self.negation_invented,
        }
        return tuple(reason for reason, what in differences.items() if what)


def compare_facts(original: str, rewrite: str, prompt: str) -> FactDifference:
    """A fact is lost by what the original says alone (a prompt that offers two names excuses no
    swap); what the prompt says is not invented."""
    source = f"{prompt}\n{original}"
    # A short answer is in the language of its question.
    language_before = language_of(original) or language_of(source)
    language_after = language_of(rewrite) or language_before
    lost, invented = (
        _names(original, f"{prompt}\n{rewrite}", language_before),
        _names(rewrite, source, language_after),
    )
    return FactDifference(
        numbers_lost=_missing(
            numbers(original, language_before), _number_forms(rewrite, language_after)
        ),
        numbers_invented=_missing(
            numbers(rewrite, language_after),
            _number_forms(prompt, language_of(prompt) or language_before)
            | _number_forms(original, language_before),
        ),
        names_lost=_unsaid(lost, rewrite),
        names_invented=_unsaid(invented, source),
        dates_lost=_missing(dates(original), dates(rewrite)),
        dates_invented=_missing(dates(rewrite), dates(source)),
        negation_lost=negations(original, language_before) > 0
        and negations(rewrite, language_after) == 0,
        negation_invented=(
            negations(original, language_before)
            + negations(prompt, language_of(prompt) or language_before)
            == 0
            and negations(rewrite, language_after) > 0
        ),
    )


def numbers(text: str, spoken: str = "") -> frozenset[str]:
    """Normalised numbers outside dates, identifiers and list marks: `1,000.0` gives `1000`, and so
    does `1.000,0`. Where both readings are possible, the language decides."""
    return frozenset(_in_order(text, spoken))


def last_number(text: str, spoken: str = "") -> str | None:
    values = _in_order(text, spoken)
    return values[-1] if values else None


def dates(text: str) -> frozenset[str]:
    """`12 March 2021`, `March 12, 2021` and `2021-03-12` are one date.

    `12/03/2021` stays as written: countries read it differently. A year alone is a number.
    """
    return frozenset(_split_dates(text)[0])


def _names(text: str, context: str, spoken: str) -> frozenset[str]:
    return names(_split_dates(text)[1], context, language(spoken).capital_nouns)


def _in_order(text: str, spoken: str = "") -> list[str]:
    text = text.translate(_FULL_WIDTH)
    if _SURELY_POINT.search(text):
        number = _POINT
    elif _SURELY_COMMA.search(text) or language(spoken or language_of(text)).decimal_comma:
        number = _COMMA
    else:
        number = _POINT
    # A character of these scripts is a word of its own: it may stand beside a number.
    undated = _EAST_ASIAN.sub(r" \1 ", without_list_marks(_split_dates(text)[1]))
    values: list[str] = []
    for match in number.finditer(undated):
        whole = re.sub(r"\D", "", match["digits"]).lstrip("0") or "0"
        decimals = (match["decimals"] or "").replace(",", ".").rstrip("0").rstrip(".")
        sign = "-" if match["sign"] and whole + decimals != "0" else ""
        values.append(sign + whole + decimals + ("%" if match["percent"] else ""))
    return values


@lru_cache(maxsize=64)  # of one example, the same few texts again and again
def _split_dates(text: str) -> tuple[tuple[str, ...], str]:
    """The dates, normalised, and the text without them."""
    normalised: list[str] = []

    def take(match: re.Match[str]) -> str:
        part = match.groupdict()
        if slashed := part.get("slashed"):
            normalised.append("/".join(str(int(p)) for p in re.split("[/.]", slashed)))
            return " ; "
        month = part.get("month")
        number = _MONTHS[month.rstrip(".")] if month else int(part["monthnumber"] or 0)
        day = part.get("day")
        normalised.append(
            f"{part.get('year') or '?'}-{number:02d}" + (f"-{int(day):02d}" if day else "")
        )
        return " ; "

    if not any(char.isdigit() for char in text):
        return (), text
    for form in _DATE_FORMS:
        text = form.sub(take, text)
    return tuple(normalised), text


def _number_forms(text: str, spoken: str) -> frozenset[str]:
    """The numbers a text says in any form: digits, parts of dates, words (`twenty-five`)."""
    text_words, known = words(text), language(spoken).numbers
    spelled = [known[word] for word in text_words if word in known]
    spelled += [
        known[tens] + known[unit]
        for tens, unit in pairwise(text_words)
        if 20 <= known.get(tens, 0) < 100 and 0 < known.get(unit, 0) < 10
    ]
    parts = [int(part) for date in dates(text) for part in re.findall(r"\d+", date)]
    return numbers(text, spoken) | {str(value) for value in (*spelled, *parts)}


def _missing(wanted: frozenset[str], there: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(wanted - there))


def _unsaid(wanted: frozenset[str], text: str) -> tuple[str, ...]:
    text_words = set(words(text))
    return tuple(sorted(name for name in wanted if not text_words.issuperset(words(name))))
