"""Numbers, dates, negations and words beyond English; nothing alarms without reason."""

from __future__ import annotations

import pytest

from fedsdr.distill.checks import is_truncated, leaks, refuses, stops_within
from fedsdr.text.checkable import final_answer
from fedsdr.text.facts import compare_facts, dates, numbers
from fedsdr.text.languages import language_of, negations
from fedsdr.text.names import mentions, names, sentences, words

GERMAN = "Die Stadt hat 1.234,5 Einwohner und liegt nicht am Meer. Angela Merkel war dort."
FRENCH = "Le chat est sur la table et ne mange pas les 3,5 pommes de la ville."
SPANISH = "El gato no está en la mesa con los demás y cuesta 1.000 euros."
CHINESE = "小明有18个苹果，每个不贵，一共花了１２３元。"


@pytest.mark.parametrize(
    ("text", "language", "denied"),
    [
        (GERMAN, "de", 1),
        (FRENCH, "fr", 1),
        (SPANISH, "es", 1),
        (CHINESE, "zh", 1),
        ("The cat is not on the mat with the others.", "en", 1),
        ("这两个东西不同，不仅如此，非常多。", "zh", 0),
        ("東京は日本の首都ではない。", "ja", 1),
        ("서울은 한국의 수도입니다.", "ko", 0),
        ("Oslo", "", 0),
        ("It is a sin to go pas de deux, and it is the way of the world.", "en", 0),
        ("12 + 30 = 42", "", 0),
    ],
)
def test_language_and_negations(text: str, language: str, denied: int) -> None:
    assert (language_of(text), negations(text)) == (language, denied)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1.234,5", {"1234.5"}),
        ("1,234.5", {"1234.5"}),
        ("1\u202f234,50 \u20ac", {"1234.5"}),
        ("1'234.50", {"1234.5"}),
        ("Das sind 3,7 % und 1.000 mehr als die anderen.", {"3.7%", "1000"}),
        ("These are 3.7 % and 1,000 more of the others.", {"3.7%", "1000"}),
        ("Es sind 12,5 Prozent von der Menge", {"12.5%"}),
        (CHINESE, {"18", "123"}),
        ("共有18个", {"18"}),
        ("3.14 und die anderen sind das Ende der Liste", {"3.14"}),
        ("1、洗\n2、晒\n有3条", {"3"}),
    ],
)
def test_numbers(text: str, found: set[str]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("am 12. März 2021", "2021-03-12"),
        ("le 1er août 2020", "2020-08-01"),
        ("el 12 de marzo de 2021", "2021-03-12"),
        ("在2021年3月12日", "2021-03-12"),
        ("3月12日", "?-03-12"),
        ("2021년 3월 12일", "2021-03-12"),
        ("im Dezember 2019", "2019-12"),
    ],
)
def test_dates(text: str, date: str) -> None:
    assert dates(text) == {date}


@pytest.mark.parametrize(
    ("original", "rewrite", "prompt", "reasons"),
    [
        (GERMAN, GERMAN, "", []),
        (
            GERMAN,
            "Angela Merkel war in der Stadt. Sie hat 1234,5 Einwohner und liegt nicht am Meer.",
            "Was weißt du über die Stadt?",
            [],
        ),
        (
            GERMAN,
            "Die Stadt hat 1.235,4 Einwohner und liegt am Meer. Angela Merkel war dort.",
            "",
            ["lost-number", "invented-number", "lost-negation"],
        ),
        ("Er hat drei Hunde und die Katze.", "Die Katze und 3 Hunde hat er.", "", []),
        ("1.234,5", "Das Ergebnis ist 1234,5 und nicht mehr.", "Was ist die Summe, nicht?", []),
        ("他有三个苹果，每个5元。", "他拥有3个苹果，单价为5元。", "他有什么？", []),
        ("他有18个苹果。", "他有19个苹果。", "", ["lost-number", "invented-number"]),
        ("东京是日本的首都。", "东京不是日本的首都。", "", ["invented-negation"]),
        ("这两个东西很像。", "这两个东西没什么不同。", "", ["invented-negation"]),
        ("Il a 1.000 euros et une voiture.", "Il a mille euros et une voiture.", "", []),
    ],
)
def test_facts(original: str, rewrite: str, prompt: str, reasons: list[str]) -> None:
    assert list(compare_facts(original, rewrite, prompt).reasons) == reasons


def test_german_nouns_are_no_names() -> None:
    assert names("Dort war die Kanzlerin Angela Merkel in der Stadt.") >= {"stadt"}
    said = "Dort war in der Stadt auch Angela Merkel."
    assert names(said, nouns_too=True) == {"angela merkel"}
    assert names("Sie kauft bei BASF die Farbe.", nouns_too=True) == {"basf"}


def test_words_by_script() -> None:
    assert words("हिन्दी café naïve") == ["हिन्दी", "café", "naïve"]
    assert words("東京 ok カナ 𠀀") == ["東", "京", "ok", "カ", "ナ", "𠀀"]
    assert words("서울 한국") == ["서울", "한국"]
    assert len(words("ไทย")) == 3
    assert sentences("他来了。她走了！好") == ["他来了。", "她走了！", "好"]
    assert mentions("答案是正面的", "正面")
    assert not mentions("positively", "positive")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 * 6 = 18\nDie Antwort ist 18.", "18"),
        ("Die Antwort lautet: 1.234,5.", "1234.5"),
        ("La réponse est 18.", "18"),
        ("La respuesta es B.", "B"),
        ("所以答案是18。", "18"),
        ("答案：C", "C"),
    ],
)
def test_final_answers(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_leaks_and_refusals() -> None:
    assert leaks("Hier ist die Antwort in eigenen Worten: Oslo") == ("in eigenen worten",)
    assert leaks("以下是改写后的答案：东京") == ("改写后的",)
    for refusal in (
        "I'm sorry, but I can't help with that.",
        "As an AI language model, I have no opinion.",
        "Es tut mir leid, aber ich kann das nicht.",
        "Je suis désolé, mais je ne peux pas répondre.",
        "Lo siento, pero no puedo ayudar con eso.",
        "抱歉，我无法回答这个问题。",
        "作为一个人工智能，我没有感情。",
    ):
        assert refuses(refusal), refusal
    for fine in (
        "I'm sorry to hear that; drink water.",
        "As an AI researcher she built robots.",
        "I cannot understand why.",
        "Es tut mir leid für dich.",
        "我无法忘记那一天。",
    ):
        assert not refuses(fine), fine


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Er kam und sah das Haus mit der", True),
        ("Elle est venue avec la", True),
        ("她去了商店，买了：", True),
        ("他去了商店。", False),
        ("他去了商店", False),
        ("Sing la la la", False),
    ],
)
def test_hanging_ends(text: str, cut: bool) -> None:
    assert is_truncated(text) is cut


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("All is well. This leads to better care and", True),
        ("Steps:\n1. First of all wash it.\n2. Then dry it and put it in the sun which", True),
        ("1. Play\n2. Dance\n3. Sing", False),
        ("Thank you.\n\nSincerely,\n[Your Name]", False),
        ("Great news for all of you out there! 🚀", False),
        ("A list:\n* one thing and another one there\n* and yet another thing that is here", False),
        ("All is said.", False),
        ("Oslo", False),
        ("他来了。然后他们一起去了商店买", True),
    ],
)
def test_stopping_within_a_sentence(text: str, cut: bool) -> None:
    assert stops_within(text) is cut
