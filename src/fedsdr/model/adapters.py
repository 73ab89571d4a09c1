"""Adapters in PEFT's format, so that `PeftModel.from_pretrained` and inference servers load them as
they are.

Several branches become one adapter: ranks are concatenated and each branch's α/r is folded into its
B, so that Σ (α/r) B A = B' A' with scale 1. Reading is strict: safetensors only, configuration keys
by allow-list, shapes checked.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedsdr.errors import AdapterError
from fedsdr.model.adapter_config import CONFIG, AdapterConfig, read_config
from fedsdr.model.lora import BranchSpec, Fold, Layout, StackedLora
from fedsdr.runs.files import replacing, write_text_atomic
from fedsdr.types import FOLD

WEIGHTS = "adapter_model.safetensors"
BASE_DIGEST = "fedsdr_base_digest"  # in the weights' metadata: which base the adapter is of
REAL = ("F64", "F32", "F16", "BF16")
LARGEST_HEADER = 16 << 20  # bytes; that of a 70B model's adapter is a few hundred kilobytes
_PREFIX = "base_model.model."


def save_adapter(
    folder: Path,
    lora: StackedLora,
    flats: Mapping[str, Tensor],
    mix: Sequence[str] | Mapping[str, float],
) -> None:
    """Write one client's branches ([P] each) of `mix`, as much as each counts, as one adapter."""
    counts = mix if isinstance(mix, Mapping) else dict.fromkeys(mix, 1.0)
    pairs = merged_pairs(lora, flats, counts)
    single = lora.layouts[_single(counts)].spec if _single(counts) else None
    rank = next(iter(pairs.values()))[0].shape[0]
    tensors = dict[str, Tensor]()
    for layer, (a, b) in pairs.items():
        tensors[_key(f"{layer}.A")] = a.contiguous().cpu()
        tensors[_key(f"{layer}.B")] = b.contiguous().cpu()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        **base_name(lora.base.path),
        "r": rank,
        "lora_alpha": single.alpha if single else rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": lora.transposed(),
        "target_modules": lora.target_modules(),
        "use_rslora": False,
        "use_dora": False,
    }
    write_tensors(folder / WEIGHTS, tensors, {BASE_DIGEST: lora.base.digest})
    write_text_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def base_name(path: Path) -> dict[str, str]:
    """What PEFT calls the base: a folder's own name (not where it lies on this machine), or the
    hub's name and revision that a snapshot in its cache is of."""
    hub = path.parent.parent.name
    if path.parent.name == "snapshots" and hub.startswith("models--"):
        name = hub.removeprefix("models--").replace("--", "/")
        return {"base_model_name_or_path": name, "revision": path.name}
    return {"base_model_name_or_path": path.name}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, the same bytes for the same content: safetensors itself writes metadata
    in an order that differs from process to process."""
    data = save(dict(tensors), metadata={"format": "pt", **metadata})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    with replacing(path) as file:
        file.writelines((data[:8], text.ljust(size), memoryview(data)[8 + size :]))


def merged_pairs(
    lora: StackedLora, flats: Mapping[str, Tensor], counts: Mapping[str, float]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (A, B) of the mix as one adapter; a single branch keeps its own scale."""
    worn = [branch for branch in counts if branch != FOLD]
    views = {branch: lora.layouts[branch].named(flats[branch]) for branch in worn}
    if branch := _single(counts):
        view = views[branch]
        return {layer: (view[f"{layer}.A"], view[f"{layer}.B"]) for layer in lora.layers}
    scales = {b: counts[b] * lora.layouts[b].spec.scale for b in worn}
    pairs = dict[str, tuple[Tensor, Tensor]]()
    for layer in lora.layers:
        parts = [(views[b][f"{layer}.A"], views[b][f"{layer}.B"] * scales[b]) for b in worn]
        if FOLD in counts and layer in lora.folds:
            parts.append(_as_pair(lora.folds[layer], parts[0][0].dtype))
        pairs[layer] = (torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1))
    # PEFT has one rank for all layers: what is smaller is filled up with zeros.
    rank = max(a.shape[0] for a, _ in pairs.values())
    return {
        layer: (
            torch.cat([a, a.new_zeros(rank - a.shape[0], a.shape[1])]),
            torch.cat([b, b.new_zeros(b.shape[0], rank - b.shape[1])], dim=1),
        )
        for layer, (a, b) in pairs.items()
    }


def _single(counts: Mapping[str, float]) -> str:
    """The only branch of a mix that is no more than that branch."""
    ((branch, count), *more) = counts.items()
    return branch if not more and count == 1.0 and branch != FOLD else ""


def _as_pair(fold: Fold, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A dense change is its own factor, times the identity on its smaller side."""
    if not isinstance(fold, Tensor):
        return fold[0].to(dtype), fold[1].to(dtype)
    out, width = fold.shape
    if width <= out:
        return torch.eye(width, dtype=dtype, device=fold.device), fold.to(dtype)
    return fold.to(dtype), torch.eye(out, dtype=dtype, device=fold.device)


def load_adapter(folder: str | Path, lora: StackedLora, branch: str) -> Tensor:
    """A PEFT adapter as one client's flat branch [P]; a different α is folded into B."""
    path = Path(folder).expanduser()
    config, layout = read_config(_adapter_folder(path)), lora.layouts[branch]
    if config.rank != layout.spec.rank:
        raise AdapterError(
            f"{path}: the adapter's rank is {config.rank}, the recipe's {layout.spec.rank}; set "
            f"lora.{branch}.rank: {config.rank}"
        )
    _refuse_larger(path / WEIGHTS, 8 * layout.size + LARGEST_HEADER)
    factor = (config.alpha / config.rank) / layout.spec.scale
    named = dict[str, Tensor]()
    with _opened(path / WEIGHTS) as file:
        _refuse_other_base(path, file, lora.base.digest)
        _refuse_unless_these(path, file, config, layout)
        for piece in layout.pieces:
            key = _key(piece.name)
            tensor = file.get_tensor(key).double() * (factor if piece.name.endswith(".B") else 1.0)
            if not bool(torch.isfinite(tensor.float()).all()):  # training is in fp32
                raise AdapterError(
                    f"{path / WEIGHTS}: tensor {key!r} holds values that are no finite numbers"
                )
            named[piece.name] = tensor
    return layout.flat(named, torch.float64, torch.device("cpu"))


def read_tensors(folder: Path, base_digest: str) -> dict[str, Tensor]:
    """All tensors of an adapter as they are stored, whatever layers they fit; it may not be one of
    another base."""
    with _opened(_adapter_folder(folder) / WEIGHTS) as file:
        _refuse_other_base(folder, file, base_digest)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def adapter_spec(folder: Path) -> BranchSpec:
    """The branch that an adapter fits, for those who wear adapters as they come."""
    config = read_config(_adapter_folder(folder))
    return BranchSpec(config.rank, config.alpha)


def adapter_notes(folder: str | Path, lora: StackedLora) -> tuple[str, ...]:
    """What to tell about an adapter that does not prove which base it is of: shapes alone cannot
    tell two models of one size apart."""
    path = Path(folder).expanduser()
    config = read_config(_adapter_folder(path))
    with _opened(path / WEIGHTS) as file:
        if BASE_DIGEST in (file.metadata() or {}):
            return ()
    ours = base_name(lora.base.path)["base_model_name_or_path"]
    if Path(config.base).name == Path(ours).name:
        return ()
    named = f"names the base {shown(config.base)}" if config.base else "names no base"
    return (f"{path} {named}, this one is {ours!r}: its shapes fit, more cannot be checked",)


def _adapter_folder(path: Path) -> Path:
    if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
        raise AdapterError(
            f"{path}: not a PEFT adapter folder ({CONFIG} and {WEIGHTS} are needed; pickled "
            f"weights are never loaded)"
        )
    return path


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    """The file with its header checked and no tensor read yet."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path}: not a readable safetensors file: {str(error)[:200]}"
        ) from error


def _refuse_larger(path: Path, most: int) -> None:
    """Before it is mapped into memory."""
    if (size := path.stat().st_size) > most:
        raise AdapterError(
            f"{path}: {size} bytes are more than an adapter of these layers can have ({most})"
        )


def _refuse_other_base(path: Path, file: Any, base_digest: str) -> None:
    digest = str((file.metadata() or {}).get(BASE_DIGEST, base_digest))
    if digest != base_digest:
        raise AdapterError(
            f"{path}: an adapter of another base, tokenizer or chat template (digest "
            f"{shown(digest[:12])}, here it is {base_digest[:12]!r}); set model.path and "
            "model.chat_template to what it was trained with"
        )


def _refuse_unless_these(path: Path, file: Any, config: AdapterConfig, layout: Layout) -> None:
    """Exactly the tensors of the layers that are adapted here, in their shapes, as real numbers:
    known from the header, so that a file of any size is refused before it is in memory."""
    there = set(file.keys())
    for piece in layout.pieces:
        layer, key = piece.name.rpartition(".")[0], _key(piece.name)
        if key not in there:
            raise AdapterError(
                f"{path / WEIGHTS}: tensor {key!r} is missing; is it an adapter of this base, and "
                f"of the layers that lora.targets names?"
            )
        stored = file.get_slice(key)
        if tuple(stored.get_shape()) != piece.shape:
            raise AdapterError(
                f"{path / WEIGHTS}: tensor {key!r} has shape {tuple(stored.get_shape())}, this "
                f"base needs {piece.shape}"
            )
        if stored.get_dtype() not in REAL:
            raise AdapterError(
                f"{path / WEIGHTS}: tensor {key!r} is stored as {stored.get_dtype()}; it has to "
                f"be one of {', '.join(REAL)}"
            )
        if not config.names(layer):
            raise AdapterError(
                f"{path / CONFIG}: target_modules does not name {layer!r}, of which {WEIGHTS} has "
                f"tensors"
            )
    if strangers := there - {_key(piece.name) for piece in layout.pieces}:
        raise AdapterError(
            f"{path / WEIGHTS}: tensor {shown(min(strangers))} belongs to no layer that "
            f"lora.targets adapts; an adapter that changes tokens or other layers cannot be taken"
        )


def _key(piece: str) -> str:
    layer, _, half = piece.rpartition(".")
    return f"{_PREFIX}{layer}.lora_{half}.weight"
