"""Drafts on disk: found again, in files of limited length, after a kill too, and at scale."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fedsdr.distill import drafts as module
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.selection import Draft
from fedsdr.errors import RunError


def many(first: int, last: int) -> dict[str, Draft]:
    return {f"k{i}": Draft(f"text {i}", i % 2 == 0) for i in range(first, last)}


def test_a_file_holds_so_many_rows_and_the_next_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 4)
    store = Drafts(tmp_path, "c0")
    store.add(many(0, 3))
    store.add(many(3, 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "c0+2.jsonl",
        "c0+3.jsonl",
        "c0.jsonl",
    ]
    again = Drafts(tmp_path, "c0")
    assert again.get([f"k{i}" for i in range(12)]) == store.get(many(0, 10)) == many(0, 10)
    again.add(many(10, 13))
    counts = [len((tmp_path / f"c0{n}.jsonl").read_text().splitlines()) for n in ("", "+2", "+3")]
    assert counts == [4, 4, 4]
    assert len((tmp_path / "c0+4.jsonl").read_text().splitlines()) == 1
    assert Drafts(tmp_path, "c0").get(many(0, 13)) == many(0, 13)
    assert "k3" not in Drafts(tmp_path, "c0+2.jsonl")
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_a_longer_file_of_an_earlier_version_is_read_and_left(tmp_path: Path) -> None:
    old = Drafts(tmp_path, "c0")
    old.add(many(0, 5))
    before = (tmp_path / "c0.jsonl").read_bytes()
    for _ in range(9):  # 1024 are too few for it
        (tmp_path / "c0.jsonl").write_bytes((tmp_path / "c0.jsonl").read_bytes() * 2)
    store = Drafts(tmp_path, "c0")
    store.add({"new": Draft("x", False)})
    assert (tmp_path / "c0.jsonl").read_bytes() == before * 512
    assert store.get(["new", "k1"]) == {"new": Draft("x", False), "k1": Draft("text 1", False)}


def test_a_text_with_odd_line_breaks_is_found_again(tmp_path: Path) -> None:
    odd = "one\u2028two\x85three\nfour \ud800 \x0c five"
    Drafts(tmp_path, "c0").add({"k": Draft(odd, False), "l": Draft("plain", True)})
    found = Drafts(tmp_path, "c0").get(["k", "l"])
    assert found == {"k": Draft(odd, False), "l": Draft("plain", True)}


@pytest.mark.parametrize("cut", range(1, 50, 7))
def test_what_a_kill_tore_is_as_if_it_had_never_been(tmp_path: Path, cut: int) -> None:
    store = Drafts(tmp_path, "c0")
    store.add(many(0, 3))
    file = tmp_path / "c0.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    again = Drafts(tmp_path, "c0")
    assert ("k2" in again) is (cut == 1)  # of which only the line's end is missing
    again.add(many(2, 4))
    assert Drafts(tmp_path, "c0").get(many(0, 4)) == many(0, 4)


def test_two_runs_that_share_a_cache_find_what_both_wrote(tmp_path: Path) -> None:
    one, other = Drafts(tmp_path, "c0"), Drafts(tmp_path, "c0")
    for i in range(6):
        (one if i % 2 else other).add(many(i, i + 1))
    assert {**one.get(many(0, 6)), **other.get(many(0, 6))} == many(0, 6)
    assert Drafts(tmp_path, "c0").get(many(0, 6)) == many(0, 6)


@pytest.mark.usefixtures("no_fsync")
def test_fifty_thousand_rows_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a row costs the same however many are there, and reads none of them."""
    text = "It is forty milligrams, twice a day. " * 5
    Drafts(tmp_path, "c0").add({f"k{i}": Draft(text, False) for i in range(50_000)})
    began = time.process_time()
    store = Drafts(tmp_path, "c0")
    opened = time.process_time() - began
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda h, n, at: read.append(n) or pread(h, n, at))
    began = time.process_time()
    for i in range(2000):
        store.add({f"new{i}": Draft(text, False)})
    added = time.process_time() - began
    assert opened < 10
    assert added < 10
    assert sum(read) <= 2000
    assert len(list(tmp_path.iterdir())) == 51  # of 1024 rows each
    assert len(store.get(f"k{i}" for i in range(0, 50_000, 7))) == 7143


def test_what_cannot_be_stored_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "c0.jsonl").mkdir()
    with pytest.raises(RunError, match=r"c0\.jsonl: rewrites cannot be stored"):
        Drafts(tmp_path, "c0").add(many(0, 1))
    (tmp_path / "c1.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"c1\.jsonl: rewrites cannot be stored"):
        Drafts(tmp_path, "c1").add(many(0, 1))
