"""The eight benchmarks.

MMLU, BBH, DROP, CRASS and HumanEval follow InstructEval (declare-lab/instruct-eval@49bbd2c), FPB
FinGPT's benchmark, GSM8K and PubMedQA lm-eval's prompts.

Which models of a run are scored: the base, and mixes of branches, each known by a digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import Tensor

from fedsdr.distill.generate import Sampling
from fedsdr.errors import RecipeError, RunError, nearest
from fedsdr.evaluate.benchmarks import readers
from fedsdr.evaluate.benchmarks.answerer import Answerer
from fedsdr.evaluate.benchmarks.grading import (
    VERDICTS,
    last_number,
    macro_f1,
    same_sentiment,
    same_verdict,
    sentiments,
    starts_with_gold,
    verdict,
    worked_out,
)
from fedsdr.evaluate.benchmarks.questions import Benchmark
from fedsdr.parts.algorithm import Algorithm, PerInput
from fedsdr.runs.artifact import artifacts_in
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import digest

INSTRUCT_EVAL = "InstructEval"


def chosen_benchmarks(names: Iterable[str]) -> tuple[Benchmark, ...]:
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in BENCHMARKS:
            known = ", ".join(BENCHMARKS)
            guess = nearest(name, BENCHMARKS)
            raise RecipeError(f"--tasks: there is no task {name!r}.{guess} Known are {known}")
    return tuple(BENCHMARKS[name] for name in wanted)


def _greedy(new_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=new_tokens)


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        b.name: b
        for b in (
            Benchmark(
                name="mmlu",
                source=INSTRUCT_EVAL,
                sampling=_greedy(2),
                read=readers.read_mmlu,
                grade=starts_with_gold,
            ),
            Benchmark(
                name="bbh",
                source=INSTRUCT_EVAL,
                sampling=_greedy(32),
                read=readers.read_bbh,
                grade=starts_with_gold,
                by_group=True,
            ),
            Benchmark(
                name="drop",
                source=INSTRUCT_EVAL,
                sampling=_greedy(8),
                read=readers.read_drop,
                grade=starts_with_gold,
            ),
            Benchmark(
                name="crass",
                source=INSTRUCT_EVAL,
                sampling=_greedy(8),
                read=readers.read_crass,
                grade=starts_with_gold,
            ),
            Benchmark(
                name="humaneval",
                source=INSTRUCT_EVAL,
                # transformers' own top_k, which InstructEval leaves as it is.
                sampling=Sampling(temperature=0.1, top_p=1.0, top_k=50, max_new_tokens=512),
                read=readers.read_humaneval,
                grade=None,
            ),
            Benchmark(
                name="gsm8k",
                source="lm-eval",
                sampling=_greedy(256),
                read=readers.read_gsm8k,
                grade=worked_out,
                measures=last_number,
            ),
            Benchmark(
                name="fpb",
                source="FinGPT",
                sampling=_greedy(32),
                read=readers.read_fpb,
                grade=same_sentiment,
                measures=sentiments,
            ),
            Benchmark(
                name="pubmedqa",
                source="lm-eval's prompt",
                sampling=_greedy(8),
                read=readers.read_pubmedqa,
                grade=same_verdict,
                measures=macro_f1(verdict, VERDICTS),
            ),
        )
    }
)


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
