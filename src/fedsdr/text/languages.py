"""The languages whose numbers, dates and negations the checks know, and how they are told apart.

A language that is not known is treated as English: its words are then simply not found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from fedsdr.text.names import plain, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """`common`: frequent words by which it is told. `dangling`: words that end no sentence."""

    common: frozenset[str]
    negation: re.Pattern[str]
    numbers: Mapping[str, int]
    dangling: frozenset[str]
    yes_no: tuple[str, str]
    decimal_comma: bool = False
    capital_nouns: bool = False


# The checks of one example ask about the same few texts again and again.
@lru_cache(maxsize=64)
def language_of(text: str) -> str:
    """`en`, `de`, `fr`, `es`, `zh`, or nothing where too little tells; `ja` and `ko` by script."""
    letters = len(re.findall(r"[^\W\d_]", text))
    for name, script in _SCRIPTS.items():
        if letters and len(script.findall(text)) > 0.2 * letters:
            return name
    text_words = words(text[:4000])
    hits = {
        name: sum(word in language.common for word in text_words)
        for name, language in LANGUAGES.items()
        if language.common
    }
    first, second = sorted(hits, key=lambda name: -hits[name])[:2]
    return first if hits[first] >= 2 and hits[first] > 1.3 * hits[second] else ""


def language(name: str) -> Language:
    return LANGUAGES.get(name, LANGUAGES["en"])


def negations(text: str, spoken: str = "") -> int:
    """Words and endings that deny, in the language given or found."""
    return len(language(spoken or language_of(text)).negation.findall(plain(text)))


_SCRIPTS = {  # kana before Chinese: Japanese has both
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "zh": re.compile(r"[\u3400-\u9fff]"),
}


def _set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


def _counted(listed: str) -> dict[str, int]:
    """Numbers as words, in order from 0; `/` between spellings of the same."""
    return {word: n for n, each in enumerate(listed.split()) for word in each.split("/")}


_ENGLISH_NUMBERS = (
    _counted(
        "zero one/first/once two/second/twice three/third four/fourth five/fifth six/sixth "
        "seven/seventh eight/eighth nine/ninth ten/tenth eleven twelve/dozen thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty"
    )
    | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80}
    | {"ninety": 90, "hundred": 100, "thousand": 1000}
)  # fmt: skip
LANGUAGES: Mapping[str, Language] = {
    "en": Language(
        common=_set(
"the and of to is are was that it in for with on as this be by you from have not an "
            "which or at"
),
        negation=re.compile(
            r"\b(?:not(?! only\b)|no|never|none|nor|neither|nobody|nothing|nowhere|cannot|without)"
            r"\b|n't\b"
        ),
        numbers=_ENGLISH_NUMBERS,
        dangling=_set("and or the a an of with because which"),
        yes_no=("yes", "no"),
    ),
    "de": Language(
        common=_set(
"der die das und ist nicht ein eine einen von zu mit sich auf für als auch es dem den "
            "des im wird sind werden oder bei nach aus wie durch"
),
        negation=re.compile(
            r"\b(?:nicht(?! nur\b)|kein(?:e[nmrs]?)?|nie(?:mals|mand\w*)?|nichts|nirgends|weder"
            r"|ohne|nein)\b"
        ),
        numbers=_counted(
            "null ein/eins/eine/einen/einem/einer zwei drei vier fünf sechs sieben acht neun zehn "
            "elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn zwanzig"
        ) | {"dreißig": 30, "vierzig": 40, "fünfzig": 50, "hundert": 100, "tausend": 1000},
        dangling=_set("und oder der die das den dem des ein eine einen mit von weil dass im"),
        yes_no=("ja", "nein"),
        decimal_comma=True,
        capital_nouns=True,
    ),
    "fr": Language(
        common=_set(
"le la les des et est une un que qui dans pour pas sur avec du il elle sont ce cette "
            "au aux par ne plus être ou où nous vous"
),
        negation=re.compile(
            r"\b(?:pas(?! seulement\b)|jamais|aucune?s?|sans|rien|nul(?:le)?|ni|non)\b"
        ),
        numbers=_counted(
            "zéro un/une/premier/première deux trois quatre cinq six sept huit neuf dix onze douze "
            "treize quatorze quinze seize"
        ) | {"vingt": 20, "trente": 30, "quarante": 40, "cinquante": 50, "cent": 100,
             "mille": 1000},
        dangling=_set("et ou le la les des de du un une avec que qui dans pour sur"),
        yes_no=("oui", "non"),
        decimal_comma=True,
    ),
    "es": Language(
        common=_set(
"el la los las de que y en un una es por con para se del lo su al como más pero sus "
            "son está este esta o muy también"
),
        negation=re.compile(
            r"\b(?:no(?! s[oó]lo\b)|nunca|jamás|ning[uú]n[ao]?s?|sin|nadie|nada|tampoco|ni)\b"
        ),
        numbers=_counted(
            "cero uno/una/un/primero/primera dos tres cuatro cinco seis siete ocho nueve diez once "
            "doce trece catorce quince dieciséis diecisiete dieciocho diecinueve veinte"
        ) | {"treinta": 30, "cuarenta": 40, "cincuenta": 50, "cien": 100, "mil": 1000},
        dangling=_set("y o el la los las de un una con que porque para por en"),
        yes_no=("sí", "no"),
        decimal_comma=True,
    ),
    "zh": Language(
        common=frozenset(),
        # Not the many words in which these characters deny nothing: 不同 different, 不仅 not only …
        negation=re.compile(
            r"不(?![同仅但断管过少错久论只])(?<!对不)(?<!差不)|没有?|沒有?|无(?![论数限])|無|未(?!来)"
            r"|并?非(?![常洲])|[别勿](?=[再说去做忘用])"
        ),
        numbers=_counted("零/〇 一 二/两 三 四 五 六 七 八 九 十") | {"百": 100, "千": 1000},
        dangling=frozenset("和与或把被让向"),
        yes_no=("是", "不"),
    ),
    "ja": Language(
        common=frozenset(),
        negation=re.compile(r"な[いかく](?!でしょう)|ません|ず(?=に|、|。)"),
        numbers=_counted("零/〇 一 二 三 四 五 六 七 八 九 十") | {"百": 100, "千": 1000},
        dangling=frozenset(("と", "や")),
        yes_no=("はい", "いいえ"),
    ),
    "ko": Language(
        common=frozenset(),
        negation=re.compile(r"않|못[하한했]|없|아니"),
        numbers={},
        dangling=frozenset(),
        yes_no=("네", "아니요"),
    ),
}  # fmt: skip
