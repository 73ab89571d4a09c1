"""`clients/<id>/answers.jsonl`: what the base and deployed models answer to a few of the client's
test questions. Private: how many there are is all that is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from fedsdr.data.render import render_prompt
from fedsdr.site.score import worn
from fedsdr.site.site import Site
from fedsdr.tensors import rng_sample
from fedsdr.types import ClientData, Example, Order, Report

ANSWERS = "answers.jsonl"
BASE = "base"
LONGEST_ANSWER = 128  # tokens


def answer(site: Site, group: Sequence[Order]) -> Iterator[Report]:
    """Ask, and write down, together with what other models have said since the base was asked."""
    length = min(LONGEST_ANSWER, site.rewriting.sampling.max_new_tokens)
    room = min(length, site.lora.base.max_length // 2)
    asked = [_asked(site, site.scored[order.client_id], room) for order in group]
    # No more rows side by side than in training, so that memory which held then holds now.
    most = site.stack * (site.training.micro_batch or site.training.batch)
    model = replace(worn(site, group), batch=max(1, min(most, site.rows_scored)))
    with site.lora.folded(group[0].shared):
        answers = model.answer(asked, room)
    for order, rows, texts in zip(group, asked, answers, strict=True):
        by_model = site.answers.setdefault(order.client_id, {})
        if not order.mix:
            by_model.clear()
        by_model[order.mix or BASE] = texts
        if rows:
            site.run.save_private_rows(order.client_id, ANSWERS, _rows(site, rows, by_model))
        yield Report(order.run, order.round, order.client_id, "answer", {"answers": len(rows)})


def _rows(
    site: Site, asked: Sequence[Example], by_model: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    for place, example in enumerate(asked):
        answers = {model: texts[place] for model, texts in by_model.items()}
        row: dict[str, Any] = {
            "id": example.id,
            "prompt": example.prompt,
            "reference": example.response,
            "answers": answers,
        }
        if site.truth is not None:
            row["judged"] = {m: site.truth.verdict(example, a) for m, a in answers.items()}
        yield row


def _asked(site: Site, client: ClientData, room: int) -> list[Example]:
    """The test rows that are asked, drawn once, whoever answers. A prompt that leaves no room for
    an answer is passed over."""
    rows, base = client.test, site.lora.base
    places = [*map(str, range(len(rows)))]
    order = rng_sample(places, len(rows), site.seed, client.client_id, "asked")
    fitting = (
        place
        for place in map(int, order)
        if len(render_prompt(base, rows[place])) + room <= base.max_length
    )
    return [rows[place] for place in sorted(islice(fitting, site.rows_answered))]
