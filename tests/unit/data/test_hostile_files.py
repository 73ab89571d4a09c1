"""Files that hang, burst or lie: refused in words within seconds, or read for what they say."""

from __future__ import annotations

import json
import os
import resource
import socket
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attack import Outcome, attempt
from fedsdr.data.files import parquet_rows, read_rows
from fedsdr.data.formats import Table, read_table
from fedsdr.data.manifest import read_manifest, source_of
from fedsdr.errors import DataError
from fedsdr.evaluate.benchmarks.results import read_results_file
from fedsdr.evaluate.diagnostics.faithfulness import paired, read_pairs
from fedsdr.jobs.sources import load_federation
from fedsdr.recipe.settings import build_recipe
from fedsdr.types import Example

ROW = {"prompt": "What?", "response": "That."}
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def line(**more: Any) -> str:
    return json.dumps({**ROW, **more}) + "\n"


def x(value: str) -> str:
    """A row with an unused column, as text."""
    return f'{{"prompt": "a", "response": "b", "x": {value}}}'


def only(table: Table) -> Example:
    (example,) = table.examples
    return example


def refusal(outcome: Outcome, *words: str) -> None:
    assert outcome.kind == "refused", outcome
    for word in words:
        assert word in outcome.text


# --- what stands where a file should ---


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the whole path may be longer than a socket's can be
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 10**9)


THERE: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "a named pipe": (fifo, "is a named pipe, not a file"),
    "a socket": (unix_socket, "a socket"),
    "a device": (zeros, "is a device, not a file"),
    "a folder": (Path.mkdir, "is a directory, not a file"),
    "a hole of 3 GB": (hole, "3 GB, more than the"),
}


def by_recipe(path: Path, **data: Any) -> object:
    return load_federation(build_recipe({"data": data}))


READ: Mapping[str, Callable[[Path], object]] = {
    "table": read_table,
    "manifest": read_manifest,
    "digest": source_of,
    "data.file": lambda path: by_recipe(path, file=str(path)),
    "data.files": lambda path: by_recipe(path, files={"a": str(path)}),
    "data.manifest": lambda path: by_recipe(path, atlas={}, manifest=str(path)),
    "results": read_results_file,
    "pairs": read_pairs,
}


@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("there", THERE)
def test_what_is_no_file_is_named_and_never_waited_for(
    there: str, read: str, tmp_path: Path
) -> None:
    make, words = THERE[there]
    path = tmp_path / "d.jsonl"
    make(path)
    outcome = attempt(lambda: READ[read](path), 5)
    if (there, read) == ("a folder", "pairs"):
        words = "there is no .jsonl file in this folder"
    refusal(outcome, "d.jsonl", words)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_looks_first(suffix: str, tmp_path: Path) -> None:
    for name, (make, words) in THERE.items():
        path = tmp_path / f"{name}{suffix}"
        make(path)
        refusal(attempt(lambda p=path: read_table(p), 5), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a" * 300 + ".jsonl", "longer than a disk can hold"),
        ("~no-such-user-here/d.jsonl", "there is no user of that name"),
        ("d\0.jsonl", "NUL"),
    ],
)
def test_a_text_that_is_no_path_is_refused(text: str, words: str, tmp_path: Path) -> None:
    for data in (
        {"file": text},
        {"files": {"a": text}},
        {"atlas": {}, "manifest": text},
    ):
        refusal(attempt(lambda d=data: load_federation(build_recipe({"data": d}))), words)
    for path in (tmp_path / ("a" * 300 + ".jsonl"), tmp_path / "d\0.jsonl"):
        refusal(attempt(lambda p=path: read_table(p)), "cannot be read")
        refusal(attempt(lambda p=path: read_pairs(p)), "cannot be read")


# --- size ---


def grown(action: Callable[[], object]) -> Callable[[], int]:
    """Kilobytes by which the process grew while an action was refused."""

    def measured() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DataError):
            action()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    return measured


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_line_of_100_mb_is_not_read_to_its_end(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"d{suffix}"
    with path.open("w") as file:
        file.write("prompt,response\na,b\n" if suffix == ".csv" else line() + line())
        for _ in range(100):
            file.write("x" * 10**6)
    refusal(attempt(lambda: read_table(path)), "line 3", "longer than the 10 MB")
    outcome = attempt(grown(lambda: read_table(path)))
    assert outcome.kind == "returned", outcome
    assert outcome.value < 80_000


def test_a_csv_record_of_many_lines_is_bounded_as_one_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    with path.open("w") as file:
        file.write('prompt,response\na,"')
        for _ in range(11):
            file.write(("y" * 99 + "\n") * 10**4)
    refusal(attempt(lambda: read_table(path)), "longer than the 10 MB")


def test_a_long_field_is_no_fault_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(f"prompt,response\na,{'b' * 500_000}\n")
    assert len(only(read_table(tmp_path / "d.csv")).response) == 500_000


@pytest.mark.parametrize(
    ("name", "text", "good"),
    [
        ("d.json", "[" + "[]," * 999 + "[]]", f"[{line()}]"),
        ("d.json", "[" + "{}," * 999 + "{}]", f"[{line()}]"),
        ("d.jsonl", line(x=[[]] * 200) * 5, line(x=[[]] * 200)),
        ("d.csv", "prompt,response\n" + "a,b\n" * 300, "prompt,response\n" + "a,b\n" * 9),
    ],
    ids=["lists", "objects", "lists in lines", "cells"],
)
def test_more_values_than_memory_should_hold_are_refused(
    name: str, text: str, good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsdr.data.files.MOST_VALUES", 1000)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="more than"):
        read_rows(tmp_path / name)
    (tmp_path / name).write_text(good)
    assert read_rows(tmp_path / name)


def test_rows_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.jsonl").write_text(line() * 11)
    monkeypatch.setattr("fedsdr.data.files.MOST_ROWS", 11)
    assert len(read_rows(tmp_path / "d.jsonl")) == 11
    monkeypatch.setattr("fedsdr.data.files.MOST_ROWS", 10)
    with pytest.raises(DataError, match="more than 10 rows"):
        read_rows(tmp_path / "d.jsonl")


# --- JSON that means two things, or none ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "response": "b", "response": "c"}', "'response' is given twice"),
        ('{"prompt": "a", "response": "b", "x": {"y": 1, "y": 1}}', "'y' is given twice"),
        ('{"messages": [{"role": "user", "role": "user", "content": "a"}]}', "'role' is given"),
        (line(score=float("nan")), "NaN is no value"),
        (line(score=float("-inf")), "-Infinity is no value"),
        (x("1e999"), "a number is too large"),
        ('{"prompt": "a", "response": "b", "x": %s}'.replace("%s", "9" * 5000), "too many digits"),
        (x("[" * 65 + "]" * 65), "nested more than"),
        (x("[" * 10**6), "nested more than"),
        (x('{"a":' * 950 + "1" + "}" * 950), "nested"),
        ('{"prompt": "a", "response": "b", "\\ud800": 1}', "half of a surrogate pair"),
        ('{"prompt": "a", "response": "b", "x": [["\\uDFFF"]]}', "field 'x': holds half"),
        ("[1]", "must be an object"),
        ("7", "must be an object"),
    ],
)
def test_ambiguous_json_is_refused_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(line() + text)
    refusal(attempt(lambda: read_table(path)), "d.jsonl, line 2", words)
    whole = tmp_path / "d.json"
    whole.write_text(f"[{line()}, {text}]")
    refusal(attempt(lambda: read_table(whole)), "d.json", words)


def test_deep_but_bounded_json_and_whole_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(x("[" * 62 + "]" * 62).replace('"a"', '"\\ud83d\\ude00"'))
    assert only(read_table(path)).prompt == "\U0001f600"


def test_a_manifest_that_says_something_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"format": "fedsdr-partition", "version": 1, "version": 1}')
    refusal(attempt(lambda: read_manifest(path)), "'version' is given twice")


# --- Parquet ---


def parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path


ODD: Mapping[str, Any] = {
    "seconds": pa.array([1], pa.timestamp("s")),
    "nanoseconds": pa.array([2**62 + 1], pa.timestamp("ns", tz="UTC")),
    "no such zone": pa.array([1], pa.timestamp("us", tz="Nowhere/Land")),
    "year 292278": pa.array([2**63 - 1], pa.timestamp("ms")),
    "duration": pa.array([2**62 + 1], pa.duration("ns")),
    "date": pa.array([2**31 - 1], pa.date32()),
    "time": pa.array([1], pa.time64("ns")),
    "decimal": pa.array([Decimal("1.5")]),
    "bytes": pa.array([b"\xff"]),
    "fixed": pa.array([b"\xff\xfe"], pa.binary(2)),
    "struct": pa.array([{"a": 1}]),
    "list": pa.array([[b"\xff"]]),
    "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    "nulls": pa.nulls(1),
}
GOOD: Mapping[str, Any] = {"prompt": ["What?"], "response": ["That."]}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_column_matters_only_where_it_is_used(name: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", {**GOOD, "x": ODD[name]})
    table = read_table(path)
    assert (only(table).prompt, only(table).response) == ("What?", "That.")
    assert table.columns == ("prompt", "response", "x")
    used = attempt(lambda: read_table(path, columns={"response": "x"}))
    refusal(
        used, "d.parquet, row 1, field 'x'", "is missing" if name == "nulls" else "must be text"
    )
    turns = parquet(tmp_path / "t.parquet", {"messages": ODD[name]})
    refusal(attempt(lambda: read_table(turns)), "t.parquet, row 1, field 'messages")


def test_turns_with_more_than_roles_and_texts_are_read(tmp_path: Path) -> None:
    said = [("user", "What?"), ("assistant", "That.")]
    turns = [{"role": r, "content": c, "at": Decimal(1), "seen": b"\xff"} for r, c in said]
    path = parquet(tmp_path / "d.parquet", {"messages": [turns]})
    assert (only(read_table(path)).prompt, only(read_table(path)).response) == ("What?", "That.")


def test_text_kept_as_a_dictionary_is_text(tmp_path: Path) -> None:
    kept = {name: pa.array(value).dictionary_encode() for name, value in GOOD.items()}
    assert only(read_table(parquet(tmp_path / "d.parquet", kept))).response == "That."


def test_text_that_is_no_utf8_matters_only_where_it_is_used(tmp_path: Path) -> None:
    raw = pa.array([b"\xff\xfe"], pa.binary())
    wrong = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    path = parquet(tmp_path / "d.parquet", {**GOOD, "x": wrong})
    assert only(read_table(path)).response == "That."
    refusal(attempt(lambda: read_table(path, columns={"prompt": "x"})), "not valid UTF-8")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])],
        names=["prompt", "response", "response"],
    )
    pq.write_table(twice, tmp_path / "d.parquet")
    refusal(attempt(lambda: read_table(tmp_path / "d.parquet")), "'response' occurs twice")


def test_columns_with_dots_are_taken_by_their_whole_names(tmp_path: Path) -> None:
    columns = {"a.b": ["What?"], "a": ["That."], "a.b.c": pa.array([1], pa.timestamp("s"))}
    path = parquet(tmp_path / "d.parquet", columns)
    found = only(read_table(path, columns={"prompt": "a.b", "response": "a"}, shape="columns"))
    assert (found.prompt, found.response) == ("What?", "That.")


def test_no_row_groups_are_no_rows(tmp_path: Path) -> None:
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string())])
    with pq.ParquetWriter(tmp_path / "d.parquet", schema):
        pass
    refusal(attempt(lambda: read_table(tmp_path / "d.parquet")), "has no rows")


def test_what_a_few_bytes_expand_to_is_bounded(tmp_path: Path) -> None:
    """A text of 20 MB a thousand times; three million rows, and fifty million cells, of nothing."""
    long = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1000, pa.int32()), pa.array(["x" * 20_000_000])
    )
    columns = {"prompt": long, "response": pa.array(["a"] * 1000)}
    for kept in (True, False):  # as a dictionary, or as the text that it stands for
        many = parquet(tmp_path / "d.parquet", columns, compression="zstd", store_schema=kept)
        assert many.stat().st_size < 100_000
        refusal(attempt(lambda p=many: read_table(p), 30), "is longer than the 10 MB")
    empty = parquet(
        tmp_path / "empty.parquet", {"prompt": pa.nulls(3_000_000), "response": pa.nulls(3_000_000)}
    )
    refusal(attempt(lambda: read_table(empty)), "more than 2,000,000 rows")
    wide = parquet(
        tmp_path / "wide.parquet", {f"c{i}": pa.nulls(1_000_000, pa.int8()) for i in range(50)}
    )
    refusal(attempt(lambda: read_table(wide)), "more than 20,000,000 cells")


def test_a_damaged_footer_is_said_to_be_one(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d.parquet", GOOD)
    data = path.read_bytes()
    for damaged in (
        data[:-1],
        data[:-8] + b"\xff" * 4 + b"PAR1",
        b"PAR1" * 3,
        data[: len(data) // 2],
    ):
        path.write_bytes(damaged)
        refusal(attempt(lambda: read_table(path)), "is not a readable Parquet file")


def test_fewer_rows_than_a_footer_says_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "d.parquet", {k: v * 100 for k, v in GOOD.items()})
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **b: list(whole(*a, **b))[:1])
    with pytest.raises(DataError, match="says that it has 100 rows, and has 64"):
        list(parquet_rows(path))


# --- columns and ids ---


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "a", "response": "a"}, "column 'a' would be both the"),
        ({"prompt": "a", "response": "b", "system": "a"}, "both the"),
        ({"prompt": "a", "response": "b", "id": "b"}, "both the"),
        ({"prompt": "a", "response": "b", "id": "c", "domain": "c"}, "both the"),
        ({"prompt": "a", "response": "gone"}, "there is no column 'gone'"),
    ],
)
def test_a_column_is_one_thing(columns: dict[str, str], words: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"a": "1", "b": "2", "c": "3"}\n')
    refusal(attempt(lambda: read_table(path, columns=columns)), words)


def test_a_pair_belongs_to_one_row(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line(id="x"))
    pairs = read_pairs(path)
    clients = {name: [Example("x", name, name)] for name in ("a", "b")}
    with pytest.raises(DataError, match=r"id of a row of client 'a' and of one of 'b'"):
        paired(clients, pairs)
    assert len(paired({"a": clients["a"]}, pairs)["a"]) == 1
