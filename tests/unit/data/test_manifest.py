"""A manifest rebuilds the split it was made from, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsdr.data.manifest import (
    ManifestInfo,
    apply_manifest,
    read_manifest,
    row_digest,
    source_of,
    write_manifest,
)
from fedsdr.errors import DataError, RunError
from fedsdr.types import ClientData, Example, Message

INFO = ManifestInfo({"method": "iid", "clients": 2, "alpha": 0.5, "column": None}, seed=7)
ROWS = tuple(Example(f"id{i}", f"secret question {i}", f"secret answer {i}") for i in range(12))
CLIENTS = (
    ClientData("a", ROWS[0:4], ROWS[4:5], ROWS[5:6]),
    ClientData("b", ROWS[6:9], (), ROWS[9:11]),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "partition.json"
    write_manifest(target, CLIENTS[::-1], INFO)
    return target


def test_the_digest_is_that_of_the_documented_content() -> None:
    row = Example("x", "p", "é", system="s", history=(Message("user", "u"),))
    text = '["s",[["user","u"]],"p","é"]'
    assert row_digest(row) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"id": "other", "domain": "d", "origin": "o"}, True),
        ({"prompt": "p "}, False),
        ({"response": "R"}, False),
        ({"system": "s"}, False),
        ({"history": (Message("user", "u"),)}, False),
        ({"prompt": "pr", "response": ""}, False),
    ],
)
def test_the_digest_covers_what_is_trained_on_only(change: dict[str, Any], same: bool) -> None:
    row = Example("x", "p", "r")
    assert (row_digest(dataclasses.replace(row, **change)) == row_digest(row)) is same


def test_a_shuffled_source_yields_the_same_clients_in_the_same_order(path: Path) -> None:
    rows = list(ROWS)
    random.Random(1).shuffle(rows)
    applied = apply_manifest(read_manifest(path), rows)
    assert applied.clients == CLIENTS
    assert applied.unused == 1


def test_what_is_written_is_read_back_and_holds_no_text(path: Path) -> None:
    assert read_manifest(path).info == INFO
    text = path.read_text()
    assert "secret" not in text
    assert "id0" not in text
    assert [item.name for item in path.parent.iterdir()] == ["partition.json"]
    again = path.with_name("again.json")
    write_manifest(again, CLIENTS, INFO)
    assert again.read_bytes() == path.read_bytes()


def test_sources_are_names_without_folders_and_digests(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"abc")
    source = source_of(file)
    assert (source.name, source.sha256) == ("rows.jsonl", hashlib.sha256(b"abc").hexdigest())
    target = tmp_path / "m.json"
    write_manifest(target, CLIENTS, dataclasses.replace(INFO, sources=(source,)))
    assert read_manifest(target).info.sources == (source,)
    assert str(tmp_path) not in target.read_text()
    with pytest.raises(DataError, match="no such file"):
        source_of(tmp_path / "gone.jsonl")


def test_rows_of_equal_content_are_counted(tmp_path: Path) -> None:
    twins = tuple(Example(f"t{i}", "same", "same") for i in range(3))
    target = tmp_path / "m.json"
    write_manifest(target, (ClientData("a", twins[:2]), ClientData("b", twins[2:])), INFO)
    manifest = read_manifest(target)
    applied = apply_manifest(manifest, twins)
    assert [client.train for client in applied.clients] == [twins[:2], twins[2:]]
    assert apply_manifest(manifest, twins * 2).unused == 3
    with pytest.raises(DataError, match="1 of its rows"):
        apply_manifest(manifest, twins[:2])


def test_missing_and_altered_rows_are_refused(path: Path) -> None:
    manifest = read_manifest(path)
    with pytest.raises(DataError, match="2 of its rows") as caught:
        apply_manifest(manifest, ROWS[2:])
    assert row_digest(ROWS[0])[:12] in str(caught.value)
    assert "and 1 of the rows given are not in it" in str(caught.value)
    altered = (dataclasses.replace(ROWS[0], response="changed"), *ROWS[1:])
    with pytest.raises(DataError, match=r"1 of its rows.*and 2 of the rows given") as caught:
        apply_manifest(manifest, altered)
    assert "changed" not in str(caught.value)
    assert "secret" not in str(caught.value)


def at(*keys: str | int, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("format", to="other"), "'format'"),
        (at("version", to=2), "'version'"),
        (at("made", to=None), "'made'"),
        (at("made", "seed", to="7"), r"'made\.seed'"),
        (at("made", "seed", to=True), r"'made\.seed'"),
        (at("made", "spec", "method", to=[]), r"'made\.spec\.method'"),
        (at("made", "sources", to=[{"name": 3}]), r"'made\.sources\[0\]\.name'"),
        (at("made", "sources", to=[{"name": "x", "sha256": "0"}]), r"sources\[0\]\.sha256'"),
        (at("clients", to={}), "'clients'"),
        (at("clients", 1, to=[]), r"'clients\[1\]'"),
        (at("clients", 1, "client_id", to="../x"), r"'clients\[1\]\.client_id'"),
        (at("clients", 1, "client_id", to="b\n"), r"'clients\[1\]\.client_id'"),
        (at("clients", 1, "client_id", to="a"), "occurs twice"),
        (at("clients", 1, "client_id", to="A"), "two clients would be called"),
        (at("clients", 0, "train", to=None), r"'clients\[0\]\.train'"),
        (at("clients", 0, "train", 2, to="Z" * 64), r"'clients\[0\]\.train\[2\]'"),
        (at("clients", 0, "test", 0, to=3), r"'clients\[0\]\.test\[0\]'"),
    ],
)
def test_a_malformed_manifest_names_file_and_field(
    path: Path, change: Callable[[Any], None], message: str
) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert "partition.json" in str(caught.value) or "two clients" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "must be an object"), ("{", "line 1, column 2.*not valid JSON"), ("", "is empty")],
)
def test_a_file_that_is_no_manifest_is_refused(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_a_place_that_cannot_be_written_and_an_unsafe_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"client id '\.\./x'"):
        write_manifest(tmp_path / "m.json", (ClientData("../x", ROWS),), INFO)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "no").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        write_manifest(tmp_path / "no" / "m.json", CLIENTS, INFO)


def test_it_is_written_through_no_link_and_for_its_user_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    for name in ("m.json", "m.json.part"):
        (tmp_path / name).symlink_to("theirs")
    write_manifest(tmp_path / "m.json", CLIENTS, INFO)
    assert (tmp_path / "theirs").read_text() == "precious"
    assert not (tmp_path / "m.json").is_symlink()
    assert (tmp_path / "m.json").stat().st_mode & 0o777 == 0o600
