"""The weights in a model folder: which files they are, and what their headers say.

An index may name any file, a pickle or one elsewhere; here it may name plain `*.safetensors` of its
own folder, in which the tensors are that it says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, cast

from fedsdr.errors import ModelError
from fedsdr.runs.plain import once, open_plain

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SUFFIX = ".safetensors"
LARGEST_HEADER = 64 << 20  # bytes; that of 100,000 tensors is a sixth of it
LARGEST = 1 << 44  # bytes of one file


@dataclass(frozen=True, slots=True)
class Stored:
    """What is there, by the headers; the weights themselves are not read."""

    files: tuple[str, ...]
    tensors: int
    numbers: int
    size: int  # bytes


def stored_weights(folder: Path, names: Collection[str], index: bytes | None) -> Stored:
    """Of a folder in which the files `names` stand: those of model.safetensors, or of its index."""
    if WEIGHTS in names:
        files, indexed = [WEIGHTS], dict[str, str]()
    elif index is not None:
        indexed = _index(folder / INDEX, index)
        files = sorted(set(indexed.values()))
    elif any(name.endswith(SUFFIX) for name in names):
        raise ModelError(
            f"{folder}: its weights are called neither {WEIGHTS} nor is there a {INDEX} that names "
            "them"
        )
    else:
        raise ModelError(
            f"{folder}: no *.safetensors weights; pickled weights (.bin, .pt) are never loaded, "
            "convert them with `save_pretrained(..., safe_serialization=True)`"
        )
    holder, numbers, size = dict[str, str](), 0, 0
    for name in files:
        if name not in names:
            raise ModelError(f"{folder}: {INDEX} names {shown(name)}, which is not there")
        for tensor, (count, width) in _header(folder / name).items():
            if (other := holder.setdefault(tensor, name)) != name:
                raise ModelError(f"{folder}: {shown(tensor)} stands in {other} and in {name}")
            numbers, size = numbers + min(count, 2 * width), size + width
    for tensor, name in indexed.items():
        if holder.get(tensor) != name:
            raise ModelError(f"{folder}: {INDEX} says that {shown(tensor)} is in {name}: it is not")
    return Stored(tuple(files), len(holder), numbers, size)


def _index(path: Path, data: bytes) -> dict[str, str]:
    """tensor -> file"""
    try:
        index: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON: {str(error)[:200]}") from None
    named: Any = cast("dict[str, Any]", index).get("weight_map") if _is_object(index) else None
    if not _is_object(named) or not named:
        raise ModelError(f"{path}: there is no weight_map in it that says where the tensors are")
    for name in cast("dict[str, Any]", named).values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIX):
            raise ModelError(
                f"{path}: weight_map names {shown(name)}; only *{SUFFIX} in the folder itself are "
                "loaded (pickles never are)"
            )
    return cast("dict[str, str]", named)


def _header(path: Path) -> dict[str, tuple[int, int]]:
    """tensor -> how many numbers it has, in how many bytes. That these lie where they should, and
    are of their type, is what safetensors looks at before it gives any."""
    with open_plain(path, LARGEST, ModelError) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ModelError(f"{path}: not a safetensors file: its header has {length:,} bytes")
        raw = file.read(length)
    try:
        header: Any = json.loads(raw, object_pairs_hook=once)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        counts = {
            name: (math.prod(_sizes(entry["shape"])), _extent(*_sizes(entry["data_offsets"])))
            for name, entry in tensors.items()
        }
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise ModelError(
            f"{path}: not a safetensors file: its header says nothing of use ({str(error)[:200]})"
        ) from None
    return counts


def _sizes(given: Any) -> list[int]:
    if not isinstance(given, list) or len(cast("list[Any]", given)) > 16:
        raise ValueError(f"{shown(given)} is no shape")
    for size in cast("list[Any]", given):
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
            raise ValueError(f"{shown(size)} is no size")
    return cast("list[int]", given)


def _extent(begin: int, end: int) -> int:
    if end < begin:
        raise ValueError(f"a tensor from {begin} to {end}")
    return end - begin


def _is_object(value: object) -> bool:
    return isinstance(value, dict)
