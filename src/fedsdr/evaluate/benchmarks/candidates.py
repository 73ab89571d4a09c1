"""Which models of a run are scored: the base, and mixes of branches, each known by a digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from fedsdr.errors import RunError, nearest
from fedsdr.evaluate.benchmarks.answerer import Answerer
from fedsdr.parts.algorithm import Algorithm, PerInput
from fedsdr.runs.artifact import artifacts_in
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import digest

BASE = "base"
On = Callable[[], AbstractContextManager[Answerer]]
# Of shared tensors, a client's own, and the mix: the model to ask. The empty mix is the base.
Wear = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], str], AbstractContextManager[Answerer]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be scored: `adapter` is the digest of its branches ("" for the base), `on` puts
    them on; None where only kept answers are scored again."""

    mix: str
    adapter: str
    round: int | None
    on: On | None


def fixed_mixes(algorithm: Algorithm, wanted: Sequence[str]) -> dict[str, str]:
    """The mixes to be scored beside the base: those wanted, or all that clients have in common."""
    known = (BASE, *algorithm.deploys)
    for name in wanted:
        if name not in known:
            raise RunError(
                f"--mix: {algorithm.name} has no mix {name!r}.{nearest(name, known)} It has "
                f"{', '.join(known)}"
            )
    mixes = dict[str, str]()
    for name, mix in algorithm.deploys.items():
        if isinstance(mix, PerInput):
            # A benchmark's questions have no client whose data they could be like.
            if name in wanted:
                raise RunError(f"--mix: {name!r} depends on each input, and is not scored on tasks")
        elif name in wanted or not (wanted or algorithm.is_personal(mix)):
            mixes[name] = mix
    return mixes


def candidates(
    run: RunDirectory,
    algorithm: Algorithm,
    mixes: Mapping[str, str],
    rounds: Mapping[str, int],
    wear: Wear | None,
) -> Iterator[Candidate]:
    """The base first, whose scores the others are held against; of a personal mix, every
    client's."""
    yield Candidate(BASE, "", None, partial(wear, {}, {}, "") if wear else None)
    for name, mix in mixes.items():
        round = rounds[name]
        shared = run.load_checkpoint(round).tensors.get("shared", {})
        personal = algorithm.is_personal(mix)
        for client in sorted(artifacts_in(run.root / "clients")) if personal else [""]:
            state = run.load_client_state(client, round + 1) if personal else None
            if personal and state is None:
                continue  # it never trained: its model would be the global one
            branches = state.tensors.get("branches", {}) if state else {}
            yield Candidate(
                f"{name}/{client}" if personal else name,
                digest({**shared, **branches}),
                round,
                partial(wear, shared, branches, mix) if wear else None,
            )
