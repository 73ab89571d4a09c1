"""Stacked LoRA: K clients' branches side by side over one frozen base.

A branch holds, for every adapted layer, A: [K, r, in] and B: [K, out, r]. The base runs once over
the rows of all K clients (client by client, equally many each); the branches are batched matrix
products, so client k's rows meet client k's branches only:

    h_out = W0 h + Σ_branch (α/r) B_k A_k h          (all branches in parallel)

All numbers of a branch lie in one flat [K, P] tensor, of which A and B are views: an optimiser
step, a clipping norm or an average over a branch is one operation, and dropping finished clients is
a slice.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsdr.errors import ModelError
from fedsdr.model.base import BaseModel, in_out, linear_layers
from fedsdr.model.flat import Rows, current_rows
from fedsdr.model.targets import choose_layers, renamed_layers
from fedsdr.parts.objectives import Injected
from fedsdr.tensors import generator
from fedsdr.types import FOLD

Fold = Tensor | tuple[Tensor, Tensor]  # dense [out, in], or the pair A [r, in], B [out, r]


@dataclass(frozen=True, slots=True)
class BranchSpec:
    rank: int = 8
    alpha: float = 16.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one layer's A or B lies in the flat tensor."""

    name: str  # "<layer>.A" or "<layer>.B"
    start: int
    shape: tuple[int, int]

    @property
    def stop(self) -> int:
        return self.start + self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of all A's and B's of one branch in its flat tensor."""

    spec: BranchSpec
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return self.pieces[-1].stop

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views by name: of one client's [P], or of K clients' [K, P]."""
        lead = flat.shape[:-1]
        parts = flat.split([p.stop - p.start for p in self.pieces], dim=-1)  # one node in the graph
        return {
            p.name: part.view(*lead, *p.shape) for p, part in zip(self.pieces, parts, strict=True)
        }

    def flat(self, named: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
        """One client's named tensors as [P]."""
        parts = [named[p.name].to(device=device, dtype=dtype).reshape(-1) for p in self.pieces]
        return torch.cat(parts)

    def columns(self, which: str) -> Tensor:
        """The positions of all A's (or all B's) in the flat tensor."""
        return torch.cat(
            [torch.arange(p.start, p.stop) for p in self.pieces if p.name.endswith("." + which)]
        )


@dataclass(frozen=True, slots=True)
class Attire:
    """What a layer wears: a pair (A, B·scale), P, and what disturbs the pair."""

    worn: tuple[Tensor, Tensor] | None = None
    fold: Fold | None = None
    injected: Injected | None = None


PLAIN = Attire()


class StackedLinear(nn.Module):
    """A frozen linear layer plus whatever it wears."""

    def __init__(self, base: nn.Module, name: str) -> None:
        super().__init__()
        self.base, self.name = base, name
        self.attire = PLAIN

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        if self.attire.fold is not None:
            out = out + _folded(x, self.attire.fold).to(out.dtype)
        if self.attire.worn is None:
            return out
        (a, b), injected = self.attire.worn, self.attire.injected
        if (flat := current_rows()) is not None:
            tokens, made = x.flatten(0, -2), out.flatten(0, -2)
            return self._flat(tokens, made, a, b, flat).view(out.shape)
        rows = x.reshape(a.shape[0], -1, x.shape[-1]).to(a.dtype)
        stacked = out.reshape(a.shape[0], -1, out.shape[-1])
        hidden = torch.bmm(rows, a.transpose(1, 2))
        if injected is not None:
            change = torch.bmm(injected.latent(self.name, hidden), b.transpose(1, 2))
            change = injected.output(self.name, change)
            return (stacked + change.to(out.dtype)).view(out.shape)
        if stacked.dtype == a.dtype:
            return torch.baddbmm(stacked, hidden, b.transpose(1, 2)).view(out.shape)
        return (stacked + torch.bmm(hidden, b.transpose(1, 2)).to(out.dtype)).view(out.shape)

    def _flat(self, x: Tensor, out: Tensor, a: Tensor, b: Tensor, rows: Rows) -> Tensor:
        """The same for tokens [N, in] that stand client by client, as two products over all
        clients' ranks side by side, of which a mask leaves each token its own client's: a few large
        products are faster than many small ones, as long as there are few tokens."""
        clients, rank = a.shape[:2]
        if clients > 1 and self.attire.injected is None and rows.many(clients):
            pairs = zip(x.split(rows.tokens(clients)), a.unbind(), b.unbind(), strict=True)
            changes = [(tokens.to(a.dtype) @ down.T) @ up.T for tokens, down, up in pairs]
            return out + torch.cat(changes).to(out.dtype)
        hidden = x.to(a.dtype) @ a.flatten(0, 1).T
        if clients > 1:
            hidden = hidden * rows.own_columns(clients, rank, a.dtype)
        wide = b.transpose(1, 2).flatten(0, 1)
        if (injected := self.attire.injected) is not None:
            change = injected.latent(self.name, hidden) @ wide
            return out + injected.output(self.name, change).to(out.dtype)
        if out.dtype == a.dtype:
            return torch.addmm(out, hidden, wide)
        return out + (hidden @ wide).to(out.dtype)


class StackedLora:
    """Adapts the layers of a base whose names match a pattern; wears branches while it is asked
    to."""

    def __init__(self, base: BaseModel, targets: str, specs: Mapping[str, BranchSpec]) -> None:
        self.base = base
        if any(isinstance(module, StackedLinear) for module in base.net.modules()):
            raise ModelError(
                "this base already wears a StackedLora; load it again or remove that one"
            )
        modules = linear_layers(base.net)
        head = base.net.get_output_embeddings()
        names = [name for name, module in modules.items() if module is not head]
        renamed = renamed_layers(base.net, names)
        chosen = choose_layers(targets, names, base.net.config.model_type, base.rigid, renamed)
        self.notes = chosen.notes
        self.layers: dict[str, StackedLinear] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        for name in chosen.layers:
            parent, _, child = name.rpartition(".")
            owner = base.net.get_submodule(parent)
            layer = getattr(owner, child)
            self.shapes[name] = in_out(layer)
            self.layers[name] = StackedLinear(layer, name)
            setattr(owner, child, self.layers[name])
        self.layouts = {branch: self._layout(spec) for branch, spec in specs.items()}
        self.folds: dict[str, Fold] = {}

    def remove(self) -> None:
        """Give the base back as it was."""
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.base.net.get_submodule(parent), child, layer.base)

    def transposed(self) -> bool:
        """Whether the adapted layers keep their weight as [in, out] (GPT-2's Conv1D)."""
        return any(not isinstance(layer.base, nn.Linear) for layer in self.layers.values())

    def target_modules(self) -> list[str]:
        """The adapted layers as PEFT names them: by their last part where that is unambiguous."""
        tails = {name.rsplit(".", 1)[-1] for name in self.layers}
        names = {n for n, _ in self.base.net.named_modules()}  # PEFT adapts what bears the name,
        adapted = {*self.layers, *(f"{n}.base" for n in self.layers)}  # a layer or not
        others = {n.rsplit(".", 1)[-1] for n in names - adapted}
        return sorted(self.layers) if tails & others else sorted(tails)

    def fresh(self, branch: str, *seed: str | int) -> Tensor:
        """One client's start [P], as PEFT's: A uniform in ±1/sqrt(in), B zero."""
        layout, random = self.layouts[branch], generator(*seed)
        flat = torch.zeros(layout.size, dtype=torch.float64)
        for piece in layout.pieces:
            if piece.name.endswith(".A"):
                bound = 1 / math.sqrt(piece.shape[1])
                drawn = torch.rand(piece.shape, generator=random, dtype=torch.float64)
                flat[piece.start : piece.stop] = ((2 * drawn - 1) * bound).reshape(-1)
        return flat

    @contextmanager
    def wear(
        self,
        flats: Mapping[str, Tensor],
        mix: Sequence[str] | Mapping[str, float],
        factors: Mapping[str, Tensor] | None = None,
        injected: Injected | None = None,
    ) -> Generator[None]:
        """Run the base with the branches of `mix` (as much as each counts): `flats[branch]` is
        [K, P]; `factors[branch]`, [K], multiplies a branch's scale client by client (0 switches it
        off)."""
        counts = mix if isinstance(mix, Mapping) else dict.fromkeys(mix, 1.0)
        worn = [branch for branch in counts if branch != FOLD]
        views = {branch: self.layouts[branch].named(flats[branch]) for branch in worn}
        scales = {
            b: _scale(counts[b] * self.layouts[b].spec.scale, (factors or {}).get(b)) for b in worn
        }
        before = {name: layer.attire for name, layer in self.layers.items()}
        try:
            for name, layer in self.layers.items():
                pair = (
                    (
                        _cat([views[b][name + ".A"] for b in worn], dim=1),
                        _cat([views[b][name + ".B"] * scales[b] for b in worn], dim=2),
                    )
                    if worn
                    else None
                )
                fold = self.folds.get(name) if FOLD in counts else None
                layer.attire = Attire(pair, fold, injected)
            yield
        finally:
            for name, layer in self.layers.items():
                layer.attire = before[name]

    @contextmanager
    def folded(self, named: Mapping[str, Tensor]) -> Generator[None]:
        """Have P at hand for mixes that name it: "P/<layer>.A" and ".B", or dense "P/<layer>.W", in
        units of R's scale."""
        tensors = {n.partition("/")[2]: t for n, t in named.items() if n.startswith(f"{FOLD}/")}
        before, self.folds = self.folds, {}
        if tensors:
            scale, to = self.layouts["R"].spec.scale, self.base.net.device
            dtype = torch.promote_types(self.base.dtype, torch.float32)
            tensors = {n: t.to(to, dtype) for n, t in tensors.items()}
            for layer in dict.fromkeys(n.rpartition(".")[0] for n in tensors):
                if f"{layer}.W" in tensors:
                    self.folds[layer] = tensors[f"{layer}.W"] * scale
                else:
                    self.folds[layer] = (tensors[f"{layer}.A"], tensors[f"{layer}.B"] * scale)
        try:
            yield
        finally:
            self.folds = before

    def _layout(self, spec: BranchSpec) -> Layout:
        pieces: list[Piece] = []
        start = 0
        for name, (width_in, width_out) in self.shapes.items():
            for which, shape in (("A", (spec.rank, width_in)), ("B", (width_out, spec.rank))):
                pieces.append(Piece(f"{name}.{which}", start, shape))
                start = pieces[-1].stop
        return Layout(spec, tuple(pieces))


def _folded(x: Tensor, fold: Fold) -> Tensor:
    if isinstance(fold, Tensor):
        return x.to(fold.dtype) @ fold.T
    a, b = fold
    return (x.to(a.dtype) @ a.T) @ b.T


def _scale(scale: float, factor: Tensor | None) -> Tensor | float:
    return scale if factor is None else scale * factor.view(-1, 1, 1)


def _cat(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
