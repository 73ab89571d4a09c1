"""Damaged data files of every format: refused in words, or read for exactly what they say.

A valid file is made, then changed by bytes and by structure. What is accepted is read once more by
plain means, dealt to clients without a row lost, and written again with other answers.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attack import Tally, attempt, how_many
from fedsdr.data.formats import TURN_KEYS, Table, read_table
from fedsdr.data.partition import PartitionSpec, partition
from fedsdr.distill.rewrite import write_rewritten
from fedsdr.errors import FedsdrError

SECONDS = 30.0  # of a busy machine: a case takes a tenth of one
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Rows = list[dict[str, Any]]
WORDS = (
    "dose",
    "Marudel",
    "40 mg",
    "Ärzte",
    "\U0001f600",
    'say "a"',
    "one, two",
    "line\nfeed",
    "\r",
    "=1+1",
)
TEXTS: tuple[Any, ...] = (
    "",
    " ",
    "\u200b",
    "\ufeff",
    "\0",
    "\u2028",
    "x" * 2000,
    "null",
    "NaN",
    "\ud800",
    "\x85",
)
VALUES: tuple[Any, ...] = (
    *TEXTS, None, True, 0, -1, 2**63, 10**400, 1.5, 1e308, math.nan, math.inf, [], {}, [[]], [None],
    {"role": "user"}, [{"role": "user", "content": "a"}], [{"from": "gpt", "value": "b"}], ["a", 1],
)  # fmt: skip
RAW = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\r", b'"', b"{", b"}", b"[", b"]", b",", b":",
    b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b"\\",
    b"\n\n", b"\xe2\x80\xa8", b"\xc3", b"nul", b'"id": "x", "id": "y", ', b"PAR1", b";", b"\t",
    b"''", b'{"a":' * 70,
)  # fmt: skip


def rows_of(random: Random, suffix: str) -> tuple[str, Rows]:
    """Rows of one shape, in order."""
    flat = ("columns", "alpaca")
    shape = random.choice(flat if suffix == ".csv" else (*flat, "messages", "sharegpt"))

    def text() -> str:
        return " ".join(random.choices(WORDS, k=random.randint(1, 5))).strip() or "x"

    made = Rows()
    for number in range(random.randint(1, 12)):
        if shape == "columns":
            row: dict[str, Any] = {"question": text(), "answer": text()}
        elif shape == "alpaca":
            row = {"instruction": text(), "input": random.choice(("", text())), "output": text()}
        else:
            role, said = TURN_KEYS[shape]
            names = ("user", "assistant") if shape == "messages" else ("human", "gpt")
            turns = [{role: names[i % 2], said: text()} for i in range(2 * random.randint(1, 3))]
            row = {"messages" if shape == "messages" else "conversations": turns}
        row |= {"id": f"r{number}", "topic": random.choice("abc")}
        made.append({**row, "extra": random.choice((1, 2, 3))})
    return shape, made


def changed(random: Random, rows: Rows) -> Rows:
    """By structure."""
    rows = json.loads(json.dumps(rows))
    for _ in range(random.choice((0, 0, 1, 1, 3))):
        row = random.choice(rows)
        keys = list(row)
        match random.randrange(8):
            case 0 if len(keys) > 1:
                row.pop(random.choice(keys))
            case 1 if keys:
                row[random.choice(keys)] = random.choice(VALUES)
            case 2:
                row[
                    random.choice(
                        ("prompt", "response", "messages", "system", "", "a.b", "x" * 300, "\ud800")
                    )
                ] = random.choice(VALUES)
            case 3:
                rows.append(json.loads(json.dumps(row)))
            case 4:
                turns = next((v for v in row.values() if isinstance(v, list) and v), None)
                if turns is not None:
                    random.choice((turns.reverse, turns.clear, turns.pop))()
            case 5:
                turns = next((v for v in row.values() if isinstance(v, list) and v), None)
                if turns is not None and isinstance(turn := random.choice(turns), dict) and turn:
                    turn[random.choice(list(turn))] = random.choice((*VALUES, "system", "tool"))
            case 6:
                for other in rows:
                    other[random.choice(("extra", "topic"))] = random.choice(VALUES)
            case _:
                for other in rows:
                    other["more"] = random.choice(TEXTS)
    return rows


def bytes_of(random: Random, suffix: str, rows: Rows) -> bytes:
    if suffix == ".parquet":
        return parquet_of(random, rows)
    if suffix == ".csv":
        out = io.StringIO(newline="")
        header = list(dict.fromkeys(key for row in rows for key in row))
        cut = random.choice((*",,,,,,,,", ";", "\t"))
        ends = random.choice(("\n", "\r\n", "\r"))
        writer = csv.writer(out, delimiter=cut, lineterminator=ends)
        writer.writerow(header)
        writer.writerows([row.get(key, "") for key in header] for row in rows)
        return out.getvalue().encode(errors="surrogatepass")
    lines = [json.dumps(row, ensure_ascii=random.random() < 0.7) for row in rows]
    if random.random() < 0.15:  # a key twice, which no mapping can hold
        at = random.randrange(len(lines))
        lines[at] = lines[at].replace("{", random.choice(('{"id": 1, ', '{"extra": [], ')), 1)
    text = "\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]"
    if suffix == ".json" and random.random() < 0.3:
        text = (
            random.choice(('{"data": %s}', '{"data": %s, "v": 1}', '{"a": [], "data": %s}')) % text
        )
    return text.encode(errors="surrogatepass")


def parquet_of(random: Random, rows: Rows) -> bytes:
    """Columns whose values have no common type are left as texts of them."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    arrays = list[Any]()
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            array = pa.array(values)
            pq.write_table(pa.table({"x": array}), io.BytesIO())  # no empty struct, for one
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
            array = pa.array([ascii(v) for v in values])
        if random.random() < 0.1 and pa.types.is_string(array.type):
            array = array.dictionary_encode()
        arrays.append(array)
    names = [name.encode(errors="replace").decode() for name in names]
    if random.random() < 0.4:
        many = len(rows)
        odd = (
            pa.array([1] * many, pa.timestamp("ns", tz="UTC")),
            pa.array([b"\xff"] * many),
            pa.array([[b"\xff"]] * many),
            pa.array([{"a": 1.5}] * many),
            pa.array([1] * many, pa.decimal128(9, 2)),
            pa.array([1] * many, pa.time64("ns")),
            pa.nulls(many),
        )
        arrays.append(random.choice(odd))
        names.append(random.choice(("odd", "extra", "answer", "system", "domain")))
    out = io.BytesIO()
    size, how = random.choice((1, 3, 10**6)), random.choice(("none", "snappy", "zstd", "gzip"))
    table = pa.Table.from_arrays(arrays, names=names)
    pq.write_table(
        table, out, row_group_size=size, compression=how, use_dictionary=random.random() < 0.5
    )
    return out.getvalue()


def damaged(random: Random, data: bytes) -> bytes:
    """By bytes."""
    for _ in range(random.choice((0, 0, 0, 1, 1, 6))):
        at, to = sorted((random.randrange(len(data) + 1), random.randrange(len(data) + 1)))
        match random.randrange(7):
            case 0 if data:
                at = min(at, len(data) - 1)
                data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + random.choice(RAW) + data[at:]
            case 2:
                data = data[:at] + data[at + random.randint(1, 8) :]
            case 3:
                data = data[:at]
            case 4:
                data = data[:to] + data[at:]
            case 5:
                data = data[:-8] + random.randbytes(4) + data[-4:]
            case _:
                data = random.choice((b"\xef\xbb\xbf" + data, data + b"\n\n", data + b"\0" * 3))
    return data


# --- what a file says, read by plain means ---


def said(path: Path, columns: Sequence[str]) -> list[Mapping[str, Any]]:
    data = path.read_bytes()
    if path.suffix == ".parquet":
        return pq.ParquetFile(path).read(columns=list(columns)).to_pylist()
    text = data.decode().removeprefix("\ufeff")
    if path.suffix == ".csv":
        csv.field_size_limit(10**9)
        header, *rest = [cells for cells in csv.reader(io.StringIO(text, newline="")) if cells]
        assert {len(cells) for cells in rest} == {len(header)}
        return [dict(zip(header, cells, strict=True)) for cells in rest]
    if path.suffix == ".jsonl":
        return [plain_json(line) for line in text.split("\n") if line.strip()]
    found = plain_json(text)
    if isinstance(found, dict):
        (found,) = (v for v in found.values() if isinstance(v, list))
    return found


def plain_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), "a key twice"
        return dict(pairs)

    def never(name: str) -> float:
        raise AssertionError(name)

    return json.loads(text, object_pairs_hook=once, parse_constant=never)


def compare(table: Table) -> None:
    """Every row of the file, in its order, is an example that says what the row says."""
    rows = said(table.path, list(dict.fromkeys(table.fields.values())))
    assert len(rows) == len(table.examples)
    for row, example in zip(rows, table.examples, strict=True):
        held = {name: row.get(column) for name, column in table.fields.items()}
        if table.shape in TURN_KEYS:
            role, text = TURN_KEYS[table.shape]
            turns = list(held["turns"])
            system = turns.pop(0)[text] if turns[0][role] == "system" else ""
            assert example.system == (held.get("system") or system)
            texts = [turn[text] for turn in turns]
            assert texts == [
                *(m.content for m in example.history),
                example.prompt,
                example.response,
            ]
            assert len(texts) % 2 == 0
        else:
            given, context = held["prompt"] or "", held.get("input") or ""
            both = [part for part in (given, context) if part.strip()]
            assert example.prompt in ("\n\n".join(both), given)
            assert example.response == held["response"]
        if held.get("id") not in (None, ""):
            assert example.id == str(held["id"])


def dealt(table: Table, random: Random) -> None:
    method = random.choice(("iid", "column", "dirichlet", "quantity"))
    spec = PartitionSpec(
        method=method,
        clients=None if method == "column" else random.choice((1, 2, 5, 100)),
        column=random.choice(("topic", "extra", "id", "gone")),
        alpha=random.choice((1e-6, 0.5, 1e6)),
        validation=random.choice((0.0, 0.1, 0.9)),
        test=random.choice((0.0, 0.05)),
    )
    clients = partition(table, spec, random.randrange(9))
    assert all(client.train for client in clients)
    rows = Counter(e for c in clients for part in (c.train, c.validation, c.test) for e in part)
    assert rows == Counter(table.examples)


def written(table: Table, to: Path) -> None:
    answers = [f"answer {i}" for i, _ in enumerate(table.examples)]
    write_rewritten(table, answers, to)
    again = read_table(to, table.shape, {**table.fields})
    assert [e.response for e in again.examples] == answers
    assert [(e.system, e.history, e.prompt) for e in again.examples] == [
        (e.system, e.history, e.prompt) for e in table.examples
    ]


PLACES: tuple[Callable[[Path], object], ...] = (
    os.mkfifo,
    Path.mkdir,
    lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.symlink_to("/dev/full"),
    lambda path: path.symlink_to(path),
    lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**12),
    lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**9),
    lambda path: None,
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows(suffix: str, tmp_path: Path) -> None:
    tally, count = Tally(f"rows{suffix}"), how_many(40)
    for seed in range(count):
        random = Random(f"{suffix} {seed}")
        path, to = tmp_path / f"d{suffix}", tmp_path / f"rewritten{suffix}"
        shape, rows = rows_of(random, suffix)
        is_place = random.random() < 0.02
        if is_place:
            random.choice(PLACES)(path)
        else:
            path.write_bytes(damaged(random, bytes_of(random, suffix, changed(random, rows))))
        chosen = random.choice((None, None, shape, shape, "columns"))
        columns = random.choice((None,) * 6 + ({"prompt": "extra"}, {"domain": "topic"}))

        def action(path: Path = path, random: Random = random) -> None:
            table = read_table(path, chosen, columns)  # noqa: B023
            compare(table)
            for more in (lambda: written(table, to), lambda: dealt(table, random)):  # noqa: B023
                with suppress(FedsdrError):
                    more()

        tally.add(f"seed {seed}", attempt(action, SECONDS), may_return=not is_place)
        for left in (path, to):
            left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink(
                missing_ok=True
            )
    print(tally)
    assert tally.bad == []
    assert tally.counts["returned"] > count // 20, "an attack that is always refused shows nothing"
