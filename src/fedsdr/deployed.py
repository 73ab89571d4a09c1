"""What is deployed: every mix of branches, scored on every client's held-out rows and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from fedsdr.assembly import Experiment, Watch
from fedsdr.evaluate.scoring import Split, Worn
from fedsdr.model.adapters import save_adapter
from fedsdr.parts.algorithm import split_mix
from fedsdr.runs.directory import RunDirectory

ClientScores = Mapping[str, Mapping[str, Mapping[str, float]]]  # mix -> client -> measure -> value
Personal = Callable[[str], Mapping[str, Tensor]]  # client -> its personal tensors


def score(
    experiment: Experiment,
    shared: Mapping[str, Tensor],
    personal: Personal,
    split: Split,
    mixes: Mapping[str, str] | None = None,
    watch: Watch | None = None,
) -> ClientScores:
    """Every deployed mix on every client's own held-out rows; personal models K at a time."""
    clients, scorer = experiment.federation.clients, experiment.federation.scorer
    branches, watch = experiment.branches, watch or Watch()
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, mix in (mixes or experiment.algorithm.deploys).items():
        own = set(split_mix(mix)) & set(experiment.algorithm.personal())
        groups = [list(clients)]
        if own:
            k = experiment.recipe.run.stack
            groups = [list(clients[i : i + k]) for i in range(0, len(clients), k)]
        found[name] = {}
        for group in groups:
            states = [personal(c.client_id) for c in group] if own else [{}]
            flats, _ = branches.enter(shared, states)
            model = Worn(
                experiment.lora,
                {b: flats[b] for b in split_mix(mix)},
                mix,
                experiment.max_length,
                experiment.recipe.evaluation.batch,
            )
            scores = scorer.score(model, group, split)
            found[name].update({c.client_id: s for c, s in zip(group, scores, strict=True)})
            watch.advance(f"scoring {name}", len(found[name]), len(clients))
    return found


def means(scores: ClientScores) -> dict[str, dict[str, float]]:
    """Mix -> measure -> mean over the clients that have it."""
    out: dict[str, dict[str, float]] = {}
    for mix, clients in scores.items():
        measures = dict.fromkeys(m for c in clients.values() for m in c)
        out[mix] = {
            m: sum(c[m] for c in clients.values() if m in c) / sum(m in c for c in clients.values())
            for m in measures
        }
    return out


def save_adapters(
    experiment: Experiment,
    folder: Path,
    shared: Mapping[str, Tensor],
    personal: Personal,
    mixes: Mapping[str, str] | None = None,
) -> None:
    """`global/` and, where a mix has a personal branch, `personal/<client>/`, in PEFT's format."""
    personal_branches = set(experiment.algorithm.personal())
    for name, mix in (mixes or experiment.algorithm.deploys).items():
        if set(split_mix(mix)) & personal_branches:
            for client in experiment.trained:
                flats, _ = experiment.branches.enter(shared, [personal(client.client_id)])
                own = {b: flat[0] for b, flat in flats.items()}
                save_adapter(folder / name / client.client_id, experiment.lora, own, split_mix(mix))
        else:
            flats, _ = experiment.branches.enter(shared, [{}])
            save_adapter(
                folder / name, experiment.lora, {b: f[0] for b, f in flats.items()}, split_mix(mix)
            )


def personal_states(run: RunDirectory, round: int) -> Personal:
    """A client's personal tensors as they were after a round."""

    def named(client_id: str) -> Mapping[str, Tensor]:
        state = run.load_client_state(client_id, round + 1)
        return state.tensors.get("branches", {}) if state is not None else {}

    return named
