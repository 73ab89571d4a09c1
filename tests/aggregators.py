"""Every way of combining that a recipe can name, on two made-up layers and without any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedsdr.algorithms.registry import factories, make_algorithm
from fedsdr.algorithms.server import with_server_rule
from fedsdr.coordinator.admit import Claims, Enrolled, Expected
from fedsdr.parts.algorithm import Algorithm, shared_branches
from fedsdr.parts.local import LocalSettings, of_stage, term_losses
from fedsdr.parts.mix import is_part
from fedsdr.tensors import generator
from fedsdr.types import ServerState, Tensors, Update

LAYERS = ("model.layers.0.mlp.up", "model.layers.1.mlp.up")
ROWS = (3, 12, 7, 5, 9, 4, 6)
CLIENTS = tuple(f"c{k}" for k in range(len(ROWS)))
TRAINING = LocalSettings(epochs=2.0, batch=4)
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "fedavgm damped": {"variant": "damped"},
    "fedadagrad squared": {"variant": "squared_momentum"},
    "fedadam squared": {"variant": "squared_momentum"},
    "fedyogi squared": {"variant": "squared_momentum"},
    "hetlora examples": {"weights": "examples"},
    "fedsdr joint": {"schedule": "joint"},
    "fedsdr share_both": {"ablation": "share_both"},
}
SERVER: Mapping[str, tuple[str | None, Sequence[str]]] = {
    "median": ("median", ()),
    "trimmed_mean": ("trimmed_mean(0.2)", ()),
    "geometric_median": ("geometric_median", ()),
    "krum": (None, ("krum(1)",)),
    "multi_krum": (None, ("multi_krum(1, 4)",)),
    "clip to the median": (None, ("clip",)),
    "clip, multi_krum, geometric_median": ("geometric_median", ("clip(1.0)", "multi_krum(1, 5)")),
}


def aggregators() -> dict[str, Algorithm]:
    found = {n: make_algorithm(n) for n in factories() if n not in ("local", "central")}
    for name, options in VARIANTS.items():
        found[name] = make_algorithm(name.partition(" ")[0], dict(options))
    for name, (combine, filters) in SERVER.items():
        found[name] = with_server_rule(make_algorithm("fedavg"), combine, filters)
    return found


def first_state(algorithm: Algorithm, dtype: torch.dtype = torch.float32) -> ServerState:
    shared = dict[str, torch.Tensor]()
    for branch in dict.fromkeys(shared_branches(algorithm)):
        for layer in LAYERS:
            for half, shape in (("A", (2, 5)), ("B", (4, 2))):
                name = f"{branch}/{layer}.{half}"
                if algorithm.shares(name):
                    drawn = torch.randn(shape, generator=generator("start", name), dtype=dtype)
                    shared[name] = drawn * 0.1 if half == "A" else torch.zeros(shape, dtype=dtype)
    return ServerState(0, shared, seed=7, clients=len(CLIENTS))


def asked(algorithm: Algorithm, state: ServerState) -> dict[str, Tensors]:
    """Of each client, what its update has to hold in the next round."""
    trained = algorithm.trained(state.round + 1)
    sent = algorithm.downlink(state, None)
    wanted = {n: t for n, t in sent.items() if algorithm.shares(n) and is_part(n, trained)}
    return dict.fromkeys(CLIENTS, wanted)


def expected(algorithm: Algorithm, state: ServerState, equal: bool = False) -> Expected:
    enrolled = zip(CLIENTS, ROWS, strict=True)
    claims: dict[str, Claims] = {
        client: Enrolled(rows, TRAINING, 64, equal).claims(algorithm, state.round + 1)
        for client, rows in enrolled
    }
    return Expected("run", state.round + 1, "base", asked(algorithm, state), claims)


def honest(algorithm: Algorithm, state: ServerState, equal: bool = False) -> list[Update]:
    """What clients that play by the rules send."""
    number, found = state.round + 1, list[Update]()
    for client, rows in zip(CLIENTS, ROWS, strict=True):
        metrics: dict[str, float] = {"examples": rows}
        metrics |= {loss.metric: 1.5 for loss in term_losses(algorithm, number)}
        for s, stage in enumerate(algorithm.stages):
            if stage.when(number):
                metrics |= {of_stage("steps", s): 1, of_stage("tokens", s): 40}
        shared = {
            n: 0.1 * torch.randn(t.shape, generator=generator(client, number, n), dtype=t.dtype)
            for n, t in asked(algorithm, state)[client].items()
        }
        weight = 1.0 if equal else float(rows)
        found.append(
            Update(
                run="run",
                round=number,
                client_id=client,
                base_digest="base",
                weight=weight,
                shared=shared,
                metrics=metrics,
            )
        )
    return found
