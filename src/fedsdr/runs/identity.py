"""What a run is: `recipe.yaml` as the user wrote it, `run.json` with the facts a resume keeps.

A directory holds a run from the moment that it has a `run.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsdr.errors import CorruptArtifact, RunError, nearest
from fedsdr.runs.contents import RECIPE, RUN, holds_run, refuse_links
from fedsdr.runs.files import (
    JSON,
    make_private,
    pretty,
    unwritable,
    write_text_atomic,
    write_text_once,
)
from fedsdr.runs.lock import LOCK
from fedsdr.runs.places import refuse_inside_a_run
from fedsdr.runs.plain import read_plain

# While this stands in a run, a purge was begun and not finished: its facts could not say so yet.
PURGING = ".purged"
PURGED = ("private state", "rewrites")
LARGEST = 1 << 26  # bytes of either file


def claim(path: Path, recipe_text: str, facts: Mapping[str, JSON]) -> None:
    """Begin a run in a new or empty directory; of many processes that try at once, one succeeds."""
    _refuse_unless_free(path, recipe_text)
    refuse_inside_a_run(path, itself=False)
    try:
        make_private(path)
        os.chmod(path, 0o700)
    except OSError as error:
        raise unwritable(path, error) from error
    if not write_text_once(path / RECIPE, recipe_text):
        _refuse_unless_free(path, recipe_text)
    recipe = hashlib.sha256(recipe_text.encode()).hexdigest()
    if not write_text_once(path / RUN, _signed({**facts, "recipe_sha256": recipe})):
        raise _taken(path)


def find(path: Path, deep: bool = True) -> None:
    """Make sure that `path` holds a run, in which nothing leads out of it, or say where the nearest
    one is. Not `deep`: for whoever reads nothing in its folders."""
    if os.path.lexists(path / RUN):
        refuse_links(path, deep)
    if holds_run(path):
        return
    message = f"{path} holds no run (there is no {RUN} in it)."
    for near in [*path.parents[:3], *_folders(path)]:
        if holds_run(near):
            raise RunError(f"{message} Did you mean '{near}'?")
    siblings = [folder.name for folder in _folders(path.parent) if holds_run(folder)]
    advice = nearest(path.name, siblings) or " Start one with `fedsdr train RECIPE --out DIR`."
    raise RunError(message + advice)


def read_facts(root: Path) -> dict[str, Any]:
    path = root / RUN
    raw = _bytes(path)
    try:
        facts: dict[str, Any] = json.loads(raw)
        del facts["digest"]
        if raw == _signed(facts).encode():
            begun = os.path.lexists(root / PURGING)
            return {**facts, "purged": list(PURGED)} if begun else facts
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptArtifact(f"{path} is not what was written ({error})") from error
    raise CorruptArtifact(f"{path} is not what was written")


def write_facts(root: Path, facts: Mapping[str, JSON]) -> None:
    write_text_atomic(root / RUN, _signed(facts))


def read_recipe(root: Path) -> str:
    path = root / RECIPE
    raw = _bytes(path)
    if hashlib.sha256(raw).hexdigest() != read_facts(root)["recipe_sha256"]:
        raise CorruptArtifact(
            f"{path} is not the recipe that this run was started with; restore it, or start a new "
            "run from it with another --out"
        )
    return raw.decode()


def _refuse_unless_free(path: Path, recipe_text: str) -> None:
    if not os.path.lexists(path):
        return
    try:
        entries = sorted(os.listdir(path))
    except OSError as error:
        raise unwritable(path, error) from error
    if RUN in entries:
        raise _taken(path)
    others = [name for name in entries if name != LOCK and not name.startswith(".tmp-")]
    # A recipe alone is no obstacle if it is this one: a kill between the two files leaves it there.
    if others and not (others == [RECIPE] and _bytes(path / RECIPE) == recipe_text.encode()):
        raise RunError(
            f"{path} is not empty ({others[0]} is in it) and holds no run; choose another --out"
        )


def _taken(path: Path) -> RunError:
    return RunError(
        f"{path} already holds a run; continue it with `fedsdr resume {path}`, "
        "or choose another --out"
    )


def _signed(facts: Mapping[str, JSON]) -> str:
    return pretty({**facts, "digest": hashlib.sha256(pretty(facts).encode()).hexdigest()})


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(child for child in path.iterdir() if child.is_dir())
    except OSError:
        return []


def _bytes(path: Path) -> bytes:
    try:
        return read_plain(path, LARGEST, CorruptArtifact, follow=False)
    except FileNotFoundError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error.strerror}") from error
