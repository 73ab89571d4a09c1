"""config.json, looked at before anything is built from it: sizes within what there is, and nothing
that fetches code or weights from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any, cast

from fedsdr.errors import ModelError

# Whatever a model calls them; each is a whole number above 0, or for every layer one.
WIDTHS = ("vocab_size", "hidden_size", "n_embd", "d_model", "head_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_key_value_heads")
SIZES = frozenset((*WIDTHS, *HEADS))
COUNTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")  # or 0: no bound
LAYERS = ("layers", "n_layer", "num_blocks", "n_block")  # what their number is called ends in
MOST_LAYERS = 4096
LARGEST = 1 << 40  # of any whole number
DEEPEST, LONGEST, MOST = 12, 1 << 20, 1 << 18  # levels, characters, values in all


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    path = folder / "config.json"
    for number, (key, value) in enumerate(_values(path, config)):
        if number > MOST:
            raise ModelError(f"{path}: holds more than {MOST:,} values, which no model's does")
        if key == "use_pretrained_backbone" and value:
            raise ModelError(f"{path}: {key} would load other weights than the folder's")
        if isinstance(value, str):
            _check_text(path, key, value)
        elif key in SIZES or key in COUNTS or key.endswith(LAYERS):
            _check_size(path, key, value)
        elif isinstance(value, int) and abs(value) > LARGEST:
            raise ModelError(f"{path}: {shown(key)} is {shown(value)}, beyond all bounds")
    stop_tokens(path, config)
    own_code(path, config)
    if config.get("transformers_weights") is not None:
        raise ModelError(
            f"{path}: transformers_weights names a file; only model.safetensors, or those of its "
            "index, are loaded"
        )


def own_code(path: Path, settings: Mapping[str, Any]) -> None:
    """Python code that comes with a model stands in its folder, where the digest knows it."""
    named = settings.get("auto_map")
    for _, value in _values(path, {"auto_map": named}):
        if isinstance(value, str) and "--" in value:
            raise ModelError(
                f"{path}: its Python code lies elsewhere ({shown(value)}), where nothing vouches "
                "for it; put it into the folder"
            )


def stop_tokens(path: Path, settings: Mapping[str, Any]) -> None:
    """The ids that end a text are whole numbers."""
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        given = settings.get(key)
        ids = cast("list[Any]", given) if isinstance(given, list) else [given]
        if not all(i is None or (isinstance(i, int) and not isinstance(i, bool)) for i in ids):
            raise ModelError(f"{path}: {key} is {shown(given)}; it has to be a token's number")


def _values(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All that is no object or list, wherever it stands, by its key."""
    waiting: list[tuple[str, Any, int]] = [("config.json", config, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth > DEEPEST:
            raise ModelError(f"{path}: nests deeper than {DEEPEST} levels, which no model's does")
        if isinstance(value, dict):
            entries = cast("dict[str, Any]", value)
            waiting += [(name, below, depth + 1) for name, below in entries.items()]
        elif isinstance(value, list):
            waiting += [(key, below, depth + 1) for below in cast("list[Any]", value)]
        else:
            yield key, value


def _check_text(path: Path, key: str, value: str) -> None:
    if len(value) > LONGEST:
        raise ModelError(f"{path}: {shown(key)} is a text of {len(value):,} characters")
    if key.endswith("implementation") and "/" in value:
        raise ModelError(f"{path}: {shown(key)} names code elsewhere ({shown(value)})")


def _check_size(path: Path, key: str, value: object) -> None:
    if value is None or isinstance(value, bool):
        return
    most = MOST_LAYERS if key.endswith(LAYERS) else LARGEST
    least = 1 if key in SIZES else 0
    if not isinstance(value, int) or not least <= value <= most:
        raise ModelError(
            f"{path}: {shown(key)} is {shown(value)}; it has to be a whole number from {least} to "
            f"{most:,}"
        )
