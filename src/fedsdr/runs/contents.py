"""What a run directory is made of: folders and plain files, and which of them a purge leaves.

A link in a run would have fedsdr read, write and delete somewhere else. The directory itself may be
reached through one; below it every component is looked at without following.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from fedsdr.errors import RunError
from fedsdr.runs.plain import kind_of, open_plain

RUN, RECIPE = "run.json", "recipe.yaml"
# All else goes: what a purge does not know, nobody can say to be free of texts.
STAYS = (
    *(RUN, RECIPE, "lock", "partition.json", "profile.json"),
    *("rounds.jsonl", "validation.jsonl", "diagnostics.jsonl", "timings.jsonl", "ledger.jsonl"),
    *("results.json", "rewriting.json", "rewriting_audit.jsonl"),  # the last without texts and ids
    *("diagnosis.json", "diagnosis/*.parquet"),
    *("checkpoints/round-*/state.json", "checkpoints/round-*/*.safetensors"),
    *("adapters/*/adapter_config.json", "adapters/*/adapter_model.safetensors"),  # not mix/client/…
    *("evaluation/results.json", "evaluation/lock"),
    *("tensorboard/events.out.tfevents.*", "wandb/**"),  # numbers only
)
FOLDERS = {
    *("checkpoints", "clients", "updates", "rewrites", "adapters", "evaluation", "diagnosis"),
    *("tensorboard", "wandb"),
}
OWN = FOLDERS | {name for name in STAYS if "/" not in name}
OTHERS = "wandb"  # a folder whose insides are somebody else's: it makes links of its own
PAGE = re.compile(rb'<meta name="fedsdr-texts" content="(none|held)">')
LARGEST = 1 << 40
HEAD = 300  # bytes of a page in which that stands, before anything that a run says


def holds_run(path: Path) -> bool:
    """From the moment that it has a `run.json`."""
    return os.path.isfile(path / RUN)


def refuse_links(root: Path, deep: bool = True) -> None:
    """Whatever stands in a run and is neither a folder nor a file is refused by name."""
    for path in _foreign(root, deep, top=True):
        raise RunError(
            f"{path} is {kind_of(path) or 'no plain file'}: in {root} only folders and files are "
            "read, written or removed; put what it stands for in its place, or take it away"
        )


def inside(root: Path, at: str) -> Path:
    """`root/at`, if no component of it below the root is a link at this moment."""
    path = root
    for part in PurePosixPath(at).parts:
        path /= part
        if os.path.islink(path):
            refuse_links(path.parent, deep=False)
    return path


def private_parts(root: Path) -> list[Path]:
    """What a purge removes: folders as a whole where nothing in them stays."""
    return _private(root, PurePosixPath())[1]


def _foreign(folder: Path, deep: bool, top: bool) -> Iterator[Path]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:  # gone meanwhile, or not for this user: whoever needs it says so
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if deep and not (top and entry.name == OTHERS):
                yield from _foreign(Path(entry.path), deep, top=False)
        elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
            yield Path(entry.path)


def _private(folder: Path, at: PurePosixPath) -> tuple[bool, list[Path]]:
    """Whether anything in this folder stays, and what does not."""
    stays, gone = False, list[Path]()
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}; purge again") from error
    for entry in entries:
        path, name = Path(entry.path), at / entry.name
        if entry.is_dir(follow_symlinks=False):
            some, inner = _private(path, name)
            stays |= some
            gone += inner if some else [path]
        elif _stays(path, name):
            stays = True
        else:
            gone.append(path)
    return stays, gone


def _stays(path: Path, name: PurePosixPath) -> bool:
    if name.suffix.casefold() == ".html":
        return name.parts[0] not in FOLDERS and not _holds_texts(path)
    if len(name.parts) > 1 and name.parts[0] == OTHERS:
        return True
    return any(
        pattern.count("/") == len(name.parts) - 1 and fnmatchcase(str(name), pattern)
        for pattern in STAYS
    )


def _holds_texts(page: Path) -> bool:
    """As the page itself says, whatever it is called; one that says nothing may."""
    try:
        with open_plain(page, LARGEST, RunError, follow=False) as file:
            match = PAGE.search(file.read(HEAD))
    except (RunError, OSError):
        return True
    return match is None or match[1] != b"none"
