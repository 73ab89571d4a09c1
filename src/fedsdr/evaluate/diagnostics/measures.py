"""All measures of how different clients are, view by view (raw, rewritten), as the figures that
diagnosis.json holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsdr.data.render import Rendered, render
from fedsdr.distill.checks import prompt_text
from fedsdr.evaluate.diagnostics.gradients import base_gradients, loss_transfer, train_apart
from fedsdr.evaluate.diagnostics.representations import (
    cka,
    js_divergence,
    maps,
    mean_states,
    tfidf_cosine,
)
from fedsdr.evaluate.diagnostics.tables import (
    as_matrix,
    cosines,
    mean,
    off_diagonal,
    rounded,
)
from fedsdr.model.lora import StackedLora
from fedsdr.parts.local import LocalSettings
from fedsdr.tensors import generator
from fedsdr.types import Example

OF_TEXTS = ("js", "tfidf")
OF_MODEL = ("lengths", "gradient", "transfer", "pca", "cka")
SHARED_ROWS = 256  # of all clients together, on which CKA compares models
Clients = Mapping[str, Sequence[Example]]
Figures = dict[str, dict[str, Any]]  # view -> measure -> what the file holds
Advance = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The base, an untrained branch on it, and how clients train. `examples`: rows of each client
    at most, for gradients, losses and states."""

    lora: StackedLora
    branch: str
    start: Tensor  # [P], B zero
    settings: LocalSettings
    lr: float
    stack: int
    batch: int
    max_length: int
    seed: int
    examples: int = 64
    steps: int = 20

    def render(self, clients: Clients) -> dict[str, list[Rendered]]:
        base, limit = self.lora.base, self.max_length
        return {
            name: [render(base, e, limit) for e in examples] for name, examples in clients.items()
        }

    def some(self, rows: Mapping[str, Sequence[Rendered]], most: int) -> list[list[Rendered]]:
        """At most so many of each client's rows, the same of every view."""
        return [
            [client_rows[i] for i in choose(len(client_rows), most, self.seed, name)]
            for name, client_rows in rows.items()
        ]


def choose(count: int, most: int, seed: int, client: str) -> list[int]:
    """Which of a client's rows are looked at, in their order."""
    order = torch.randperm(count, generator=generator(seed, "diagnosis", client))
    return sorted(order[:most].tolist())


def measure_texts(measures: Collection[str], views: Mapping[str, Clients]) -> Figures:
    """Prompts are nobody's to rewrite, so they are measured once, with the first view."""
    figures: Figures = {name: {} for name in views}
    for number, (name, clients) in enumerate(views.items()):
        answers = [[e.response for e in examples] for examples in clients.values()]
        if "js" in measures:
            figures[name]["js_divergence"] = _between(js_divergence(answers)) | {"base": 2}
            if number == 0:
                prompts = [map(prompt_text, examples) for examples in clients.values()]
                figures[name]["js_divergence_prompts"] = _between(js_divergence(prompts)) | {
                    "base": 2
                }
        if "tfidf" in measures:
            figures[name]["tfidf_cosine"] = _between(tfidf_cosine(answers))
    return figures


def measure_model(
    bench: Bench,
    measures: Collection[str],
    rows: Mapping[str, Mapping[str, Sequence[Rendered]]],
    held_out: Mapping[str, Sequence[Rendered]],
    advance: Advance,
) -> Figures:
    """`rows`: view -> client -> its training rows; the views' rows are those of the same
    examples."""
    figures: Figures = {name: {} for name in rows}
    clients = list(held_out)
    unseen = bench.some(held_out, bench.examples)
    share = min(bench.examples, -(-SHARED_ROWS // len(clients)))
    shared = [row for client_rows in bench.some(held_out, share) for row in client_rows]
    for name, by_client in rows.items():
        into = figures[name]
        some = bench.some(by_client, bench.examples)
        if "lengths" in measures:
            into["response_tokens"] = {
                c: _spread([r.trained for r in by_client[c]]) for c in clients
            }
        if "gradient" in measures:
            tell = _counted(advance, f"gradients, {name}", len(clients))
            grads = base_gradients(
                bench.lora,
                bench.branch,
                start=bench.start,
                rows=some,
                settings=bench.settings,
                stack=bench.stack,
                tell=tell,
            )
            into["gradient_cosine"] = _gradients(cosines(grads))
        if {"transfer", "cka"} & set(measures) and shared:
            models = _trained(
                bench, by_client, _counted(advance, f"training, {name}", len(clients))
            )
            if "transfer" in measures:
                tell = _counted(advance, f"loss transfer, {name}", len(clients))
                into["loss_transfer"] = _transfer(
                    loss_transfer(
                        bench.lora,
                        bench.branch,
                        trained=models,
                        held_out=unseen,
                        stack=bench.stack,
                        batch=bench.batch,
                        tell=tell,
                    )
                )
            if "cka" in measures:
                tell = _counted(advance, f"states, {name}", len(clients))
                into["cka"] = _cka(bench, models, shared, tell)
    if "pca" in measures:
        for name, value in _maps(bench, rows).items():
            figures[name]["pca"] = value
    return figures


def _trained(
    bench: Bench, rows: Mapping[str, Sequence[Rendered]], tell: Callable[[int], None]
) -> Tensor:
    needed = bench.some(rows, bench.steps * bench.settings.batch)
    return train_apart(
        bench.lora,
        bench.branch,
        start=bench.start,
        rows=needed,
        settings=bench.settings,
        lr=bench.lr,
        steps=bench.steps,
        stack=bench.stack,
        seed=bench.seed,
        told=tell,
    )


def _between(values: Tensor) -> dict[str, Any]:
    matrix = as_matrix(values)
    return {"matrix": matrix, "mean": mean(off_diagonal(matrix))}


def _gradients(values: Tensor) -> dict[str, Any]:
    figures = _between(values)
    pairs = off_diagonal(figures["matrix"])
    conflict = rounded(sum(v < 0 for v in pairs) / len(pairs)) if pairs else None
    return figures | {"conflict": conflict}


def _transfer(values: Tensor) -> dict[str, Any]:
    matrix = as_matrix(values)
    diagonal = mean(row[i] for i, row in enumerate(matrix))
    return {"matrix": matrix, "own": diagonal, "other": mean(off_diagonal(matrix))}


def _cka(
    bench: Bench, models: Tensor, shared: Sequence[Rendered], tell: Callable[[int], None]
) -> dict[str, Any]:
    """Between the clients' models, and of each with the base."""
    states = list(mean_states(bench.lora, bench.branch, None, shared, bench.batch))
    for group in models.split(bench.stack):
        states += list(mean_states(bench.lora, bench.branch, group, shared, bench.batch))
        tell(len(group))
    matrix = as_matrix(cka(states))
    local = [row[1:] for row in matrix[1:]]
    return {
        "matrix": local,
        "mean": mean(off_diagonal(local)),
        "to_base": matrix[0][1:],
        "rows": len(shared),
    }


def _maps(bench: Bench, rows: Mapping[str, Mapping[str, Sequence[Rendered]]]) -> Figures:
    states, owners, names = dict[str, Tensor](), list[int](), list[str]()
    for view, by_client in rows.items():
        some, names = bench.some(by_client, bench.examples), list(by_client)
        owners = [k for k, client_rows in enumerate(some) for _ in client_rows]
        flat = [row for client_rows in some for row in client_rows]
        (states[view],) = mean_states(bench.lora, bench.branch, None, flat, bench.batch)
    return {
        view: {
            "points": [
                {"client": names[k], "x": rounded(x), "y": rounded(y)}
                for k, (x, y) in zip(owners, view_map.points.tolist(), strict=True)
            ],
            "explained": [rounded(share) for share in view_map.explained],
            "between": rounded(view_map.between),
        }
        for view, view_map in maps(states, owners).items()
    }


def _spread(lengths: Sequence[int]) -> dict[str, float | None]:
    if not lengths:
        return dict.fromkeys(("p10", "p50", "p90"))
    return {f"p{p}": rounded(float(np.percentile(lengths, p))) for p in (10, 50, 90)}


def _counted(advance: Advance, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        advance(what, done, total)

    return tell
