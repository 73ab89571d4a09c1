"""What is read off a text, and what of it a rewrite may not change; all expected by hand."""

from __future__ import annotations

import pytest

from fedsdr.distill.checks import (
    compression_ratio,
    count_filler,
    distinct_share,
    is_truncated,
    leaks,
    length_ratio,
    lost_answer,
    redundancy,
    unsupported_share,
)
from fedsdr.text.checkable import call, calls, final_answer, looks_like_code
from fedsdr.text.facts import compare_facts, dates, numbers
from fedsdr.text.languages import negations
from fedsdr.text.names import names, sentences, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,000 or 1000 or 1000.0 or $1,000.00", {"1000"}),
        ("It rose 50%, fifty of them 12.5 percent and 3 per cent", {"50%", "12.5%", "3%"}),
        ("-3 degrees, x=-4, (-5) but 7-8 and 10-page", {"-3", "-4", "-5", "7", "8", "10"}),
        ("COVID-19, GPT-3, us_west_2, id4x, 9p1a23, v1.2.3", set[str]()),
        ("20mg, the 1990s, 3rd, $75M", {"20", "1990", "3", "75"}),
        ("1. Wash\n2) Dry\n- 3 towels", {"3"}),
        (".5 and 007 and -0", {"0.5", "7", "0"}),
        ("on 2021-03-12 there were 5", {"5"}),
        ("1872, 1874, 1893", {"1872", "1874", "1893"}),
        ("9" * 60, {"9" * 60}),
        ("", set[str]()),
    ],
)
def test_numbers(text: str, found: set[str]) -> None:
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("12 March 2021, March 12th, 2021 and 2021-03-12", {"2021-03-12"}),
        ("the 1st of May 1999", {"1999-05-01"}),
        ("Sept. 2020", {"2020-09"}),
        ("on Dec 24", {"?-12-24"}),
        ("03/04/2020", {"3/4/2020"}),
        ("You may 5 times; Marcus 7; in 1999", set[str]()),
    ],
)
def test_dates(text: str, found: set[str]) -> None:
    assert dates(text) == found


@pytest.mark.parametrize(
    ("text", "context", "found"),
    [
        ("He met Dr. Jane Goodall in Paris, France.", "", {"dr jane goodall", "paris", "france"}),
        ("Improves efficiency. Technology enables it.", "", set[str]()),
        ("Velorin is a drug.", "Describe Velorin.", {"velorin"}),
        ("Velorin is a drug.", "Describe it.", set[str]()),
        ("Carly Rae Jepsen", "", {"carly rae jepsen"}),
        ("However, I'm sure. The end. In Finland it snows.", "", {"finland"}),
        ("1. Better Team Spirit: People talk.\n## Final Words", "", set[str]()),
        ("capital: Oslo\n- River: Glomma", "", {"oslo", "glomma"}),
        ('{"capital": "Oslo"}', "", {"oslo"}),
        ("It is Koko's and Koko\u2019s home.", "", {"koko"}),
        ("Run it:\n```python\nclass Vehicle: pass\n```", "", set[str]()),
        ("the city of \u00c5lesund and Jean-Luc", "", {"\u00e5lesund", "jean-luc"}),
    ],
)
def test_names(text: str, context: str, found: set[str]) -> None:
    assert names(text, context) == found


def test_negations() -> None:
    assert negations("It isn't, it isn\u2019t, it cannot, never without.") == 5
    assert negations("Not only this, a notion of northern nothings.") == 0


@pytest.mark.parametrize(
    ("original", "rewrite", "prompt", "reasons"),
    [
        ("It costs $1,000.", "The price is 1000 dollars.", "", []),
        ("It took 3 steps.", "It took three steps.", "", []),
        ("There are twenty-five.", "There are 25.", "", []),
        ("It took 3 steps.", "It took 4 steps.", "", ["lost-number", "invented-number"]),
        ("A few left.", "Of the 12, a few left.", "12 guests came.", []),
        ("On 12 March 2021.", "On 2021-03-12.", "", []),
        ("On 12 March 2021.", "In March 2021.", "", ["lost-date", "invented-date"]),
        ("In 2021 he won.", "In March 2021 he won.", "", ["invented-date"]),
        ("The king is Olaf.", "Our king is Harald.", "", ["lost-name", "invented-name"]),
        ("Olaf", "It is Harald", "Olaf or Harald?", ["lost-name"]),
        ("The drug is safe.", "The drug is not safe.", "", ["invented-negation"]),
        ("The drug is not safe.", "The drug is safe.", "", ["lost-negation"]),
        ("It is blue.", "Without doubt blue.", "Which is not red?", []),
        ("By Carl Sagan.", "sagan, CARL", "", []),
    ],
)
def test_facts_lost_and_invented(
    original: str, rewrite: str, prompt: str, reasons: list[str]
) -> None:
    assert list(compare_facts(original, rewrite, prompt).reasons) == reasons


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6 + 9 = 15 knives\n#### 1,015", "1015"),
        ("The answer is 12. No: the answer is 13.", "13"),
        ("so \\boxed{42}", "42"),
        ("The answer is B) Oslo", "B"),
        ("Answer: (C)", "C"),
        ("A", "A"),
        ("A cat", None),
        ("$42.00", "42"),
        ("She pays 3 * 2 = $6 for it.", "6"),
        ("The final answer is: Oslo.", "oslo"),
        ("Three people came in 1999.", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_calls_have_one_spelling() -> None:
    one = 'aws.find(name="my stream", n=(1, 2))'
    assert call(f"`{one}`") == call("aws.find( name='my stream', n=(1,2) )") is not None
    assert call(f"Use {one} here.") is None
    assert call("aws.find(name=") is None
    assert calls(f"Use {one}, then stop().") == ('aws.find(n=(1,2),name="my stream")', "stop()")


@pytest.mark.parametrize(
    ("original", "rewrite", "lost"),
    [
        ("f.g(a='x')", 'Call it so: f.g(a="x").\n### Explanation: done', []),
        ("f.g(a='x')", 'print(f.g(a="x"))', []),
        ("f.g(a='x')", 'f.g(a="y")', ["lost-call"]),
        ("```\nls -l\n```", "Type ls -l.", ["lost-code"]),
        ("```\nls -l\n```", "Type:\n```\nls -l\n```", []),
        ("3 * 2 = 6", "Two times three gives 6.", []),
        ("3 * 2 = 6", "3 * 2 = 7", ["lost-answer"]),
        ("Answer: B", "The answer is C.", ["lost-answer"]),
        ("Answer: B", "It must be (B).", []),
        ("B", "A lamp", ["lost-answer"]),
        ("The answer is Oslo.", "It is Oslo, clearly.", []),
        ("The answer is Oslo.", "It is Bergen.", ["lost-answer"]),
        ("Some prose.", "Other prose.", []),
    ],
)
def test_checkable_answers_must_survive(original: str, rewrite: str, lost: list[str]) -> None:
    assert list(lost_answer(original, rewrite)) == lost


def test_leaks() -> None:
    assert leaks("Based on the Reference\nanswer, here is my response.") == (
        "reference answer",
        "my response",
    )
    assert leaks("Now it\u2019s your turn") == ("now it's your turn", "your turn")
    assert leaks("A tourist guide answered in my words; preference answers.") == ()


@pytest.mark.parametrize(
    ("text", "hit_limit", "truncated"),
    [
        ("All is said.", False, False),
        ("All is said.", True, True),
        ("oslo", False, False),
        ("```python\nx = 1", False, True),
        ("It has a tower and", False, True),
        ("First, second,", False, True),
        ("Take vitamin A", False, False),
        ("for i in items:", False, False),
    ],
)
def test_truncation(text: str, hit_limit: bool, truncated: bool) -> None:
    assert is_truncated(text, hit_limit) is truncated


def test_code_is_told_from_prose() -> None:
    assert looks_like_code("<p>Hello</p>")
    assert looks_like_code("SELECT name\nFROM users\nWHERE age > 3")
    assert not looks_like_code('{\n "a": 1\n}')
    assert not looks_like_code("for example: this\nFever;\nimport duties were raised")


def test_words_and_sentences() -> None:
    assert words("Don\u2019t stop, R2D2!") == ["don", "t", "stop", "r2d2"]
    assert words("\u6771\u4eac ok") == ["\u6771", "\u4eac", "ok"]
    assert sentences("1. Dr. No left. He ran!\n\n- Ok\n***") == ["Dr. No left.", "He ran!", "Ok"]


def test_redundancy_by_hand() -> None:
    # 8 words, 5 four-grams of which "a b c d" twice: 4 different ones.
    assert distinct_share(words("a b c d a b c d"), 4) == pytest.approx(4 / 5)
    measured = redundancy("a b c d a b c d")
    assert (measured.words, measured.repeated_4) == (8, pytest.approx(1 / 5))
    # 7 pairs: ab bc cd da ab bc cd, 4 of them different.
    assert measured.distinct_2 == pytest.approx(4 / 7)
    assert redundancy("").repeated_4 == 0.0
    assert length_ratio("one two", "one two three four five") == 2.5
    assert length_ratio("", "one") == 1.0
    assert compression_ratio("again and " * 100) < 0.1 < 1.0 == compression_ratio("")
    assert compression_ratio("\ud800") > 0


def test_filler_is_counted_in_whole_phrases() -> None:
    assert count_filler("Of course! It\u2019s worth noting that, overall, overalls are blue.") == 3


def test_unsupported_sentences() -> None:
    original, prompt = "The lamp is blue and heavy.", "Describe the lamp in the hall."
    assert unsupported_share(original, "A heavy blue lamp. It stands in the hall.", prompt) == 0.0
    # the second sentence shares nothing but function words
    rewrite = "The lamp is blue. Painters in Delft once loved such things."
    assert unsupported_share(original, rewrite, prompt) == 0.5
    assert unsupported_share(original, "", prompt) == 0.0
