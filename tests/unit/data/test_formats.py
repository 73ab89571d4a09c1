"""Reading files: every shape in every format, and every way in which a file can be wrong."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsdr.data.formats import Table, read_table
from fedsdr.errors import DataError
from fedsdr.types import Example, Message

REAL = Path(__file__).parents[3] / "../shared/data/clients"
SECRET = "Zebedee-has-gout"  # stands for record text; no message may ever hold it

ALPACA = {"instruction": "Add.", "input": "1 + 2", "output": "3"}
TURNS = [
    ("system", "Be brief."),
    ("user", "Hi"),
    ("assistant", "Ho"),
    ("user", "1?"),
    ("assistant", "2"),
]
MESSAGES = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
SHAREGPT = {
    "conversations": [
        {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}
        for role, text in TURNS
    ]
}
COLUMNS = {"question": "1 + 2?", "answer": "3"}


def write(path: Path, *rows: Mapping[str, Any]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def refused(path: Path, *parts: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    message = str(caught.value)
    for part in (path.name, *parts):
        assert part in message
    assert SECRET not in message
    return message


def the(table: Table) -> Example:
    (example,) = table.examples
    return example


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".JSONL"])
@pytest.mark.parametrize(
    ("row", "shape", "prompt"),
    [(ALPACA, "alpaca", "Add.\n\n1 + 2"), (COLUMNS, "columns", "1 + 2?")],
)
def test_flat_shapes_read_the_same_from_every_format(
    tmp_path: Path, suffix: str, row: dict[str, str], shape: str, prompt: str
) -> None:
    path = write(tmp_path / f"x{suffix.lower()}", row).rename(tmp_path / f"data{suffix}")
    table = read_table(path)
    assert (table.shape, table.columns) == (shape, tuple(row))
    assert the(table) == Example(id="data-1", prompt=prompt, response="3")
    assert table.rows == (row,)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("row", "shape"), [(MESSAGES, "messages"), (SHAREGPT, "sharegpt")])
def test_conversations_split_into_system_history_prompt_and_response(
    tmp_path: Path, suffix: str, row: dict[str, Any], shape: str
) -> None:
    table = read_table(write(tmp_path / f"chat{suffix}", row))
    assert table.shape == shape
    assert table.rows == ({},)
    assert the(table) == Example(
        id="chat-1",
        system="Be brief.",
        history=(Message("user", "Hi"), Message("assistant", "Ho")),
        prompt="1?",
        response="2",
    )


def test_labels_come_from_their_columns_and_ids_default_to_stem_and_row(tmp_path: Path) -> None:
    labels = {"id": 7, "domain": "maths", "source": "book", "system": "Be kind."}
    table = read_table(write(tmp_path / "a.jsonl", ALPACA | labels, ALPACA | {"id": None}))
    first, second = table.examples
    assert (first.id, first.domain, first.origin) == ("7", "maths", "book")
    assert first.system == "Be kind."
    assert (second.id, second.domain, second.origin, second.system) == ("a-2", "", "", "")
    assert table.fields["origin"] == "source"


def test_an_empty_input_is_not_joined_and_an_empty_instruction_yields_to_its_input(
    tmp_path: Path,
) -> None:
    rows = [ALPACA | {"input": " "}, ALPACA | {"input": None}, ALPACA | {"instruction": ""}]
    table = read_table(write(tmp_path / "a.jsonl", *rows))
    assert [example.prompt for example in table.examples] == ["Add.", "Add.", "1 + 2"]


def test_rows_hold_scalars_as_text(tmp_path: Path) -> None:
    row = COLUMNS | {"n": 3, "x": 0.5, "ok": True, "none": None, "list": [1]}
    assert read_table(write(tmp_path / "a.jsonl", row)).rows == (
        COLUMNS | {"n": "3", "x": "0.5", "ok": "true"},
    )


def test_a_mapping_names_other_columns(tmp_path: Path) -> None:
    dolly = {"instruction": "Sum?", "context": "1, 2", "response": "3", "category": "maths"}
    path = write(tmp_path / "d.jsonl", dolly)
    refused(path, "shape not known", "'context'", "alpaca (instruction, output)")
    named = {"input": "context", "response": "response", "domain": "category"}
    table = read_table(path, columns=named)
    assert table.shape == "alpaca"
    assert (the(table).prompt, the(table).domain) == ("Sum?\n\n1, 2", "maths")
    german = write(tmp_path / "g.jsonl", {"frage": "1?", "antwort": "2"})
    table = read_table(german, columns={"prompt": "frage", "response": "antwort"})
    assert (table.shape, the(table).prompt, the(table).response) == ("columns", "1?", "2")


def test_a_mapping_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ALPACA)
    refused(path, "'respons' is no field", "Did you mean 'response'", columns={"respons": "output"})
    refused(path, "no column 'outputs'", "'output'", columns={"response": "outputs"})
    refused(write(tmp_path / "m.jsonl", MESSAGES | {"t": "x"}), columns={"input": "t"})


def test_an_ambiguous_file_must_be_given_its_shape(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ALPACA | MESSAGES)
    refused(path, "messages and alpaca", "`shape`")
    assert the(read_table(path, shape="alpaca")).response == "3"
    assert the(read_table(path, shape="messages")).response == "2"
    two = write(tmp_path / "b.jsonl", COLUMNS | {"response": "4"})
    refused(two, "'response', 'answer'", "could each be the response")
    assert the(read_table(two, columns={"response": "answer"})).response == "3"
    turns = write(tmp_path / "c.jsonl", {"talk": SHAREGPT["conversations"]})
    refused(turns, "messages and sharegpt", columns={"turns": "talk"})
    assert the(read_table(turns, "sharegpt", {"turns": "talk"})).response == "2"


def test_a_forced_shape_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ALPACA)
    assert "alpaca" not in refused(path, "accepted: sharegpt (conversations)", shape="sharegpt")
    refused(path, "no shape is called 'alpacca'", shape="alpacca")


def test_byte_order_mark_crlf_blank_lines_and_line_separators_are_fine(tmp_path: Path) -> None:
    text = json.dumps(COLUMNS | {"answer": "a\u2028b\x85c"}, ensure_ascii=False)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{text}\r\n\r\n{text}".encode())
    table = read_table(path)
    assert [example.response for example in table.examples] == ["a\u2028b\x85c"] * 2
    assert [example.id for example in table.examples] == ["a-1", "a-2"]


def test_csv_cells_may_hold_commas_quotes_and_lines(tmp_path: Path) -> None:
    answer = 'one, "two"\nthree'
    table = read_table(write(tmp_path / "a.csv", COLUMNS | {"answer": answer}))
    assert the(table).response == answer


def test_a_json_object_may_wrap_the_one_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": [COLUMNS]}))
    assert the(read_table(path)).response == "3"
    path.write_text(json.dumps({"a": [COLUMNS], "b": []}))
    refused(path, "one list", "2 ('a', 'b')")
    path.write_text(json.dumps({SECRET + " said": [], "b": []}))
    refused(path, "characters>")
    path.write_text(json.dumps(ALPACA))
    refused(path, "one list", "none")
    path.write_text('"text"')
    refused(path, "list of records, not text")


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"instruction": SECRET}, ("field 'output'", "missing")),
        ({"instruction": SECRET, "output": None}, ("field 'output'", "missing")),
        ({"instruction": SECRET, "output": " \n"}, ("field 'output'", "empty")),
        ({"instruction": SECRET, "output": 3}, ("field 'output'", "not a number")),
        ({"instruction": SECRET, "output": [SECRET]}, ("field 'output'", "not a list")),
        ({"instruction": " ", "output": SECRET}, ("field 'instruction'", "empty")),
        ({"instruction": SECRET, "input": 3, "output": "x"}, ("field 'input'", "not a number")),
        ({"instruction": SECRET, "output": SECRET + "\0"}, ("field 'output'", "NUL")),
        ({"instruction": SECRET, "output": SECRET + "\ud800"}, ("field 'output'", "surrogate")),
        ({"instruction": SECRET, "output": "x", "note": "\ud800"}, ("field 'note'", "surrogate")),
        ({"instruction": SECRET, "output": "x", "id": True}, ("field 'id'", "not a boolean")),
        ({"instruction": SECRET, "output": "x", "domain": {}}, ("field 'domain'", "an object")),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(
    tmp_path: Path, row: dict[str, Any], parts: tuple[str, ...]
) -> None:
    refused(write(tmp_path / "a.jsonl", ALPACA, row), "line 2", *parts)
    refused(write(tmp_path / "a.json", ALPACA, row), "row 2", *parts)


def turns(*said: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in said]}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"messages": SECRET}, ("'messages'", "list of turns, not text")),
        ({"messages": None}, ("'messages'", "missing")),
        ({"messages": []}, ("'messages'", "end with a turn of the assistant")),
        ({"messages": [SECRET]}, ("'messages[0]'", "an object, not text")),
        (turns(("user", SECRET)), ("'messages'", "end with a turn of the assistant")),
        (turns(("system", SECRET)), ("'messages'", "end with a turn of the assistant")),
        (turns(("assistant", SECRET)), ("'messages[0].role'", "'human' or 'user'")),
        (turns(("user", SECRET), ("user", "x")), ("'messages[1].role'", "'gpt' or 'assistant'")),
        (turns(("user", "x"), ("system", SECRET)), ("'messages[1].role'", "system turn")),
        (turns(("user", "x"), (SECRET, "y")), ("'messages[1].role'",)),
        (turns((["user"], "x")), ("'messages[0].role'",)),
        (turns(("user", SECRET), ("assistant", " ")), ("'messages[1].content'", "empty")),
        (turns(("user", SECRET), ("assistant", None)), ("'messages[1].content'", "missing")),
        (turns(("user", SECRET), ("assistant", [1])), ("'messages[1].content'", "not a list")),
        ({**MESSAGES, "system": SECRET}, ("'system'", "system turn")),
    ],
)
def test_a_bad_conversation_is_named_by_line_and_turn(
    tmp_path: Path, row: dict[str, Any], parts: tuple[str, ...]
) -> None:
    refused(write(tmp_path / "a.jsonl", MESSAGES, row), "line 2, field", *parts)


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    rows = [COLUMNS | {"id": name} for name in (SECRET, "b", SECRET)]
    refused(write(tmp_path / "a.jsonl", *rows), "line 3", "field 'id'", "line 1")
    rows = [COLUMNS | {"id": "a-2"}, COLUMNS]  # a default id may not collide either
    refused(write(tmp_path / "a.jsonl", *rows), "line 2", "line 1")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": Zebedee-has-gout}\n', ("line 2, column 7", "not valid JSON")),
        ("a.jsonl", b'{"a": 1}\n["Zebedee-has-gout"]\n', ("line 2", "an object, not a list")),
        ("a.jsonl", b'{"a": 1' + b"0" * 5000 + b"}", ("line 1", "too many digits")),
        ("a.jsonl", b"[" * 200_000, ("line 1", "not valid JSON")),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', ("line 2, column 1", "name the file .jsonl")),
        ("a.json", b'[{"a": 1}, 3]', ("row 2", "an object, not a number")),
        ("a.json", b"[]", ("has no rows",)),
        ("a.csv", b"question,answer\n", ("has no rows",)),
        ("a.csv", b"question,answer\na,b\n\na,Zebedee-has-gout,c\n", ("line 4: 3 cells", "has 2")),
        ("a.csv", b'question,answer\n"a\nb",c\na\n', ("line 4: 1 cells",)),
        ("a.csv", b'question,answer\na,"Zebedee-has-gout\n', ("line 2", "not valid CSV")),
        ("a.csv", b"answer,answer\na,b\n", ("line 1", "occurs twice")),
        ("a.csv", b"question,answer\na,\n", ("line 2", "field 'answer'", "empty")),
        ("a.csv", b"Zebedee-has-gout now,b c\nd,e\n", ("<20 characters>, <3 characters>",)),
        ("a.csv", b"question;answer\na;b\n", ("separated by commas",)),
        ("a.jsonl", b'{"a": 1}\n\xff\xfe', ("line 2", "byte 9", "UTF-8")),
        ("a.csv", b"\xef\xbb\xbfa,b\n\xe9,", ("line 2", "byte 7", "UTF-8")),
        ("a.json", b'[\n{"a": "\x00"}]', ("line 2", "byte 9", "NUL")),
        ("a.jsonl", b"", ("is empty",)),
        ("a.json", b" \n", ("is empty",)),
        ("a.parquet", b"Zebedee-has-gout", ("not a readable Parquet file",)),
        ("a.parquet", b"", ("not a readable Parquet file",)),
        ("a.txt", b"x", ("extension '.txt'", ".jsonl, .json, .csv, .parquet")),
    ],
)
def test_a_bad_file_is_refused(
    tmp_path: Path, name: str, content: bytes, parts: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, *parts)


def test_a_missing_file_or_a_directory_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ALPACA)
    refused(tmp_path / "trian.jsonl", "no such file", "Did you mean 'train.jsonl'")
    refused(tmp_path / "no" / "such.jsonl", "no such file")
    (tmp_path / "dir.jsonl").mkdir()
    refused(tmp_path / "dir.jsonl", "is a directory")


def test_a_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.parquet", ALPACA, ALPACA | {"output": ""}), "row 2", "'output'")
    raw = pa.array([b"ok", b"\xff"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": ["a", "b"], "answer": raw}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "'answer'", "UTF-8")


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", ALPACA)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, "pip install 'fedsdr[parquet]'")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not here")
def test_real_clients_are_alpaca() -> None:
    tables = [read_table(path) for path in sorted(REAL.glob("*/train.jsonl"))]
    assert [(table.shape, len(table.examples)) for table in tables] == [("alpaca", 500)] * 8
    assert all(example.domain and example.origin for table in tables for example in table.examples)
