"""The real slices, through prompts and scores by a scripted model with known answers: the figures
are those that the protocol implies. Skipped where the slices are not at hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark_files import Scripted
from fedsdr.evaluate.benchmarks.answerer import AnswersFile
from fedsdr.evaluate.benchmarks.questions import Question
from fedsdr.evaluate.benchmarks.session import Runner, Scored, ask, score
from fedsdr.evaluate.benchmarks.tasks import BENCHMARKS

SLICES = Path(__file__).parents[4] / "shared" / "data" / "eval"
SIZES = {
    "mmlu": 1140,
    "bbh": 1080,
    "drop": 300,
    "crass": 274,
    "humaneval": 164,
    "gsm8k": 200,
    "fpb": 200,
    "pubmedqa": 150,
}
GRADED = [name for name in SIZES if name != "humaneval"]

pytestmark = [
    pytest.mark.skipif(not SLICES.is_dir(), reason="needs the slices in ../shared/data/eval"),
    pytest.mark.usefixtures("no_fsync"),
]


def run(
    tmp_path: Path, task: str, says: Callable[[Question], str], runner: Runner | None = None
) -> tuple[Scored, Scripted]:
    benchmark = BENCHMARKS[task]
    questions = benchmark.read(SLICES)
    replies = {
        questions.prompt(q, shots): says(q)
        for q in questions.items
        for shots in range(questions.most_shots(q) + 1)
    }
    script = Scripted(lambda prompt: replies[prompt])
    file = AnswersFile(tmp_path / "answers.jsonl")
    answers, prompts = ask(
        benchmark,
        questions,
        answerer=script,
        file=file,
        model="m",
        seed=1,
        batch=512,
        advance=_nobody,
    )
    return score(
        benchmark,
        questions,
        answers=answers,
        file=file,
        runner=runner,
        advance=_nobody,
        prompts=prompts,
    ), script


def _nobody(what: str, done: int, total: int) -> None:
    pass


def right(question: Question) -> str:
    return f" #### {question.gold}" if question.id.startswith("gsm8k") else f" {question.gold}\n\nX"


@pytest.mark.parametrize("task", GRADED)
def test_all_right(tmp_path: Path, task: str) -> None:
    scored, script = run(tmp_path, task, right)
    assert (scored.n, scored.score, scored.interval) == (SIZES[task], 1.0, (1.0, 1.0))
    assert len(script.asked) == SIZES[task]
    # Even counted in words, some of MMLU's shots are too long for 2,048.
    assert (scored.dropped > 0) == (task == "mmlu")
    assert scored.measures.get("macro_f1", 1.0) == pytest.approx(1.0)


@pytest.mark.parametrize("task", [name for name in GRADED if name != "fpb"])
@pytest.mark.parametrize("said", ["", "zzz", "I would say that"])
def test_all_wrong_empty_or_rambling(tmp_path: Path, task: str, said: str) -> None:
    scored, _ = run(tmp_path, task, lambda q: said)
    assert scored.score == 0.0
    assert scored.measures["empty"] == (said == "")


@pytest.mark.parametrize("said", ["", "zzz", "I would say that"])
def test_fpb_s_neutral_default(tmp_path: Path, said: str) -> None:
    """117 of 200 are neutral: F1 of neutral is 2·117 / (200 + 117), of the other two 0."""
    scored, _ = run(tmp_path, "fpb", lambda q: said)
    assert scored.score == pytest.approx(0.585)
    assert scored.measures["macro_f1"] == pytest.approx(2 * 117 / 317 / 3)
    assert scored.measures["defaulted"] == 1.0
    wrong, _ = run(tmp_path / "w", "fpb", lambda q: "negative" if q.gold[0] == "p" else "positive")
    assert wrong.score == 0.0


def test_a_rambling_answer_is_right_by_its_first_letter(tmp_path: Path) -> None:
    for task in ("mmlu", "crass"):
        scored, _ = run(tmp_path / task, task, lambda q: "Answers differ. B.")
        golds = Counter(q.gold for q in BENCHMARKS[task].read(SLICES).items)
        assert scored.score == pytest.approx(golds["A"] / SIZES[task])
        assert golds["A"] > 80


def test_a_number_counts_for_its_first_digits(tmp_path: Path) -> None:
    golds = [q.gold for q in BENCHMARKS["drop"].read(SLICES).items]
    scored, _ = run(tmp_path, "drop", lambda q: "12")
    assert scored.score == pytest.approx((golds.count("12") + golds.count("1")) / 300)
    assert golds.count("1") > 10


def test_bbh_is_the_mean_of_27_configs(tmp_path: Path) -> None:
    """Right on one config alone: 1/27, though a limit may have left it few items."""
    only = "boolean_expressions"
    scored, _ = run(tmp_path, "bbh", lambda q: q.gold if q.group == only else "zzz")
    assert len(set(scored.groups)) == 27
    assert scored.score == pytest.approx(1 / 27)


def test_mmlu_s_missing_options(tmp_path: Path) -> None:
    items = BENCHMARKS["mmlu"].read(SLICES).items
    assert [q.id for q in items if "\nA. nan\n" in q.end] == [
        "mmlu-college_mathematics-8",
        "mmlu-college_mathematics-21",
    ]
    assert sum(". nan\n" in q.end for q in items) == 2


def test_crass_was_shuffled_as_the_protocol_shuffles(tmp_path: Path) -> None:
    """The slice comes shuffled. With the right option put first and no letter, the reader's own
    shuffling gives the same letters."""
    rows = [json.loads(line) for line in (SLICES / "crass_274.jsonl").read_text().splitlines()]
    for row in rows:
        gold = row["options"][ord(row.pop("answer")) - ord("A")]
        row["options"] = [gold, *(o for o in row["options"] if o != gold)]
    (tmp_path / "crass.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = BENCHMARKS["crass"].read(tmp_path).items
    theirs = BENCHMARKS["crass"].read(SLICES).items
    assert [q.gold for q in ours] == [q.gold for q in theirs]


def test_gsm8k_strict_and_flexible(tmp_path: Path) -> None:
    scored, _ = run(tmp_path, "gsm8k", lambda q: f"So she has ${q.gold}.\n\nQuestion: 1+1?")
    assert scored.score == 0.0
    assert scored.measures["flexible"] == 1.0


def test_humaneval_s_ceiling(tmp_path: Path) -> None:
    """The blank-line cut: of the 164 canonical solutions 130 pass. They are the data set's own
    code, and run right here."""
    rows = (json.loads(x) for x in (SLICES / "humaneval_164.jsonl").read_text().splitlines())
    solutions = {row["task_id"]: row["canonical_solution"] for row in rows}
    scored, script = run(tmp_path, "humaneval", lambda q: solutions[q.id], comes_to_its_end)
    assert scored.score == pytest.approx(130 / 164)
    assert len(set(script.seeds)) == 164
    empty, _ = run(tmp_path / "empty", "humaneval", lambda q: "", comes_to_its_end)
    assert empty.score == 0.0
    kept, _ = run(tmp_path / "kept", "humaneval", lambda q: solutions[q.id])
    assert (kept.n, kept.score) == (164, None)


def comes_to_its_end(code: str, tests: str) -> bool:
    try:
        exec(f"{code}\n{tests}", {"__name__": "program"})
    except Exception:
        return False
    return True
