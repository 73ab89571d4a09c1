"""ROUGE-L against numbers worked out by hand."""

from __future__ import annotations

import pytest

from fedsdr.evaluate.scoring import exact_match, likeness, rouge_l


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        # Lin (2004): "police the gunman" of 4 and 4; "the gunman" of 4 and 4.
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        ("a b c d e", "x b y d", 2 * 2 / 9),
        ("The Cat.", "the, cat!", 1.0),
        ("one", "", 0.0),
        ("", "", 1.0),
        ("a a a", "a", 2 * 1 / 4),
        ("東京は大きい", "東京は広い", 2 * 4 / 11),
        ("der große Hund", "Der GROSSE Hund", 2 / 3),
    ],
)
def test_rouge_l(reference: str, answer: str, score: float) -> None:
    assert rouge_l(reference, answer) == pytest.approx(score)
    assert rouge_l(answer, reference) == pytest.approx(score)


def test_exact_match_is_about_words_not_white_space() -> None:
    assert exact_match("a  b\n", " a b") == 1.0
    assert exact_match("a b", "A b") == 0.0


def test_means_over_a_client_s_rows() -> None:
    assert likeness(["a b", "c"], ["a b", "d"]) == {"rouge_l": 0.5, "exact_match": 0.5}
    assert likeness([], []) == {}
