"""Made-up files of the eight benchmarks, in the formats of docs/benchmarks.md, and a scripted model
with known answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsdr.distill.generate import Sampling
from fedsdr.evaluate.benchmarks.questions import Questions

CODE = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x):\n    """ Twice x. """\n',
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def mmlu(number: int, subject: str, answer: str, choices: Sequence[str] = "wxyz") -> dict[str, Any]:
    return {
        "id": f"mmlu-{subject}-{number}",
        "subject": subject,
        "question": f"Question {number}?",
        "choices": list(choices),
        "answer": answer,
    }


def bbh(number: int, task: str, target: str) -> dict[str, str]:
    return {"id": f"bbh-{task}-{number}", "task": task, "input": f"In {number}", "target": target}


def drop(number: int, passage: str, answer: str) -> dict[str, str]:
    return {
        "id": f"d{number}",
        "passage": passage,
        "question": f"How many {number}?",
        "answer": answer,
    }


FILES: Mapping[str, list[Any]] = {
    "mmlu.jsonl": [
        mmlu(1, "high_school_logic", "A"),
        mmlu(2, "high_school_logic", "B", ["None", "NA", "I", "II"]),
        mmlu(3, "virology", "A"),
    ],
    "mmlu_shots.jsonl": [
        mmlu(n, subject, "D") for subject in ("high_school_logic", "virology") for n in range(6)
    ],
    "bbh.jsonl": [bbh(n, "big", "yes") for n in range(4, 8)] + [bbh(9, "small", "1")],
    "bbh_shots.jsonl": [bbh(n, t, f"{t}{n}") for t in ("big", "small") for n in range(3)],
    "drop.jsonl": [
        drop(1, "Seen before.", "3"),
        drop(2, "New.", " 1 "),
        drop(3, "Newer.", "7 goals"),
    ],
    "drop_shots.jsonl": [drop(9, "Seen before.", "5")],
    "crass.jsonl": [
        {"id": f"c{n}", "premise": f"P{n}.", "question": f"Q{n}?", "options": ["r", "s", "t"]}
        for n in range(6)
    ],
    "humaneval.jsonl": [CODE],
    "gsm8k.jsonl": [{"id": "g1", "question": "1000+1?", "target": "1001"}],
    "gsm8k_shots.jsonl": [{"id": "s1", "question": "1+1?", "answer": "<<1+1=2>>2\n#### 2"}],
    "fpb.jsonl": [
        {"id": f"f{n}", "instruction": "What?", "input": f"News {n}.", "output": label}
        for n, label in enumerate(("neutral", "neutral", "positive", "negative"))
    ],
    "pubmedqa.jsonl": [
        {"id": "p1", "question": "Does it?", "context": "It does.", "answer": "yes"},
        {"id": "p2", "question": "Does that?", "context": "Not it.", "answer": "no"},
    ],
}


def write(folder: Path, changes: Mapping[str, Iterable[Any]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (FILES | dict(changes or {})).items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@dataclass
class Scripted:
    """Says what `says` has for a prompt; counts words as tokens."""

    says: Callable[[str], str]
    positions: int = 1 << 30
    asked: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    batches: int = 0
    dies_after: int | None = None

    def count(self, text: str) -> int:
        return len(text.split())

    def answer(self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int]) -> list[str]:
        if self.batches == self.dies_after:
            raise KeyboardInterrupt
        self.batches += 1
        self.asked += prompts
        self.seeds += seeds
        return [self.says(prompt) for prompt in prompts]


def all_right(questions: Questions, said: Callable[[str], str] = str) -> Scripted:
    gold = {q.end: said(q.gold) for q in questions.items}
    return Scripted(lambda prompt: next(g for end, g in gold.items() if prompt.endswith(end)))
