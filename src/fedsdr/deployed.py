"""What is deployed: every mix of branches, scored on every client's held-out rows and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fedsdr.assembly import Experiment, Watch
from fedsdr.data.render import render_prompt
from fedsdr.errors import RoundFailed
from fedsdr.evaluate.means import ClientScores
from fedsdr.evaluate.scoring import Split, Worn
from fedsdr.model.adapters import save_adapter
from fedsdr.parts.algorithm import PerInput, mix_weights, split_mix
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import rng_sample
from fedsdr.types import FOLD, ClientData

Personal = Callable[[str], Mapping[str, Tensor]]  # client -> its personal tensors
Mixes = Mapping[str, str | PerInput]


def score(
    experiment: Experiment,
    shared: Mapping[str, Tensor],
    personal: Personal,
    split: Split,
    mixes: Mixes | None = None,
    watch: Watch | None = None,
    clients: Sequence[ClientData] | None = None,
) -> ClientScores:
    """Every deployed mix on every client's own held-out rows; personal models K at a time."""
    clients = experiment.federation.clients if clients is None else clients
    scorer, watch = experiment.federation.scorer, watch or Watch()
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, mix in (mixes or experiment.algorithm.deploys).items():
        own = is_personal(experiment, mix)
        k = experiment.stack if own else max(1, len(clients))
        found[name] = {}
        for first in range(0, len(clients), k):
            group = clients[first : first + k]
            states = [personal(c.client_id) for c in group] if own else [{}]
            with experiment.lora.folded(shared):
                scores = scorer.score(_worn(experiment, shared, states, mix, group), group, split)
            found[name].update({c.client_id: s for c, s in zip(group, scores, strict=True)})
            watch.advance(f"scoring {name}", len(found[name]), len(clients))
    return found


def score_less(experiment: Experiment) -> dict[str, int]:
    """Half the rows at a time; of one row, half the clients side by side. What run.json is to hold
    of it."""
    evaluation = experiment.recipe.evaluation
    if evaluation.batch > 1:
        half = evaluation.model_copy(update={"batch": evaluation.batch // 2})
        experiment.recipe = experiment.recipe.model_copy(update={"evaluation": half})
        return {"evaluation_batch": half.batch}
    if experiment.stack > 1:
        experiment.stack //= 2
        return {"stack": experiment.stack}
    raise RoundFailed(
        "memory ran out while one row of one client was scored; lower model.max_length or the ranks"
    )


def is_personal(experiment: Experiment, mix: str | PerInput) -> bool:
    """Whether every client has a model of its own by this mix."""
    own = set(split_mix(mix)) & set(experiment.algorithm.personal())
    return bool(own) or isinstance(mix, PerInput)


def save_adapters(
    experiment: Experiment,
    folder: Path,
    shared: Mapping[str, Tensor],
    personal: Personal,
    mixes: Mixes | None = None,
) -> None:
    """`global/` and, where a mix has a personal branch, `personal/<client>/`, in PEFT's format. A
    mix that depends on the input is no adapter and is passed over."""
    for name, mix in (mixes or experiment.algorithm.deploys).items():
        if isinstance(mix, PerInput):
            continue
        targets = {folder / name: dict[str, Tensor]()}
        if is_personal(experiment, mix):
            ids = [client.client_id for client in experiment.trained]
            targets = {folder / name / c: dict(personal(c)) for c in ids}
        for target, state in targets.items():
            flats, _ = experiment.branches.enter(shared, [state])
            with experiment.lora.folded(shared):
                own = {b: flat[0] for b, flat in flats.items()}
                save_adapter(target, experiment.lora, own, mix_weights(mix))


def personal_states(run: RunDirectory, round: int) -> Personal:
    """A client's personal tensors as they were after a round."""

    def named(client_id: str) -> Mapping[str, Tensor]:
        state = run.load_client_state(client_id, round + 1)
        return state.tensors.get("branches", {}) if state is not None else {}

    return named


def _worn(
    experiment: Experiment,
    shared: Mapping[str, Tensor],
    states: Sequence[Mapping[str, Tensor]],
    mix: str | PerInput,
    group: Sequence[ClientData],
) -> Worn:
    flats, _ = experiment.branches.enter(shared, states)
    anchors = [_anchor(experiment, c, mix) for c in group] if isinstance(mix, PerInput) else []
    return Worn(
        experiment.lora,
        {b: flats[b] for b in split_mix(mix) if b != FOLD},
        mix,
        experiment.max_length,
        experiment.recipe.evaluation.batch,
        anchors=anchors,
    )


def _anchor(experiment: Experiment, client: ClientData, mix: PerInput) -> Tensor:
    """The base's last states of a few training prompts of the client, drawn once per run."""
    chosen = {e.id: e for e in client.train}
    ids = rng_sample(
        sorted(chosen),
        min(mix.prompts, len(chosen)),
        experiment.recipe.seed,
        client.client_id,
        "anchors",
    )
    base = experiment.base
    return base.last_states([render_prompt(base, chosen[i]) for i in ids])
