"""Where the verbs' output may go: `--out` and the like.

Not onto what is no plain file, nor anywhere in a run: what is put there would be taken for the
run's own, or take its place. Only a page may lie in a run, beside its files.

Where in a run each thing stands, and which names in it are such a place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedsdr.errors import RunError
from fedsdr.runs.contents import OWN, RECIPE, holds_run, refuse_links
from fedsdr.runs.files import SAFE_NAME, checked_name
from fedsdr.runs.lock import LOCK
from fedsdr.runs.plain import kind_of, user_path

WORK = ("drafts", "diagnosis.json")  # by which a folder that a verb has filled is known again


def file_at(path: Path, beside_a_run: bool = False) -> Path:
    """The file to write in place of what is there: links of the user's own are followed now, so
    that what is looked at is what is replaced."""
    place = _resolved(path)
    if kind := kind_of(place):
        raise RunError(f"{path} is {kind}, and no file to be replaced; choose another place")
    if beside_a_run:
        _refuse_runs_own(path, place)
    else:
        refuse_inside_a_run(path)
    return place


def page_at(path: Path, suffix: str, beside_a_run: bool = False) -> Path:
    """Of a kind that nothing else is written in: a page that was made before may be replaced."""
    place = file_at(path, beside_a_run)
    if place.suffix.casefold() != suffix:
        raise RunError(f"{path}: it is to hold a page; give it a name that ends in {suffix}")
    return place


def figures_at(path: Path) -> Path:
    """A folder to put files in, which may stand beside a run's own."""
    place = _folder(path)
    _refuse_runs_own(path, place)
    return place


def new_folder(path: Path) -> Path:
    """Not there, or empty."""
    place = _folder(path)
    refuse_inside_a_run(path)
    if _names(place):
        raise RunError(f"{path} is not empty; name another folder with --out, or remove it")
    return user_path(path, RunError)


def sweep_folder(path: Path) -> Path:
    """New, or begun before; nothing in it leads elsewhere."""
    place = _folder(path)
    refuse_inside_a_run(path)
    refuse_links(place)
    return user_path(path, RunError)


def work_folder(path: Path) -> Path:
    """A folder that a verb fills and goes on in: new, empty, or one that it has filled before."""
    place = _folder(path)
    refuse_inside_a_run(path)
    others = [name for name in _names(place) if name != LOCK and not name.startswith(".tmp-")]
    if others and not set(WORK) & set(others):
        raise RunError(
            f"{path} is not empty ({others[0]} is in it) and was not made by this command; choose "
            "another --out"
        )
    refuse_links(place)
    return user_path(path, RunError)


def refuse_inside_a_run(path: Path, itself: bool = True) -> None:
    """For what a verb makes anew. Not `itself`: whether there is a run at `path` is asked later."""
    place = _resolved(path)
    for run in _runs_around(place):
        if itself or run != place:
            raise RunError(f"{path} {_where(place, run)}; choose another place")


def _refuse_runs_own(path: Path, place: Path) -> None:
    for run in _runs_around(place):
        if place == run:
            raise RunError(f"{path} holds a run; name a folder in it, or elsewhere")
        first = place.relative_to(run).parts[0].casefold()
        if first in OWN or first.startswith("."):
            raise RunError(f"{path} {_where(place, run)}; choose another place")


def _where(place: Path, run: Path) -> str:
    if place == run:
        return "holds a run"
    first, *deeper = place.relative_to(run).parts
    if first.casefold() not in OWN:
        return f"lies in the run {run}"
    return f"{'lies in' if deeper else 'is'} {first} of the run {run}"


def _runs_around(place: Path) -> Iterator[Path]:
    """A `run.json` alone may be another program's."""
    for folder in (place, *place.parents):
        marks = (RECIPE, LOCK)
        if holds_run(folder) and any(os.path.lexists(folder / name) for name in marks):
            yield folder


def _folder(path: Path) -> Path:
    place = _resolved(path)
    if os.path.lexists(place) and not place.is_dir():
        raise RunError(f"{path} is no folder but {kind_of(place) or 'a file'}; name another")
    return place


def _resolved(path: Path) -> Path:
    try:
        return user_path(path, RunError).resolve()
    except (OSError, RuntimeError) as error:  # of links that lead round in a circle
        raise RunError(f"{path} is no place to write to: {error}") from None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}") from error


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
