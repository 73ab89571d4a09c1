"""One round of local training, of clients that stand side by side. What goes out is the `Update`
at the end of `_trained`, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fedsdr.distill.rewrite import Teacher
from fedsdr.parts.algorithm import Stage
from fedsdr.parts.local import of_stage, of_term
from fedsdr.site.prepare import teacher_of, teacher_tensors, token_rows
from fedsdr.site.site import Site
from fedsdr.tensors import derive_seed
from fedsdr.training.stage import StageJob, train_stage
from fedsdr.types import Lost, Order, Update


def train(site: Site, group: Sequence[Order]) -> Iterator[Update | Lost]:
    with site.lora.folded(group[0].shared):  # P is the same for all
        yield from _trained(site, group)


def _trained(site: Site, group: Sequence[Order]) -> Iterator[Update | Lost]:
    branches, first = site.branches, group[0]
    states = [site.run.load_client_state(o.client_id, o.round) for o in group]
    kept = [s.tensors.get("branches", {}) if s is not None else {} for s in states]
    flats, start = branches.begin([o.shared for o in group], kept)
    began = {branch: flat.clone() for branch, flat in flats.items()}
    teachers = [teacher_of(site, order, state) for order, state in zip(group, states, strict=True)]
    metrics: list[dict[str, float]] = [{} for _ in group]
    for number, stage in enumerate(site.algorithm.stages):
        if not stage.when(first.round):
            continue
        jobs = [_job(site, o, number, stage, t) for o, t in zip(group, teachers, strict=True)]
        lr, now = first.settings["lr"], first.round
        result = train_stage(
            site.lora,
            stage,
            flats=flats,
            jobs=jobs,
            settings=site.training,
            lr=lr,
            start=start,
            round=now,
        )
        flats = {**flats, **result.flats}
        for k, of in enumerate(metrics):
            for term, losses in enumerate((result.losses, *result.other_losses)):
                of[of_term(number, term)] = losses[k]
            of[of_stage("steps", number)] = result.steps[k]
            of[of_stage("tokens", number)] = result.tokens[k]
    for k, order in enumerate(group):
        ended = {branch: flat[k] for branch, flat in flats.items()}
        change = {branch: flat[k] - began[branch][k] for branch, flat in flats.items()}
        if not all(bool(torch.isfinite(flat).all()) for flat in ended.values()):
            yield Lost(order.client_id, "its training diverged; lower training.lr")
            continue  # and its state of the round before stays
        private = branches.private(ended)
        meta = {"teacher": teachers[k].digest, "facts": {}}
        tensors = {"teacher": teacher_tensors(site, teachers[k]), "branches": private}
        # On disk before the update is handed out: a lost acknowledgement cannot lose S.
        site.run.save_client_state(order.client_id, order.round, tensors, meta)
        examples = float(len(site.clients[order.client_id].train))
        yield Update(
            run=order.run,
            round=order.round,
            client_id=order.client_id,
            base_digest=site.lora.base.digest,
            weight=1.0 if site.equal_weights else examples,
            shared=branches.up(change, order.client_id, order.round),
            metrics={**metrics[k], "examples": examples},
        )


def _job(site: Site, order: Order, number: int, stage: Stage, teacher: Teacher) -> StageJob:
    rows = tuple(token_rows(site, order.client_id, term.view, teacher) for term in stage.terms)
    seed = derive_seed(order.seed, order.round, order.client_id, "stage", number)
    return StageJob(order.client_id, rows, seed, site.branches.scales(order.client_id))
