"""Where in a run each thing stands, and which names in it are such a place."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fedsdr.runs.files import SAFE_NAME, checked_name

ROUND = re.compile(r"round-([0-9]{5}|[1-9][0-9]{5,})")  # the one way to write each number


def round_folder(round: int) -> str:
    return f"round-{round:05d}"


def checkpoint_at(round: int) -> str:
    return f"checkpoints/{round_folder(round)}"


def state_at(client_id: str, round: int) -> str:
    return f"clients/{checked_name(client_id)}/{round_folder(round)}"


def private_at(client_id: str, name: str) -> str:
    return f"clients/{checked_name(client_id)}/{checked_name(name)}"


def update_at(client_id: str, round: int) -> str:
    return f"updates/{round_folder(round)}/{checked_name(client_id)}"


def round_numbers(names: Iterable[str]) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := ROUND.fullmatch(name)))


def newest(rounds: Iterable[int], before: int) -> int | None:
    return max((round for round in rounds if round < before), default=None)


def safe_names(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if SAFE_NAME.fullmatch(name))
