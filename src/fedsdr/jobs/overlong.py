"""Rows that do not fit into the model: refused by name (plan/rows.py), or left out and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedsdr.data.render import render, render_prompt
from fedsdr.distill import prompts
from fedsdr.distill.engine import no_room
from fedsdr.errors import DataError
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Recipe, RewritingChoice
from fedsdr.types import ClientData, Example

NAMED = 8  # clients in one message
UNCUT = 1 << 40
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many rows, by client and part; those that lost none are not in it."""

    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    notes: tuple[str, ...] = ()


def leave_out(
    recipe: Recipe, base: BaseModel, clients: Sequence[ClientData], limit: int
) -> tuple[tuple[ClientData, ...], LeftOut]:
    """The clients without the rows whose prompt fills `limit`, so that nothing of the response
    would be left, and without the training rows that leave no room for a rewrite: under whatever
    algorithm, for methods that are compared have to have the same rows."""
    kept_clients, rows, why = list[ClientData](), dict[str, Mapping[str, int]](), Counter[str]()
    for client in clients:
        kept = dict[str, tuple[Example, ...]]()
        for part in PARTS:
            examples: tuple[Example, ...] = getattr(client, part)
            wrong = [_wrong(recipe, base, e, limit, part == "train") for e in examples]
            why.update(filter(None, wrong))
            kept[part] = tuple(e for e, w in zip(examples, wrong, strict=True) if not w)
        lost = {part: len(getattr(client, part)) - len(kept[part]) for part in PARTS}
        if lost["train"] == len(client.train) > 0:
            raise DataError(
                f"client {client.client_id!r}: data.overlong: drop would leave none of its "
                f"{lost['train']} training rows; raise model.max_length (now {limit}), lower "
                "rewriting.max_new_tokens, or leave the client out"
            )
        if any(lost.values()):
            rows[client.client_id] = {part: count for part, count in lost.items() if count}
        kept_clients.append(replace(client, **kept))
    return tuple(kept_clients), LeftOut(rows, _told(rows, why))


def room_to_rewrite(base: BaseModel, choice: RewritingChoice, example: Example) -> str:
    """Why an example leaves no room for its rewrite; nothing if it does."""
    if choice.engine is not None:
        return ""  # the server's model has positions of its own
    asked = prompts.render(prompts.choose_template(example, choice.template), example)
    return no_room(base, len(render_prompt(base, asked)), choice.max_new_tokens)


def _wrong(recipe: Recipe, base: BaseModel, example: Example, limit: int, trained: bool) -> str:
    try:
        if render(base, example, UNCUT).prompt >= limit:
            return f"prompts that alone fill model.max_length ({limit} tokens)"
        if trained and room_to_rewrite(base, recipe.rewriting, example):
            return f"training rows that leave no room for a rewrite ({base.max_length} positions)"
    except DataError:
        pass  # of another kind: told with the other rows that cannot be used
    return ""


def _told(rows: Mapping[str, Mapping[str, int]], why: Mapping[str, int]) -> tuple[str, ...]:
    if not rows:
        return ()
    places = [f"{client} {sum(lost.values())}" for client, lost in rows.items()]
    rest = f" and {len(places) - NAMED} more clients" if len(places) > NAMED else ""
    reasons = "; ".join(f"{wrong}: {count}" for wrong, count in why.items())
    return (
        f"data.overlong: drop left out {sum(why.values())} rows "
        f"({', '.join(places[:NAMED])}{rest}): {reasons}",
    )
