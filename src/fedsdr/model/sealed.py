"""What of a model folder is read at all.

transformers opens every name that it knows in a folder, and what the files there name in turn:
pickles, adapters, files elsewhere. So it is given a folder of our own making, with copies of the
small files as they were read here, and links to the weights. What is not in it is not read, and all
that is in it is in the digest.

Where a model comes from: a folder, or a hub's name and revision, fetched once into the hub's own
cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fedsdr.errors import ModelError
from fedsdr.model.config_check import check_config, own_code, stop_tokens
from fedsdr.model.weights import INDEX, LARGEST, SUFFIX, Stored, stored_weights
from fedsdr.runs.plain import open_plain, read_plain, user_path

CONFIG, GENERATION, TOKENS = "config.json", "generation_config.json", "tokenizer_config.json"
ADAPTER = "adapter_config.json"
READ = (
    CONFIG,
    GENERATION,
    INDEX,
    f"*{SUFFIX}",
    "token*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "*.py",
)
LARGEST_TEXT = 1 << 27  # bytes; the largest tokenizers have a quarter of it
MOST_FILES = 4096


@dataclass(frozen=True, slots=True)
class Sealed:
    called: Path  # the folder that the user knows
    folder: Path  # what transformers is given
    digest: str
    config: Mapping[str, Any]
    weights: Stored | None
    size: int  # bytes of the small files


@dataclass(frozen=True, slots=True)
class Found:
    names: list[str]  # in the order of their digest
    texts: Mapping[str, bytes]
    config: Mapping[str, Any]
    weights: Stored | None


def look(folder: Path, weights: bool = True) -> Found:
    """The small files of a folder, and what the headers of its weights say; or what is wrong."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: no {CONFIG}, so this is not a Hugging Face model folder")
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder}: holds a PEFT adapter ({ADAPTER}) beside the model, which would be worn "
            "unasked; move it to a folder of its own, and name that in lora.init"
        )
    names = file_names(folder)
    texts = {n: _text(folder, n) for n in names if not n.endswith(SUFFIX)}
    config = read_object(folder / CONFIG, texts[CONFIG])
    check_config(folder, config)
    held = stored_weights(folder, names, texts.get(INDEX)) if weights else None
    return Found(names, texts, config, held)


@contextmanager
def sealed(folder: Path, weights: bool = True, code: bool = False) -> Generator[Sealed]:
    """`code`: with the folder's Python files."""
    contents = look(folder, weights)
    texts, held = contents.texts, contents.weights
    digest = _digest(folder, contents)
    given = {n: data for n, data in texts.items() if code or not n.endswith(".py")}
    if TOKENS in given:
        given[TOKENS] = _without_files(folder / TOKENS, given[TOKENS])
    try:
        place = TemporaryDirectory(prefix="fedsdr-model-")
    except OSError as error:
        raise ModelError(f"{folder}: no place to read it from: {error}") from None
    with place:
        made = Path(place.name) / "model"
        try:
            made.mkdir()
            for name, data in given.items():
                (made / name).write_bytes(data)
            for name in held.files if held else ():
                (made / name).symlink_to(os.path.realpath(folder / name))
        except OSError as error:
            raise ModelError(f"{folder}: no place to read it from: {error}") from None
        size = sum(map(len, texts.values()))
        yield Sealed(folder, made, digest, contents.config, held, size)


def file_names(folder: Path) -> list[str]:
    """The files of the folder that may be read, in the order of their digest."""
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.is_dir()]
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}") from None
    names = sorted(e.name for e in entries if any(fnmatchcase(e.name, p) for p in READ))
    if len(names) > MOST_FILES:
        raise ModelError(f"{folder}: {len(names):,} files are more than a model has")
    return names


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a file of the folder is there, wherever in it or in its part of a hub's cache."""
    home = Path(os.path.realpath(folder))
    if home.parent.name == "snapshots":
        home = home.parent.parent
    return Path(os.path.realpath(path)).is_relative_to(home)


def read_object(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value: Any = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object, so it says nothing of a model")
    return cast("dict[str, Any]", value)


def _text(folder: Path, name: str) -> bytes:
    """A link may lead to another name in the folder, or in a hub's cache to where all its files
    are. Only weights, which are numbers and no more, may lie anywhere."""
    path = folder / name
    if not is_inside(folder, path):
        raise ModelError(
            f"{path} is a link out of the folder, to {os.path.realpath(path)}; put a copy of the "
            "file there"
        )
    try:
        return read_plain(path, LARGEST_TEXT, ModelError)
    except FileNotFoundError:
        raise ModelError(f"{path} is a link to nothing") from None


def _digest(folder: Path, contents: Found) -> str:
    """sha256 over the files that decide what the model computes."""
    sha, texts = hashlib.sha256(), contents.texts
    for name in contents.names:
        if name == GENERATION and not _says_more(folder, texts[name], contents.config):
            continue
        sha.update(name.encode() + b"\0")
        if name.endswith(SUFFIX):
            with _opened(folder / name) as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        else:
            sha.update(hashlib.sha256(texts[name]).digest())
    return sha.hexdigest()


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    try:
        with open_plain(path, LARGEST, ModelError) as file:
            yield file
    except FileNotFoundError:
        raise ModelError(f"{path} is a link to nothing") from None


def _says_more(folder: Path, data: bytes, config: Mapping[str, Any]) -> bool:
    """Whether generation settings say what config.json does not: those that transformers derives
    from it do not."""
    settings = read_object(folder / GENERATION, data)
    stop_tokens(folder / GENERATION, settings)
    usual = {"output_attentions": False, "output_hidden_states": False, "use_cache": True}
    known = {**usual, **config}
    return any(
        value is not None and (key not in known or known[key] != value)
        for key, value in settings.items()
        if key not in ("_from_model_config", "transformers_version")
    )


def _without_files(path: Path, data: bytes) -> bytes:
    """Without names of files, which older releases left there and newer ones would open."""
    values = read_object(path, data)
    own_code(path, values)
    kept = {k: v for k, v in values.items() if not k.endswith(("_file", "_files"))}
    return data if kept == values else json.dumps(kept).encode()


# Never *.bin, *.pt: pickled weights are not even downloaded. Code only for a trusted model.
WEIGHTS = "*.safetensors"
FILES = (WEIGHTS, "*.json", "*.model", "*.txt", "*.jinja")
# Models whose own Python code may run: named by the user for this process, never by a recipe, which
# somebody else may have written.
TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def find_model(
    path: str, revision: str | None = None, code: bool = False, weights: bool = True
) -> Path:
    """The folder of a model: `path` itself, or the snapshot of a hub's `owner/name`."""
    folder = user_path(path, ModelError)
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"model.revision belongs to a hub's model, but model.path {path!r} is a folder; "
                "leave it out"
            )
        return folder
    if not NAME.fullmatch(path):
        raise ModelError(
            f"model folder {path!r} does not exist ({folder.absolute()}); model.path is a folder, "
            "or a hub's owner/name; that of a run has to be where it was (a link will do)"
        )
    at = f"{path!r}" + (f" at revision {revision!r}" if revision else "")
    files = [f for f in (*FILES, *(["*.py"] if code else [])) if weights or f != WEIGHTS]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=files))
    except GatedRepoError:
        why = "it is gated: accept its terms on the hub, then log in with `hf auth login`"
    except RevisionNotFoundError:
        why = "there is no such revision"
    except RepositoryNotFoundError:
        why = "there is no such folder here, and no such model on the hub (or it is private)"
    except LocalEntryNotFoundError:
        why = (
            "there is no such folder here, and the hub cannot be reached"
            + (" (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "")
            + "; download it elsewhere and set model.path to the folder"
        )
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise ModelError(f"model {at} cannot be fetched: {why}")
