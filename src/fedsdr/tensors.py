"""Small things done to named tensors, and the seeds that everything random derives from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends on every part and on nothing else (no global state, no clock)."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator of its own for one purpose, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def rng_sample(items: list[str], count: int, *parts: str | int) -> list[str]:
    """`count` of the items, drawn without replacement."""
    order = torch.randperm(len(items), generator=generator(*parts)).tolist()
    return [items[i] for i in order[:count]]


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values, little-endian and row by row, whatever the strides."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in name order."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        sha.update(tensor_bytes(tensor))
    return sha.hexdigest()


def fault(
    tensor: object, shape: Collection[int] | None, dtype: torch.dtype | None, most: float
) -> str | None:
    """What keeps a stranger's tensor from being one of this shape and dtype (where given; of any
    real one else) with finite values up to `most`; None where nothing does."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}, not a tensor"
    odd = tensor.is_sparse or tensor.is_quantized or tensor.is_nested or tensor.is_meta
    if odd or tensor.layout != torch.strided:
        return "no dense tensor with values of its own"
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        return f"shape {tuple(tensor.shape)}, not {tuple(shape)}"
    if tensor.dtype != dtype if dtype is not None else not tensor.dtype.is_floating_point:
        return f"dtype {tensor.dtype}, not {dtype or 'a real number'}"
    values = tensor.detach()
    if not bool(torch.isfinite(values).all()):
        return "NaN or infinity"
    if values.numel() and float(values.abs().max()) > most:
        return f"values beyond {most:g}"
    return None


def ran_out_of_memory(error: BaseException) -> bool:
    """A GPU's own error; on the CPU, torch only says so in words."""
    typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return typed or "allocate memory" in str(error)


def within_memory(action: Callable[[], T], less: Callable[[], object]) -> T:
    """Where memory runs out, the whole of it again, with less at a time: `less` sees to that, or
    says that there is no less."""
    while True:
        try:
            return action()
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        # Out here, where the error no longer holds the tensors of the failed step.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        less()
