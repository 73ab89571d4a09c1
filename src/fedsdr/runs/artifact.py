"""Artifacts: named tensors and their facts on disk, proof against kills, full disks and bit flips.

An artifact is a directory of `*.safetensors` files and one `state.json` with the size and sha256 of
each. It is written beside its place and renamed into it. An older one that has to make room is
renamed aside first, so that at every instant one of the two is whole and `load_artifact` finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors

from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs.files import (
    JSON,
    checked_name,
    fsync_directory,
    make_private,
    remove,
    unwritable,
    write_json_atomic,
    write_new,
    write_text_atomic,
)
from fedsdr.types import Tensors

__all__ = [
    "JSON",
    "Artifact",
    "artifacts_in",
    "load_artifact",
    "recover",
    "remove_artifact",
    "save_artifact",
    "write_json_atomic",
    "write_text_atomic",
]

STATE = "state.json"
SUFFIX = ".safetensors"
FORMAT = "fedsdr artifact 1"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What `save_artifact` was given, and the digest over all of it."""

    tensors: Mapping[str, Tensors]
    meta: Mapping[str, Any]
    digest: str


def save_artifact(path: Path, tensors: Mapping[str, Tensors], meta: Mapping[str, JSON]) -> str:
    """Write `{file stem: {name: tensor}}` and `meta` as an artifact; return its digest."""
    files = {checked_name(stem) + SUFFIX: _to_bytes(tensors[stem]) for stem in sorted(tensors)}
    try:
        state, digest = _state(files, meta)
    except ValueError as error:
        raise RunError(f"{path}: the facts to store hold a number that is not finite") from error
    new, old = _asides(path)
    try:
        make_private(path.parent)
        _settle(path)
        os.mkdir(new, 0o700)
        os.chmod(new, 0o700)
        for name, data in {**files, STATE: state}.items():
            write_new(new / name, data)
        fsync_directory(new)
        if os.path.lexists(path):
            os.rename(path, old)
        os.rename(new, path)
        fsync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            _roll_back(path)
        raise unwritable(path, error) from error
    with suppress(OSError):  # the new one is in its place; what is left of the old is swept later
        remove(old)
    return digest


def load_artifact(path: Path) -> Artifact:
    """The artifact at `path`, or `CorruptArtifact` unless every byte is as it was written."""
    _, old = _asides(path)
    folder = old if os.path.lexists(old) and not os.path.lexists(path) else path
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CorruptArtifact(f"{path}: no artifact is there ({error.strerror})") from error
    files = {name: _read(folder / name) for name in names}
    if STATE not in files:
        raise CorruptArtifact(f"{folder / STATE} is missing")
    raw = files.pop(STATE)
    try:
        written = json.loads(raw)
        listed = dict[str, Any](written["files"])
        meta = dict[str, Any](written["meta"])
        expected, digest = _state(files, meta)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptArtifact(f"{folder / STATE} is not what was written ({error})") from error
    # One comparison covers all: meta, names, sizes and hashes of the files, and how it is spelt.
    if raw != expected:
        raise CorruptArtifact(_difference(folder, listed, files))
    tensors = {name.removesuffix(SUFFIX): _from_bytes(folder / name, files[name]) for name in files}
    return Artifact(tensors, meta, digest)


def written_as(path: Path) -> tuple[Mapping[str, Any], str] | None:
    """The facts and the digest of an artifact whose `state.json` is as it was written and whose
    files have the sizes it says; None of any other. The cheap half of `load_artifact`."""
    _, old = _asides(path)
    folder = old if os.path.lexists(old) and not os.path.lexists(path) else path
    try:
        written = json.loads(_read(folder / STATE))
        meta = dict[str, Any](written["meta"])
        digest = str(written.pop("digest"))
        sizes = {name: int(facts["size"]) for name, facts in written["files"].items()}
        if hashlib.sha256(_canonical(written)).hexdigest() != digest:
            return None
        if {name: (folder / name).lstat().st_size for name in sizes} != sizes:
            return None
    except (CorruptArtifact, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    except RecursionError:  # nested a thousand deep
        return None
    return meta, digest


def artifacts_in(folder: Path) -> set[str]:
    """Names of the artifacts in a folder, including one that was caught between its two renames."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}") from error
    return {_named(name) for name in names if _is_old(name) or not name.startswith(".")}


def remove_artifact(path: Path) -> None:
    """Remove it at one stroke: while half removed, it bears a name that no loader looks at."""
    new, old = _asides(path)
    try:
        for doomed in (old, path):
            if os.path.lexists(doomed):
                remove(new)
                os.rename(doomed, new)
                remove(new)
    except OSError as error:
        raise unwritable(path, error) from error


def recover(folder: Path) -> None:
    """Undo what a kill left unfinished in a folder. Only for the holder of the run's lock."""
    try:
        for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
            if _is_old(entry):
                _settle(folder / _named(entry))
            elif entry.startswith(".tmp-"):
                remove(folder / entry)
    except OSError as error:
        raise unwritable(folder, error) from error


def _asides(path: Path) -> tuple[Path, Path]:
    """Where the new one is written, and where the old one waits until the new one is in place."""
    return path.with_name(f".tmp-{path.name}.new"), path.with_name(f".tmp-{path.name}.old")


def _is_old(entry: str) -> bool:
    return entry.startswith(".tmp-") and entry.endswith(".old")


def _named(entry: str) -> str:
    return entry[len(".tmp-") : -len(".old")] if _is_old(entry) else entry


def _roll_back(path: Path) -> None:
    """After an error: the old one again, even where the new one had already taken its place."""
    new, old = _asides(path)
    if os.path.lexists(old) and os.path.lexists(path):
        os.rename(path, new)
    _settle(path)


def _settle(path: Path) -> None:
    """After a kill: the new one if it is in its place, else the old one."""
    new, old = _asides(path)
    remove(new)
    if os.path.lexists(path):
        remove(old)
    elif os.path.lexists(old):
        os.rename(old, path)


def _to_bytes(tensors: Tensors) -> bytes:
    # A copy each: safetensors refuses tensors that share memory, and slices of a stack do.
    return bytes_from_tensors(
        {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
    )


def _from_bytes(path: Path, data: bytes) -> Tensors:
    try:
        return tensors_from_bytes(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptArtifact(f"{path} is not a safetensors file ({error})") from error


def _read(path: Path) -> bytes:
    try:
        # Non-blocking and not through links: a planted pipe or link must not stall or lead outside.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CorruptArtifact(f"{path} is not a plain file")
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(handle)
    except OSError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error.strerror}") from error


def _state(files: Mapping[str, bytes], meta: Mapping[str, JSON]) -> tuple[bytes, str]:
    """The one and only content of `state.json` for these files and facts, and its digest."""
    body: dict[str, JSON] = {"files": _fingerprints(files), "format": FORMAT, "meta": meta}
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "digest": digest}), digest


def _fingerprints(files: Mapping[str, bytes]) -> dict[str, JSON]:
    return {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in files.items()
    }


def _canonical(value: JSON) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def _difference(folder: Path, written: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """Which file is to blame, as far as a `state.json` that is itself under suspicion can tell."""
    expected = _fingerprints(files)
    for name in sorted({*written, *files}):
        if name not in files:
            return f"{folder / name} is missing"
        if name not in written:
            return f"{folder / name} does not belong to this artifact"
        if written[name] != expected[name]:
            return f"{folder / name} ({len(files[name])} bytes) is not what was written"
    return f"{folder / STATE} is not what was written"
