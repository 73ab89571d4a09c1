"""Deployed mixes at the site: their scores on the held-out rows of clients that stand side by side,
and a client's own model as an adapter in PEFT's format, which stays there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from fedsdr.data.render import render_prompt
from fedsdr.evaluate.scoring import Worn
from fedsdr.model.adapters import save_adapter
from fedsdr.parts.algorithm import PerInput, mix_weights, split_mix
from fedsdr.site.branches import Branches
from fedsdr.site.site import Site
from fedsdr.tensors import rng_sample
from fedsdr.types import FOLD, ClientData, Order, Report, Tensors


def score(site: Site, group: Sequence[Order]) -> Iterator[Report]:
    clients, split = [site.scored[order.client_id] for order in group], group[0].split
    with site.lora.folded(group[0].shared):
        scores = site.scorer.score(worn(site, group), clients, split)
    for order, of in zip(group, scores, strict=True):
        yield Report(order.run, order.round, order.client_id, "score", of)


def worn(site: Site, group: Sequence[Order]) -> Worn:
    """The mix that these orders name: one model for all, or each client's own."""
    first = group[0]
    if not first.mix:
        return Worn(site.lora, {}, "", batch=site.rows_scored)
    mix = site.algorithm.deploys[first.mix]
    personal = site.algorithm.is_personal(mix)
    states = [site.run.own_tensors(o.client_id, o.round) for o in group] if personal else [{}]
    flats, _ = site.branches.enter(first.shared, states)
    clients = [site.scored[order.client_id] for order in group]
    return Worn(
        site.lora,
        {b: flats[b] for b in split_mix(mix) if b != FOLD},
        mix,
        max_length=site.max_length,
        batch=site.rows_scored,
        anchors=[_anchor(site, c, mix) for c in clients] if isinstance(mix, PerInput) else [],
    )


def _anchor(site: Site, client: ClientData, mix: PerInput) -> Tensor:
    """The base's last states of a few training prompts of the client, drawn once per run."""
    rows, base = {e.id: e for e in client.train}, site.lora.base
    many = min(mix.prompts, len(rows))
    ids = rng_sample(sorted(rows), many, site.seed, client.client_id, "anchors")
    return base.last_states([render_prompt(base, rows[i]) for i in ids])


def save(site: Site, group: Sequence[Order]) -> Iterator[Report]:
    for order in group:
        mix = site.algorithm.deploys[order.mix]
        private = site.run.own_tensors(order.client_id, order.round)
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
