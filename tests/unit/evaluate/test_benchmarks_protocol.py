"""Prompts word for word, and what the protocol counts as right, traps included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from benchmark_files import CODE, FILES, mmlu, write
from fedsdr.errors import DataError, RecipeError
from fedsdr.evaluate.benchmarks.grading import completion, program
from fedsdr.evaluate.benchmarks.questions import Program, Question, Questions, fit, prompt_limit
from fedsdr.evaluate.benchmarks.tasks import BENCHMARKS, chosen_benchmarks

GOLD = Question("q", "", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "eval")


def read(folder: Path, task: str) -> Questions:
    return BENCHMARKS[task].read(folder)


def grade(task: str, gold: str, answer: str) -> float:
    judge = BENCHMARKS[task].grade
    assert judge is not None
    return judge(replace(GOLD, gold=gold), answer)


def test_mmlu(folder: Path) -> None:
    found = read(folder, "mmlu")
    first, second, _ = found.items
    assert found.most_shots(first) == 5  # of six
    assert found.prompt(first, 1) == (
        "The following are multiple choice questions (with answers) about  high school logic.\n\n"
        "Question 0?\nA. w\nB. x\nC. y\nD. z\nAnswer: D\n\n"
        "Question 1?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert second.end == "Question 2?\nA. nan\nB. nan\nC. I\nD. II\nAnswer:"
    assert BENCHMARKS["mmlu"].sampling.max_new_tokens == 2
    assert BENCHMARKS["mmlu"].sampling.temperature == 0


def test_bbh_and_drop(folder: Path) -> None:
    big = read(folder, "bbh").items[0]
    assert read(folder, "bbh").prompt(big, 3) == (
        "In 0\nAnswer: big0\n\nIn 1\nAnswer: big1\n\nIn 2\nAnswer: big2\n\nIn 4\nAnswer:"
    )
    drop = read(folder, "drop")
    assert [q.id for q in drop.items] == ["d2", "d3"]  # the first one's passage is a shot's
    assert drop.items[0].gold == "1"
    assert drop.prompt(drop.items[0], 3) == (
        "Seen before. How many 9?\nAnswer: 5\n\nNew. How many 2?\nAnswer:"
    )


def test_bbh_from_whole_files_leaves_out_its_shots(tmp_path: Path) -> None:
    whole = [*FILES["bbh_shots.jsonl"], *FILES["bbh.jsonl"]]
    found = read(write(tmp_path, {"bbh.jsonl": whole}), "bbh")
    assert [q.id for q in found.items] == [row["id"] for row in FILES["bbh.jsonl"]]


def test_crass_is_shuffled_in_file_order_unless_it_says_what_is_right(tmp_path: Path) -> None:
    found = read(write(tmp_path / "raw"), "crass")
    random, expected = Random(0), []
    for _ in range(6):
        options = ["r", "s", "t"]
        random.shuffle(options)
        expected.append("ABC"[options.index("r")])
    assert [q.gold for q in found.items] == expected
    assert len(set(expected)) > 1
    shown = [{**row, "answer": "B"} for row in FILES["crass.jsonl"]]
    told = read(write(tmp_path / "told", {"crass.jsonl": shown}), "crass")
    assert {q.gold for q in told.items} == {"B"}
    assert told.items[0].end == "P0. Q0?\nA. r\nB. s\nC. t\nAnswer:"
    prompt = told.prompt(told.items[0], 3)
    assert prompt.startswith("A feather falls from a skyscraper. What would have happened if")
    assert prompt.count("\n\n") == 3
    assert "B. Nothing special would have happened.\n" in prompt


def test_the_others(folder: Path) -> None:
    gsm = read(folder, "gsm8k")
    assert gsm.prompt(gsm.items[0], 5) == (
        "Question: 1+1?\nAnswer: <<1+1=2>>2\n#### 2\n\nQuestion: 1000+1?\nAnswer:"
    )
    assert read(folder, "fpb").items[0].end == "Instruction: What?\nInput: News 0.\nAnswer: "
    assert read(folder, "pubmedqa").items[0].end == (
        "Abstract: It does.\nQuestion: Does it?\nAnswer:"
    )
    assert read(folder, "humaneval").items[0].end == (
        "Please complete the following Python code without providing any additional tasks such as "
        "testing or explanations\n" + CODE["prompt"]
    )
    assert BENCHMARKS["humaneval"].sampling.temperature == 0.1
    assert BENCHMARKS["humaneval"].sampling.top_p == 1.0


@pytest.mark.parametrize(
    ("task", "gold", "answer", "right"),
    [
        ("mmlu", "A", " A", 1),
        ("mmlu", "A", "\nAnswer", 1),
        ("mmlu", "A", "a", 0),
        ("mmlu", "A", "B. A", 0),
        ("mmlu", "A", "", 0),
        ("drop", "1", " 12", 1),
        ("drop", "12", " 1", 0),
        ("bbh", "(B)", "(B) and more", 1),
        ("bbh", "yes", "Yes", 0),
        ("gsm8k", "1001", " So it is\n#### 1,001", 1),
        ("gsm8k", "1001", " So it is 1001", 0),
        ("gsm8k", "1001", "#### 7\n\nQuestion: x\nAnswer: #### 1001", 0),
        ("gsm8k", "1001", "#### 1001.\n\nQuestion: x\nAnswer: #### 8", 1),
        ("fpb", "neutral", "", 1),
        ("fpb", "neutral", "no idea", 1),
        ("fpb", "positive", "neither negative nor positive", 1),
        ("fpb", "negative", "neither negative nor positive", 0),
        ("fpb", "negative", "Negative", 1),
        ("fpb", "negative", "NEGATIVE", 0),
        ("pubmedqa", "yes", " Yes, it does.", 1),
        ("pubmedqa", "no", "not at all", 0),
        ("pubmedqa", "maybe", "** maybe", 1),
        ("pubmedqa", "yes", "The answer is yes", 0),
    ],
)
def test_what_counts(task: str, gold: str, answer: str, right: int) -> None:
    assert grade(task, gold, answer) == right


def test_humaneval_s_post_processing() -> None:
    assert completion("\n\n    a = 1\n   b = 2\n\n    return a") == "    a = 1\n    b = 2"
    assert completion(" x\n   y") == "  x\n    y"  # odd indents padded, one by one
    assert completion("") == ""
    # The blank-line cut: what follows is lost, be it right or not.
    assert completion("    if x:\n        pass\n\n    return x") == "    if x:\n        pass"


def test_a_right_program_passes_and_a_wrong_one_does_not(folder: Path) -> None:
    (question,) = read(folder, "humaneval").items
    exec("\n".join(program(question, "    return 2 * x\n\nprint('more')")), {})
    with pytest.raises(AssertionError):
        exec("\n".join(program(question, "    return 3 * x")), {})
    with pytest.raises(SyntaxError):
        exec("\n".join(program(question, "return 2 * x")), {})


def test_what_a_prompt_holds_beside_its_function_belongs_to_the_tests() -> None:
    prompt = 'import math\ndef near(a, b):\n    return a == b\n\ndef f(x):\n    """Add."""\n'
    asked = Program(prompt, "def check(f):\n    assert near(f(1), 2)", "f")
    question = Question("q", "Write f.", "", program=asked)
    code, tests = program(question, "    return 1\ndef near(a, b):\n    return True")
    assert code.endswith("return True\n")
    assert "import math" in tests
    assert "def near" in tests
    assert "def f" not in tests


def test_shots_are_dropped_from_the_end_until_it_fits() -> None:
    def words(text: str) -> int:
        return len(text.split())

    few = ("a a a a\n", "b b b\n", "c c\n")
    found = Questions((GOLD,), (), {"": few}, {"": "head "})
    question = Question("q", "end", "")
    # Of 11 words, 9 are left without the last shot, 6 without the last two, 2 without any.
    for positions, shots in ((99, 3), (16, 3), (15, 2), (14, 2), (13, 1), (11, 1), (10, 0), (7, 0)):
        prompt = fit(found, question, words, positions, new=5)
        assert (prompt.shots, prompt.cut) == (shots, False)
        assert prompt.text == "head " + "".join(few[:shots]) + "end"
        assert prompt.tokens == words(prompt.text) <= positions - 5
    assert fit(found, question, words, 6, new=5).cut


def test_a_large_model_s_prompts_have_the_protocol_s_2048_tokens() -> None:
    assert prompt_limit(4096, 512) == 2048
    assert prompt_limit(1024, 32) == 992
    long = Questions((GOLD,), (), {"": ("s",)}, {})
    alone = fit(long, Question("q", "end", ""), lambda text: 3000, positions=4096, new=8)
    assert (alone.shots, alone.cut) == (0, False)  # asked all the same: the model has room


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mmlu.jsonl": [{**mmlu(1, "virology", "A"), "choices": "wxyz"}]}, "field 'choices'"),
        ({"mmlu.jsonl": [mmlu(1, "virology", "A", "wx")]}, "must hold 4 texts, not 2"),
        ({"mmlu.jsonl": [mmlu(1, "virology", "E")]}, "one letter from A to D"),
        ({"mmlu.jsonl": [mmlu(1, "botany", "A")]}, "line 1, field 'subject': has no shots"),
        ({"mmlu.jsonl": [mmlu(1, "virology", "A")] * 2}, "line 2, field 'id': occurs in line 1"),
        ({"mmlu.jsonl": [{"id": "x", "frage": "?"}]}, "field 'subject': is missing; the columns"),
        ({"mmlu.jsonl": []}, "mmlu.jsonl: is empty"),
        ({"mmlu_2.jsonl": []}, "several files could be mmlu's items: mmlu.jsonl, mmlu_2.jsonl"),
    ],
)
def test_wrong_files_are_named_with_line_and_field(
    tmp_path: Path, change: dict[str, list[object]], said: str
) -> None:
    with pytest.raises(DataError, match=said) as raised:
        read(write(tmp_path, change), "mmlu")
    assert "Question 1?" not in str(raised.value)


def test_other_wrong_values(tmp_path: Path) -> None:
    for number, (task, file, row, said) in enumerate(
        (
            ("fpb", "fpb.jsonl", {"output": "bullish"}, "positive, negative, neutral"),
            ("pubmedqa", "pubmedqa.jsonl", {"answer": "perhaps"}, "yes, no, maybe"),
            ("gsm8k", "gsm8k.jsonl", {"target": "many"}, "must be a number"),
            ("crass", "crass.jsonl", {"answer": "D"}, "one letter from A to C"),
            ("crass", "crass.jsonl", {"options": ["a", 2, "c"]}, "must be text, not a number"),
        )
    ):
        rows = [{**FILES[file][0], **row}]
        with pytest.raises(DataError, match=said):
            read(write(tmp_path / str(number), {file: rows}), task)


def test_missing_files_and_tasks(tmp_path: Path) -> None:
    folder = write(tmp_path / "eval")
    (folder / "mmlu_shots.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file of mmlu's shots \(mmlu_shots.jsonl or"):
        read(folder, "mmlu")
    with pytest.raises(DataError, match="there is no such folder"):
        read(tmp_path / "evil", "mmlu")
    with pytest.raises(RecipeError, match=r"no task 'mlu'. Did you mean 'mmlu'\? Known are"):
        chosen_benchmarks(["fpb", "mlu"])
    assert [b.name for b in chosen_benchmarks(["fpb", "mmlu", "fpb"])] == ["fpb", "mmlu"]
