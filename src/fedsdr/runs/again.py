"""What a run's data decide is written again at every resume: whatever was done to such a file, it
ends as it would have been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedsdr.errors import CorruptArtifact
from fedsdr.runs.files import write_text_atomic
from fedsdr.runs.plain import open_plain

LARGEST = 2**40


def differs(path: Path, text: str, note: Callable[[str], None]) -> bool:
    """Whether the file has to be written; said so where something else stands there."""
    try:
        with open_plain(path, LARGEST, CorruptArtifact, follow=False) as file:
            if file.read() == text.encode():
                return False
    except FileNotFoundError:
        return True
    note(f"{path} is not what this run's data say; it is written anew")
    return True


def write_again(path: Path, text: str, note: Callable[[str], None]) -> None:
    if differs(path, text, note):
        write_text_atomic(path, text)
