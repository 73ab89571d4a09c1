"""Word diffs: in Python (answers), and the page's own script (rewrites), in a real browser."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from fedsdr.report.damage import MOST_WORDS, Piece, same_words, shared_words
from fedsdr.report.page import TEMPLATES


def test_shared_words_by_hand() -> None:
    # "amber" and the price's unit are said; the number is another one, and a lone comma is nothing.
    assert shared_words("It is amber, for 12 crowns.", "Amber, I think: 13 crowns.") == (
        Piece("Amber,", True),
        Piece(" I think: 13 ", False),
        Piece("crowns.", True),
    )


@pytest.mark.parametrize(
    ("reference", "answer"), [("", "no reference"), ("a", ""), (", . !", ", . !"), ("x", "y")]
)
def test_nothing_in_common_is_not_marked(reference: str, answer: str) -> None:
    assert not any(piece.shared for piece in shared_words(reference, answer))


def test_the_pieces_are_the_answer() -> None:
    draw = random.Random(3)
    for _ in range(200):
        words = [draw.choice("a b c , . \n 12 1,000 é 中").strip() for _ in range(30)]
        reference, answer = " ".join(words[:15]), "  ".join(words[15:])
        assert "".join(p.text for p in shared_words(reference, answer)) == answer


def test_long_texts_are_left_alone() -> None:
    long = "a " * (MOST_WORDS + 1)
    began = time.process_time()
    assert shared_words(long, long) == (Piece(long, False),)
    shared_words("a b " * (MOST_WORDS // 2), "b a " * (MOST_WORDS // 2))
    assert time.process_time() - began < 2


def test_same_words() -> None:
    assert same_words("It is AMBER.", "it is  amber")
    assert not same_words("It is 12.", "It is 13.")


# -- the page's script ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(browser: Any) -> Callable[[str, object], Any]:
    """Calls an expression over `rewriteDiff`, as templates/diff.js defines it."""
    page = browser.new_page()
    page.add_script_tag(content=(TEMPLATES / "diff.js").read_text(encoding="utf-8"))
    return lambda expression, given: page.evaluate(f"(given) => {expression}", given)


DIFF = """(() => { const [a, b] = given.map(rewriteDiff.words);
    return [a.map((t) => t.text), b.map((t) => t.text), rewriteDiff.diff(a, b)]; })()"""


def longest_common(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = row
        row = [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


@pytest.mark.browser
def test_words_of_a_text(script: Callable[[str, object], Any]) -> None:
    said = script(
        "rewriteDiff.words(given).map((t) => t.text)", "It's 1,000.5 (5 %), non-stop: 水は é!"
    )
    assert " ".join(said) == "It's 1,000.5 ( 5 % ) , non-stop : 水 は é !"


@pytest.mark.browser
def test_a_diff_by_hand(script: Callable[[str, object], Any]) -> None:
    _, _, ops = script(DIFF, ["the price is 12 crowns today", "the price is 13 crowns"])
    assert ops == [
        ["same", 0, 3, 0, 3],
        ["changed", 3, 4, 3, 4],
        ["same", 4, 5, 4, 5],
        ["changed", 5, 6, 5, 5],
    ]


@pytest.mark.browser
def test_a_lone_small_word_is_no_common_ground(script: Callable[[str, object], Any]) -> None:
    _, _, ops = script(DIFF, ["violets bloom in springtime", "customers complain in autumn"])
    assert ops == [["changed", 0, 4, 0, 4]]


@pytest.mark.browser
def test_diffs_are_true_and_shortest(script: Callable[[str, object], Any]) -> None:
    draw = random.Random(5)
    for _ in range(150):
        # Words longer than what is smoothed away, so that the optimum itself is compared.
        vocabulary = [f"longenoughword{n}" for n in range(draw.choice((2, 6, 30)))]
        texts = [" ".join(draw.choices(vocabulary, k=draw.randint(0, 25))) for _ in range(2)]
        a, b, ops = script(DIFF, texts)
        at_a = at_b = same = 0
        for op, a0, a1, b0, b1 in ops:
            assert (a0, b0) == (at_a, at_b)
            if op == "same":
                assert a[a0:a1] == b[b0:b1]
                same += a1 - a0
            at_a, at_b = a1, b1
        assert (at_a, at_b) == (len(a), len(b))
        assert same == longest_common(a, b)


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["prose", "the same word", "nothing in common", "characters"])
def test_long_texts_stay_fast(script: Callable[[str, object], Any], kind: str) -> None:
    draw = random.Random(7)
    texts = {
        "prose": [" ".join(f"w{draw.randint(0, 900)}" for _ in range(4000)) for _ in range(2)],
        "the same word": ["no " * 6000, "no " * 4000 + "yes " + "no " * 2500],
        "nothing in common": [" ".join(f"{c}{n}" for n in range(3500)) for c in "ab"],
        "characters": ["水火" * 10_000, "火水" * 10_000],
    }[kind]
    began = time.perf_counter()
    a, b, ops = script(DIFF, texts)
    assert time.perf_counter() - began < 20  # a tenth of a second, where nothing else runs
    assert ops[-1][2] == len(a)
    assert ops[-1][4] == len(b)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("text", "numbers", "names", "marked"),
    [
        ("It cost 1,000.50 in 1999.", ["1000.5"], [], ["1,000.50"]),
        ("Es kostet 1.000,5 Euro.", ["1000.5"], [], ["1.000,5"]),
        ("Einwohner: 1.234.567", ["1234567"], [], ["1.234.567"]),
        ("Of 3.14, 14 and 314.", ["14"], [], ["14"]),
        ("Up by 12 % to -5", ["12%", "-5"], [], ["12 %", "-5"]),
        ("Only 12% of it", ["12"], [], ["12%"]),
        ("Marie Curie's sister, not Marie Curies", [], ["marie curie"], ["Marie Curie"]),
        ("Jean-Luc and O'Neil", [], ["jean-luc", "o'neil"], ["Jean-Luc", "O'Neil"]),
        ("a (b) [c]*", [], ["[c]*", "b"], ["b", "[c]*"]),
        ("7 7 7", ["7"], ["7"], ["7", "7", "7"]),
        ("nothing", ["4"], ["paris"], []),
    ],
)
def test_places_of_numbers_and_names(
    script: Callable[[str, object], Any],
    text: str,
    numbers: list[str],
    names: list[str],
    marked: list[str],
) -> None:
    found = script("rewriteDiff.places(...given)", [text, numbers, names])
    assert [text[start:end] for start, end in found] == marked


@pytest.mark.browser
def test_pieces_are_the_text(script: Callable[[str, object], Any]) -> None:
    pieces = script(
        """(() => { const [a, b] = given.map(rewriteDiff.words);
           const ops = rewriteDiff.diff(a, b);
           const marks = rewriteDiff.places(given[1], ["13"], []);
           return rewriteDiff.pieces(given[1], b, ops, 1, marks); })()""",
        ["the price is 12 crowns", "  the price is about 13 crowns\n"],
    )
    assert "".join(piece["text"] for piece in pieces) == "  the price is about 13 crowns\n"
    shown = [(p["text"], p["changed"], p["mark"]) for p in pieces if p["changed"] or p["mark"]]
    assert shown == [("about ", True, False), ("13", True, True)], json.dumps(pieces)
