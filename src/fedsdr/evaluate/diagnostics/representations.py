"""Where clients' rows lie in a model's eyes: a map of their mean last states by PCA, and linear CKA
between models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsdr.data.batches import make_block
from fedsdr.data.render import Rendered
from fedsdr.evaluate.diagnostics.matrix import cosines
from fedsdr.evaluate.diagnostics.transfer import chunks
from fedsdr.model.lora import StackedLora


@torch.no_grad()
def mean_states(
    lora: StackedLora, branch: str, flats: Tensor | None, rows: Sequence[Rendered], batch: int
) -> Tensor:
    """[models, rows, d]: each row's last-layer states, mean over its tokens, prompt and response
    but the closing one; by the base (None), or by K models side by side."""
    base, device = lora.base, lora.base.net.device
    worn = {} if flats is None else {branch: flats.to(device)}
    models = 1 if flats is None else len(flats)
    parts, order = list[Tensor](), list[int]()
    for chunk in chunks(rows, max(1, batch // models)):
        block = make_block([[rows[i] for i in chunk]] * models, base.pad, device)
        places = torch.arange(1, block.ids.shape[1], device=device) < block.lengths[:, None]
        with lora.wear(worn, tuple(worn)):
            states = base.predictions(block.ids, block.lengths, places, hidden=True)[1][-1].double()
        owner = torch.nonzero(places)[:, 0]
        sums = states.new_zeros(len(block.lengths), states.shape[1]).index_add(0, owner, states)
        means = sums / (block.lengths - 1)[:, None]
        parts.append(means.view(models, len(chunk), -1).cpu())
        order += chunk
    return torch.cat(parts, dim=1)[:, torch.tensor(order).argsort()]


@dataclass(frozen=True, slots=True)
class Map:
    """Points on two axes, what share of these points' variance each axis holds, and what share lies
    between the clients' centres (in all dimensions)."""

    points: Tensor  # [n, 2]
    explained: tuple[float, float]
    between: float


def maps(views: Mapping[str, Tensor], owners: Sequence[int]) -> dict[str, Map]:
    """One map per view, all on the axes of the first: its two principal components. `owners[n]` is
    the client of row n of every view."""
    first = next(iter(views.values()))
    centre = first.mean(dim=0)
    axes = torch.linalg.svd(first - centre, full_matrices=False).Vh[:2]
    strongest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, strongest).sign()  # or the sign would be the library's choice
    return {
        name: _map(states, centre, axes, torch.tensor(owners)) for name, states in views.items()
    }


def cka(states: Sequence[Tensor]) -> Tensor:
    """[M, M]: linear CKA (Kornblith et al. 2019) between models' states [n, d] of the same n rows:
    the cosine of their centred Gram matrices. NaN where all states of a model are the same."""
    grams = list[Tensor]()
    for model_states in states:
        centred = (model_states - model_states.mean(dim=0)).double()
        grams.append((centred @ centred.T).flatten())
    return cosines(torch.stack(grams))


def _map(states: Tensor, centre: Tensor, axes: Tensor, owners: Tensor) -> Map:
    points = (states - centre) @ axes.T
    total = float((states - states.mean(dim=0)).square().sum())
    spread = (points - points.mean(dim=0)).square().sum(dim=0)
    groups = [states[owners == owner] for owner in owners.unique()]
    between = sum(
        len(group) * float((group.mean(dim=0) - states.mean(dim=0)).square().sum())
        for group in groups
    )
    shares = [float(s) / total if total else float("nan") for s in (*spread, 0.0)]
    if points.shape[1] < 2:  # fewer than two directions to look along
        points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
    return Map(points, (shares[0], shares[1]), between / total if total else float("nan"))
