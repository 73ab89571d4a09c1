"""What rewriting did, by hand; pairs from files; and a 7B model's real rewrites."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsdr.data.formats import read_table
from fedsdr.errors import DataError
from fedsdr.evaluate.diagnostics.faithfulness import Rewrite, audit, paired, read_pairs
from fedsdr.types import Example

REAL = Path(__file__).parents[4] / "shared" / "data"
BUILT = Example("e1", "Who built it?", "Ada built it in 1832.")
NOT = Example("e2", "May I?", "You must not take 40 mg.")
SUM = Example("e3", "2 and 3?", "2 + 3 = 5\n#### 5")
REWRITES = [
    Rewrite(BUILT, "It was Bob, in 1833, and of course it was Bob, in 1833, and let me know."),
    Rewrite(NOT, "You must take 40 mg.", kept=False),
    Rewrite(SUM, "2 + 3 = 6\n#### 6"),
    Rewrite(BUILT, BUILT.response),
]


def test_an_audit_by_hand() -> None:
    found = audit(REWRITES)
    assert (found["rows"], found["changed"], found["kept"]) == (4, 0.75, 0.75)
    every, changed = found["all"], found["changed_rows"]
    assert (every["rows"], changed["rows"]) == (4, 3)
    # words: 17 for 5, 5 for 6, 4 for 4, 5 for 5
    assert changed["length_ratio"] == pytest.approx(1.0)
    assert changed["longer_than_twice"] == pytest.approx(1 / 3, abs=1e-6)
    assert changed["words_before"] == pytest.approx(5.0)
    assert changed["words_after"] == pytest.approx(26 / 3, abs=1e-6)
    assert changed["filler_per_1000_before"] == 0.0
    assert changed["filler_per_1000_after"] == pytest.approx(1000 * 2 / 26, abs=1e-6)
    assert changed["repeated_4_after"] > changed["repeated_4_before"] == 0.0
    assert changed["distinct_1_after"] < changed["distinct_1_before"]
    # 1832 and 5 are gone, 1833 and 6 are new; Ada and Bob in one row
    assert changed["numbers_lost"] == changed["numbers_invented"] == pytest.approx(2 / 3, abs=1e-6)
    assert changed["names_invented"] == pytest.approx(1 / 3, abs=1e-6)
    assert changed["negation_lost"] == pytest.approx(1 / 3, abs=1e-6)
    assert every["negation_lost"] == 0.25
    # only the sum has an answer that can be extracted, and it is another one
    assert changed["with_answer"] == pytest.approx(1 / 3, abs=1e-6)
    assert changed["answer_lost"] == 1.0
    assert json.loads(json.dumps(found)) == found
    assert "Bob" not in json.dumps(found)


def test_nothing_changed_is_nothing_to_measure() -> None:
    found = audit([REWRITES[3]])
    assert found["changed"] == 0.0
    assert found["changed_rows"] is None
    assert found["all"]["length_ratio"] == 1.0
    assert found["all"]["answer_lost"] is None  # there was none to lose


class Judge:
    """Holds what is in it, word for word."""

    def __init__(self) -> None:
        self.asked = list[tuple[str, str]]()

    def entailments(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.asked += pairs
        return [0.9 if hypothesis in premise else 0.1 for premise, hypothesis in pairs]


def test_entailment_is_asked_both_ways_of_changed_rows_only() -> None:
    whole = Rewrite(Example("e4", "Who?", "Ada did. In May."), "Ada did.")
    judge = Judge()
    found = audit([whole, REWRITES[1], REWRITES[3]], judge)["entailment"]
    assert found == {
        "rows": 2.0,
        "rewrite_follows": 0.5,
        "original_follows": 0.0,
        "both": 0.0,
        "mean_forward": 0.5,
        "mean_backward": 0.1,
    }
    assert len(judge.asked) == 4
    assert any(p.endswith("Who?\nAda did. In May.") and h == "Ada did." for p, h in judge.asked)
    assert audit([whole, REWRITES[1]], Judge(), examples=1)["entailment"]["rows"] == 1.0
    assert audit([REWRITES[3]], Judge())["entailment"] is None


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "output_original": "secret", "output_distilled": "a secret"} | more


CLIENTS = {"a": [Example("1", "q", "secret"), Example("2", "q", "other")], "b": []}


def test_pairs_are_found_by_id(tmp_path: Path) -> None:
    write(tmp_path / "a.x.jsonl", [row("1"), row("9")])
    write(tmp_path / "b.jsonl", [{"id": "2", "response": "others", "kept": True}])
    write(tmp_path / "audit.jsonl", [{"example_id": "1"}])
    found = paired(CLIENTS, read_pairs(tmp_path))
    assert [(r.example.id, r.text) for r in found["a"]] == [("1", "a secret"), ("2", "others")]
    assert found["b"] == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row("1", output_original="SECRET")],
            "line 1, field 'output_original': is not the answer",
        ),
        ([row("1"), row("1")], "line 2, field 'id': has the same id as"),
        ([{"output_distilled": "x"}], "line 1, field 'id': is missing"),
        ([{"id": "1", "text": "secret"}], "has neither 'output_distilled' nor 'response'"),
        (
            [row("7")],
            "none of the 1 rows has the id of a training row of these clients, such as '1'",
        ),
        ([row("1", output_distilled=3)], "field 'output_distilled': must be text, not"),
    ],
)
def test_bad_pairs_are_named_without_their_text(
    tmp_path: Path, rows: list[dict[str, Any]], said: str
) -> None:
    file = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError) as caught:
        paired(CLIENTS, read_pairs(file))
    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    assert "secret" not in str(caught.value).lower()


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no \.jsonl file"):
        read_pairs(tmp_path)


@pytest.mark.skipif(not (REAL / "rewrites").is_dir(), reason="../shared/data is not here")
def test_what_a_7b_model_did_to_real_answers() -> None:
    """Of the alpaca client the changed rows are longer by about 2.5 times and more repetitive,
    with numbers lost and invented; the tools client's calls grow explanations."""
    clients = {
        name: read_table(REAL / "clients" / name / "train.jsonl").examples
        for name in ("c0_general_alpaca", "c6_tools")
    }
    pairs = paired(clients, read_pairs(REAL / "rewrites"))
    alpaca, tools = (audit(own) for own in pairs.values())
    assert (alpaca["rows"], alpaca["changed"]) == (500, 413 / 500)  # as STATS.md counts them
    assert (tools["rows"], tools["changed"]) == (500, 53 / 500)
    told = alpaca["changed_rows"]
    assert told["length_ratio"] == pytest.approx(2.5, abs=0.1)
    assert told["words_after"] / told["words_before"] == pytest.approx(2.7, abs=0.1)
    assert told["repeated_4_after"] > 5 * told["repeated_4_before"]
    assert told["distinct_1_after"] < told["distinct_1_before"] - 0.1
    assert told["filler_per_1000_after"] > 2 * told["filler_per_1000_before"]
    assert told["compression_after"] < told["compression_before"] - 0.2
    assert told["numbers_lost"] > 0.05
    assert told["numbers_invented"] > 0.15
    assert tools["changed_rows"]["length_ratio"] > 5
    assert tools["changed_rows"]["answer_lost"] == 0.0  # the call stands first, and stays
