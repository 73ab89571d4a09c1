"""Files that somebody else wrote are looked at before they are opened."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from attack import attempt
from fedsdr.errors import DataError, FedsdrError, RecipeError, cut_message
from fedsdr.runs.plain import kind_of, read_plain, user_path


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    assert read_plain(tmp_path / "a", 4, DataError) == b"text"
    assert kind_of(tmp_path / "a") is None


def test_nothing_there_is_the_callers_to_say(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "a", 4, DataError)
    assert kind_of(tmp_path / "a") is None


@pytest.mark.parametrize("kind", ["fifo", "directory", "socket", "/dev/zero", "/dev/full", "link"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/zero" if kind == "link" else kind)
    tried = attempt(lambda: read_plain(path, 1000, DataError, follow=kind != "link"), seconds=5)
    assert tried.kind == "refused"
    assert str(path) in tried.text


def test_size_is_looked_at_first(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no room here, and would take all memory
    with pytest.raises(DataError, match=r"has 1 TB, more than the 5 MB that are read here"):
        read_plain(tmp_path / "a", 5 * 10**6, DataError)


@pytest.mark.parametrize("text", ["~nobody-here/x", "a\0b", "x" * 300, "a/" * 3000, "a\ud800"])
def test_what_can_be_no_path_is_said(text: str) -> None:
    with pytest.raises(RecipeError):
        user_path(text, RecipeError)


def test_home_is_found() -> None:
    assert user_path("~/x", RecipeError) == Path.home() / "x"


def test_messages_are_cut() -> None:
    assert cut_message("short\nand two") == "short\nand two"
    many = cut_message("\n".join(f"unknown key {n}" for n in range(100_000)))
    assert len(many) < 1000
    assert many.endswith("… and 99,980 more")
    long = str(FedsdrError("a" * 10**7 + "; do this"))
    assert len(long) < 3000
    assert long.endswith("; do this")
