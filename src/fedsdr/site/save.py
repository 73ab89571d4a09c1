"""A client's own model by a deployed mix, as an adapter in PEFT's format; it stays at the site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsdr.model.adapters import save_adapter
from fedsdr.parts.algorithm import PerInput, mix_weights
from fedsdr.site.branches import Branches
from fedsdr.site.site import Site
from fedsdr.types import Order, Report, Tensors


def save(site: Site, group: Sequence[Order]) -> Iterator[Report]:
    for order in group:
        mix, private = (
            site.algorithm.deploys[order.mix],
            site.run.own_tensors(order.client_id, order.round),
        )
        folder = site.run.inside("adapters") / order.mix / order.client_id
        saved = save_mix(site.branches, folder, order.shared, private, mix)
        yield Report(order.run, order.round, order.client_id, "save", {"adapters": int(saved)})


def save_mix(
    branches: Branches, folder: Path, shared: Tensors, private: Tensors, mix: str | PerInput
) -> bool:
    """Whether it could be: a mix that depends on the input is no adapter."""
    if isinstance(mix, PerInput):
        return False
    flats, _ = branches.enter(shared, [private])
    with branches.lora.folded(shared):
        save_adapter(folder, branches.lora, {b: f[0] for b, f in flats.items()}, mix_weights(mix))
    return True
