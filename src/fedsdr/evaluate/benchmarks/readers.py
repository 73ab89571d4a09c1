"""How each file becomes questions: the prompts' own words, and what is right.

Which file of a folder is which benchmark's, and its rows: `mmlu_57x20.jsonl` holds MMLU's items,
`mmlu_shots_57x5.jsonl` its shots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import cast

from fedsdr.data.files import read_rows
from fedsdr.data.row import Row, kind, quoted
from fedsdr.errors import DataError, nearest
from fedsdr.evaluate.benchmarks.grading import NUMBER, SENTIMENTS, VERDICTS
from fedsdr.evaluate.benchmarks.questions import Program, Question, Questions


def item_rows(folder: Path, task: str, columns: Sequence[str]) -> tuple[Row, ...]:
    return _rows(_the_file(folder, task, shots=False), columns)


def shot_rows(folder: Path, task: str, columns: Sequence[str]) -> tuple[Row, ...]:
    return _rows(_the_file(folder, task, shots=True), columns)


def texts(row: Row, column: str, least: int, most: int) -> list[str]:
    """A list of so many texts, which may be empty ones."""
    value = row.values.get(column)
    if not isinstance(value, list):
        raise row.error(f"must be a list of texts, not {kind(value)}", column)
    items = [row.checked(v, column, blank=True) for v in cast("list[object]", value)]
    if not least <= len(items) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise row.error(f"must hold {wanted} texts, not {len(items)}", column)
    return items


def letter(row: Row, column: str, options: int) -> str:
    value = row.text(column)
    if value not in list("ABCD"[:options]):
        raise row.error(f"must be one letter from A to {'ABCD'[options - 1]}", column)
    return value


def _the_file(folder: Path, task: str, shots: bool) -> Path:
    if not os.path.isdir(folder):
        raise DataError(
            f"{folder}: there is no such folder; --data names the one with the tasks' files"
        )
    stem = f"{task}_shots" if shots else task
    there = sorted(path.name for path in folder.glob("*.jsonl"))
    mine = [n for n in there if n == f"{stem}.jsonl" or n.startswith(f"{stem}_")]
    if not shots:
        mine = [n for n in mine if not n.startswith(f"{task}_shots")]
    if len(mine) == 1:
        return folder / mine[0]
    what = f"{task}'s {'shots' if shots else 'items'}"
    wanted = f"{stem}.jsonl or {stem}_….jsonl"
    if mine:
        raise DataError(f"{folder}: several files could be {what}: {', '.join(mine)}; leave one")
    raise DataError(f"{folder}: there is no file of {what} ({wanted}).{nearest(stem, there)}")


def _rows(path: Path, columns: Sequence[str]) -> tuple[Row, ...]:
    rows = read_rows(path)
    seen: dict[str, int] = {}
    for row in rows:
        for column in columns:
            if column not in row.values:
                there = quoted(row.values)
                raise row.error(f"is missing; the columns there are {there}", column)
        first = seen.setdefault(row.text(columns[0]), row.number)
        if first != row.number:
            raise row.error(f"occurs in line {first} already", columns[0])
    return rows


# What pandas reads as a missing value, and InstructEval's MMLU therefore prints as "nan".
MISSING = {
    *("", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "n/a", "NULL", "null", "None"),
    *("NaN", "nan", "-NaN", "-nan", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"),
}
PLEASE = (
    "Please complete the following Python code without providing any additional tasks such as "
    "testing or explanations\n"
)
# The three examples that CRASS's paper (Frohberg & Binder, LREC 2022) gives, as InstructEval's
# shots have them.
CRASS_SHOTS = (
    "A feather falls from a skyscraper. "
    "What would have happened if a computer had fallen from the skyscraper?\n"
    "A. The computer would have remained intact.\nB. That is not possible.\n"
    "C. The computer would have been crushed.\nAnswer: C\n\n",
    "A lightning hits a tree. What would have happened if a marble would have hit the tree?\n"
    "A. It would have burned down.\nB. Nothing special would have happened.\n"
    "C. The tree would have kissed the lightning.\nAnswer: B\n\n",
    "A man drinks a beer. What would have happened if the man had drunk a rainbow?\n"
    "A. It would have been tasty.\nB. It would have been awful.\nC. That is not possible.\n"
    "Answer: C\n\n",
)


def read_mmlu(folder: Path) -> Questions:
    columns = ("id", "subject", "question", "choices", "answer")
    rows, shots = item_rows(folder, "mmlu", columns), shot_rows(folder, "mmlu", columns)

    def ask(row: Row) -> str:
        options = ["nan" if o in MISSING else o for o in texts(row, "choices", 4, 4)]
        return row.text("question") + _lettered(options)

    few = _few(shots, "subject", 5, lambda r: f"{ask(r)} {letter(r, 'answer', 4)}\n\n")
    items = [
        Question(r.text("id"), ask(r), letter(r, "answer", 4), _group(r, "subject", few))
        for r in rows
    ]
    header = "The following are multiple choice questions (with answers) about {}.\n\n"
    # The subject comes with a space of its own: two in a row.
    headers = {s: header.format(" " + s.replace("_", " ")) for s in few}
    return Questions(tuple(items), _files(rows, shots), few, headers)


def read_bbh(folder: Path) -> Questions:
    columns = ("id", "task", "input", "target")
    rows, shots = item_rows(folder, "bbh", columns), shot_rows(folder, "bbh", columns)

    def ask(row: Row) -> str:
        return row.text("input") + "\nAnswer:"

    few = _few(shots, "task", 3, lambda r: f"{ask(r)} {r.text('target')}\n\n")
    used = {r.text("id") for r in shots}  # where the items are the whole files
    items = [
        Question(r.text("id"), ask(r), r.text("target"), _group(r, "task", few))
        for r in rows
        if r.text("id") not in used
    ]
    return Questions(tuple(items), _files(rows, shots), few)


def read_drop(folder: Path) -> Questions:
    columns = ("id", "passage", "question", "answer")
    rows, shots = item_rows(folder, "drop", columns), shot_rows(folder, "drop", columns)

    def ask(row: Row) -> str:
        return f"{row.text('passage').strip()} {row.text('question').strip()}\nAnswer:"

    def gold(row: Row) -> str:
        return row.text("answer").strip()

    few = tuple(f"{ask(r)} {gold(r)}\n\n" for r in shots[:3])
    passages = {r.text("passage") for r in shots[:3]}
    items = [
        Question(r.text("id"), ask(r), gold(r)) for r in rows if r.text("passage") not in passages
    ]
    return Questions(tuple(items), _files(rows, shots), {"": few})


def read_crass(folder: Path) -> Questions:
    """With `answer` (a letter) the options stand as they are to be asked; without, the first is
    right and they are shuffled here, in file order, as InstructEval shuffles them."""
    rows = item_rows(folder, "crass", ("id", "premise", "question", "options"))
    random, items = Random(0), list[Question]()
    for row in rows:
        options = texts(row, "options", 3, 4)
        if "answer" in row.values:
            gold = letter(row, "answer", len(options))
        else:
            order = list(range(len(options)))
            random.shuffle(order)
            options, gold = [options[i] for i in order], "ABCD"[order.index(0)]
        asked = f"{row.text('premise').strip()} {row.text('question').strip()}"
        items.append(Question(row.text("id"), asked + _lettered(options), gold))
    return Questions(tuple(items), _files(rows), {"": CRASS_SHOTS})


def read_humaneval(folder: Path) -> Questions:
    columns = ("task_id", "prompt", "entry_point", "test")
    rows = item_rows(folder, "humaneval", columns)
    items = [
        Question(
            r.text("task_id"),
            PLEASE + r.text("prompt"),
            "",
            program=Program(r.text("prompt"), r.text("test"), r.text("entry_point")),
        )
        for r in rows
    ]
    return Questions(tuple(items), _files(rows))


def read_gsm8k(folder: Path) -> Questions:
    rows = item_rows(folder, "gsm8k", ("id", "question", "target"))
    shots = shot_rows(folder, "gsm8k", ("id", "question", "answer"))

    def ask(row: Row) -> str:
        return f"Question: {row.text('question')}\nAnswer:"

    few = tuple(f"{ask(r)} {r.text('answer')}\n\n" for r in shots[:5])
    items = [Question(r.text("id"), ask(r), _number(r, "target")) for r in rows]
    return Questions(tuple(items), _files(rows, shots), {"": few})


def read_fpb(folder: Path) -> Questions:
    rows = item_rows(folder, "fpb", ("id", "instruction", "input", "output"))
    items = [
        Question(
            r.text("id"),
            f"Instruction: {r.text('instruction')}\nInput: {r.text('input')}\nAnswer: ",
            _one_of(r, "output", SENTIMENTS),
        )
        for r in rows
    ]
    return Questions(tuple(items), _files(rows))


def read_pubmedqa(folder: Path) -> Questions:
    rows = item_rows(folder, "pubmedqa", ("id", "question", "context", "answer"))
    items = [
        Question(
            r.text("id"),
            f"Abstract: {r.text('context')}\nQuestion: {r.text('question')}\nAnswer:",
            _one_of(r, "answer", VERDICTS),
        )
        for r in rows
    ]
    return Questions(tuple(items), _files(rows))


def _lettered(options: Sequence[str]) -> str:
    lines = (f"\n{name}. {text}" for name, text in zip("ABCD", options, strict=False))
    return "".join(lines) + "\nAnswer:"


def _few(
    rows: Sequence[Row], column: str, most: int, shown: Callable[[Row], str]
) -> dict[str, tuple[str, ...]]:
    """Each group's first so many."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row.text(column), []).append(shown(row))
    return {group: tuple(few[:most]) for group, few in groups.items()}


def _group(row: Row, column: str, few: Mapping[str, object]) -> str:
    group = row.text(column)
    if group not in few:
        raise row.error("has no shots in the file of shots", column)
    return group


def _one_of(row: Row, column: str, known: Sequence[str]) -> str:
    value = row.text(column)
    if value not in known:
        raise row.error(f"must be one of {', '.join(known)}", column)
    return value


def _number(row: Row, column: str) -> str:
    value = row.label(column)
    if not NUMBER.fullmatch(value):
        raise row.error("must be a number", column)
    return value


def _files(*tables: Sequence[Row]) -> tuple[Path, ...]:
    return tuple(rows[0].path for rows in tables)
