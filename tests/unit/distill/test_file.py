"""A rewritten file has the format, shape and columns of the first; only responses differ."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.data.formats import read_table
from fedsdr.distill.rewrite import write_rewritten
from fedsdr.errors import DataError

NEW = ['one, "new"\nline', "zwei\u2028 ✓"]


def rewritten(path: Path, columns: dict[str, str] | None = None) -> Path:
    to = path.with_name(f"rewritten{path.suffix}")
    write_rewritten(read_table(path, columns=columns), NEW, to)
    assert to.stat().st_mode & 0o077 == 0
    again = read_table(to, columns=columns)
    assert [e.response for e in again.examples] == NEW
    first = read_table(path, columns=columns)
    assert [e.prompt for e in again.examples] == [e.prompt for e in first.examples]
    assert again.shape == first.shape
    return to


ROWS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [
        {
            "instruction": "Add.",
            "input": f"{i}",
            "output": "old",
            "score": i / 3,
            "tags": ["x", None],
        }
        for i in range(2)
    ],
    "messages": [
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": f"{i}?"},
                {"role": "assistant", "content": "old", "weight": 1},
            ],
            "source": "here",
        }
        for i in range(2)
    ],
    "sharegpt": [
        {"id": i, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}
        for i in range(2)
    ],
    "columns": [{"question": "Wer?", "answer": "old", "n": None} for _ in range(2)],
}


def expected(shape: str) -> list[dict[str, Any]]:
    rows = json.loads(json.dumps(ROWS[shape]))
    for row, text in zip(rows, NEW, strict=True):
        if shape == "messages":
            row["messages"][-1]["content"] = text
        elif shape == "sharegpt":
            row["conversations"][-1]["value"] = text
        else:
            row["output" if shape == "alpaca" else "answer"] = text
    return rows


@pytest.mark.parametrize("shape", ROWS)
def test_lines_of_json(shape: str, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[shape]))
    to = rewritten(tmp_path / "d.jsonl")
    assert [json.loads(line) for line in to.read_text().split("\n") if line] == expected(shape)


def test_a_list_and_what_it_stood_in(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(ROWS["alpaca"]))
    assert json.loads(rewritten(tmp_path / "d.json").read_text()) == expected("alpaca")
    (tmp_path / "e.json").write_text(json.dumps({"v": 2, "data": ROWS["alpaca"], "by": {"a": 1}}))
    whole = json.loads(rewritten(tmp_path / "e.json").read_text())
    assert whole == {"v": 2, "data": expected("alpaca"), "by": {"a": 1}}


def test_cells(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('n,frage,antwort\n1,"a, b",old\n2,"c\nd",old\n')
    to = rewritten(tmp_path / "d.csv", {"prompt": "frage", "response": "antwort"})
    with to.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["n", "frage", "antwort"], ["1", "a, b", NEW[0]], ["2", "c\nd", NEW[1]]]


@pytest.mark.parametrize("shape", ROWS)
def test_parquet_keeps_its_types(shape: str, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    first = arrow.Table.from_pylist(ROWS[shape])
    parquet.write_table(first, tmp_path / "d.parquet")
    made = parquet.read_table(rewritten(tmp_path / "d.parquet"))
    assert made.schema.equals(first.schema)
    wanted = arrow.Table.from_pylist(expected(shape), schema=first.schema)
    assert made.to_pylist() == wanted.to_pylist()


def test_a_file_that_changed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS["alpaca"]))
    table = read_table(path)
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match="changed while it was rewritten"):
        write_rewritten(table, NEW, tmp_path / "out.jsonl")
