"""`clients/<id>/answers.jsonl`: what base and deployed models answer to a few of the client's test
questions. Private."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from fedsdr.assembly import Experiment, Watch
from fedsdr.data.render import render_prompt
from fedsdr.deployed import personal_states, score
from fedsdr.evaluate.scoring import Split, Worn
from fedsdr.keepsakes.rewrites import judged
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import rng_sample
from fedsdr.types import ClientData

ANSWERS = "answers.jsonl"
CLIENTS_ASKED = 64
LONGEST_ANSWER = 128  # tokens
BASE = "base"


def keep_answers(
    experiment: Experiment, run: RunDirectory, rounds: Mapping[str, int], watch: Watch
) -> None:
    """What the base and every deployed mix answer to a few test questions of each client; `rounds`:
    the round at which each mix is deployed."""
    recipe, base = experiment.recipe, experiment.base
    room = min(LONGEST_ANSWER, recipe.rewriting.max_new_tokens, base.max_length // 2)
    clients = _sampled(experiment, room)
    if not clients:
        return
    # No more rows side by side than in training, so that memory which held then holds now.
    rows = experiment.stack * (experiment.local.micro_batch or experiment.local.batch)
    asking = _Asking(room, max(1, min(rows, recipe.evaluation.batch)))
    federation = replace(experiment.federation, scorer=asking)
    wearing, mixes = replace(experiment, federation=federation), experiment.algorithm.deploys
    asking.score(Worn(experiment.lora, {}, ""), clients, "test")
    said = {BASE: dict(asking.said)}
    for done, (name, round) in enumerate(rounds.items()):
        watch.advance("sample answers", done, len(rounds))
        shared = run.load_checkpoint(round).tensors.get("shared", {})
        mix = {name: mixes[name]}
        score(wearing, shared, personal_states(run, round), "test", mix, clients=clients)
        said[name] = dict(asking.said)
    watch.advance("sample answers", len(rounds), len(rounds))
    for client in clients:
        found = {model: answers[client.client_id] for model, answers in said.items()}
        run.save_private_rows(client.client_id, ANSWERS, _answers(experiment, client, found))


def _answers(
    experiment: Experiment, client: ClientData, said: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    for place, example in enumerate(client.test):
        answers = {model: own[place] for model, own in said.items()}
        row: dict[str, Any] = {
            "id": example.id,
            "prompt": example.prompt,
            "reference": example.response,
            "answers": answers,
        }
        if experiment.federation.atlas is not None:
            row["judged"] = {m: judged(experiment, example, a) for m, a in answers.items()}
        yield row


def _sampled(experiment: Experiment, room: int) -> tuple[ClientData, ...]:
    """The clients that are asked, each with the test rows that it is asked: drawn once, whoever
    answers. A prompt that leaves no room for an answer is passed over."""
    recipe, base = experiment.recipe, experiment.base
    clients = {c.client_id: c for c in experiment.federation.clients if c.test}
    names = rng_sample(list(clients), CLIENTS_ASKED, recipe.seed, "clients asked")
    found = list[ClientData]()
    for name in sorted(names) if recipe.evaluation.answers else ():
        rows = clients[name].test
        order = rng_sample([*map(str, range(len(rows)))], len(rows), recipe.seed, name, "asked")
        fitting = (
            place
            for place in map(int, order)
            if len(render_prompt(base, rows[place])) + room <= base.max_length
        )
        places = sorted(islice(fitting, recipe.evaluation.answers))
        if places:
            found.append(replace(clients[name], test=tuple(rows[place] for place in places)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Asking:
    """A scorer that gives no scores, and remembers what was answered last."""

    room: int
    batch: int
    best_on: str = ""
    higher_is_better: bool = True
    said: dict[str, list[str]] = field(default_factory=lambda: dict[str, list[str]]())

    def score(
        self, model: Worn, clients: Sequence[ClientData], split: Split
    ) -> list[dict[str, float]]:
        answers = replace(model, batch=self.batch).answer([c.test for c in clients], self.room)
        self.said.update({c.client_id: own for c, own in zip(clients, answers, strict=True)})
        return [{} for _ in clients]
