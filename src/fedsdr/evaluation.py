"""A run's models scored again: on held-out rows, and on public benchmarks."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsdr import sandbox
from fedsdr.assembly import Experiment, Watch, assemble, chosen_algorithm, given
from fedsdr.deployed import personal_states, score, score_less
from fedsdr.errors import RecipeError, SandboxError
from fedsdr.evaluate.benchmarks.answerer import Answerer, ModelAnswerer
from fedsdr.evaluate.benchmarks.candidates import candidates, fixed_mixes
from fedsdr.evaluate.benchmarks.results import Results, merge_files
from fedsdr.evaluate.benchmarks.run import Setting, evaluate_benchmarks
from fedsdr.evaluate.benchmarks.tasks import chosen_benchmarks
from fedsdr.evaluate.means import means
from fedsdr.evaluate.scoring import Split
from fedsdr.evaluate.text_scores import WithAnswers
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm, mix_weights, split_mix
from fedsdr.recorded import refuse_changed, run_to_score
from fedsdr.runs.directory import RunDirectory
from fedsdr.tensors import within_memory
from fedsdr.types import FOLD, ClientData


def evaluate(
    directory: str | Path,
    split: Split = "test",
    round: int | None = None,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
    answers: bool = False,
) -> dict[str, Any]:
    """Score a run's deployed mixes again, from its checkpoint of a round (by default, of each
    mix's chosen one). With `answers`, the models also answer the rows: ROUGE-L and exact match."""
    run, recipe, rounds_of = run_to_score(directory, round)
    experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        refuse_changed(experiment, run)
        federation = experiment.federation
        if answers:
            scorer = WithAnswers(federation.scorer, recipe.rewriting.max_new_tokens)
            experiment = replace(experiment, federation=replace(federation, scorer=scorer))
        scores: dict[str, Mapping[str, Mapping[str, float]]] = {}
        rounds = rounds_of(experiment.algorithm.deploys)
        for name, at in rounds.items():
            shared = run.load_checkpoint(at).tensors.get("shared", {})
            mixes = {name: experiment.algorithm.deploys[name]}
            personal = personal_states(run, at)
            scores |= within_memory(
                partial(score, experiment, shared, personal, split, mixes, watch),
                partial(score_less, experiment),
            )
    finally:
        experiment.close()
    return {"rounds": rounds, "split": split, "scores": means(scores), "clients": scores}


def evaluate_tasks(
    directory: str | Path,
    tasks: Sequence[str],
    data: str | Path,
    mixes: Sequence[str] = (),
    round: int | None = None,
    limit: int | None = None,
    rescore: bool = False,
    run_code: bool = False,
    watch: Watch | None = None,
    base: BaseModel | None = None,
    algorithm: Algorithm | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Results:
    """Benchmarks by the papers' protocol: of the base, and of the mixes named or else every one
    that the clients have in common. Answers and figures go to `evaluation/` in the run; with
    `rescore` those kept there are scored again, and no model is loaded."""
    benchmarks = chosen_benchmarks(tasks)
    if limit is not None and limit < 1:
        raise RecipeError("--limit must be at least 1: it is how many items of each task are asked")
    if run_code and (refusal := sandbox.available()) is not None:
        raise SandboxError(str(refusal))
    run, recipe, rounds_of = run_to_score(directory, round)
    method, watch, facts = chosen_algorithm(recipe, algorithm), watch or Watch(), run.facts()
    chosen = fixed_mixes(method, mixes)
    setting = Setting(
        run.root / "evaluation",
        Path(data).expanduser(),
        facts["base_digest"],
        facts["dtype"],
        recipe.seed,
        recipe.evaluation.batch,
        limit,
        _passes if run_code else None,
        watch.advance,
    )
    experiment = None
    if not rescore:
        experiment = assemble(recipe, base, algorithm, given(clients, recipe))
    try:
        if experiment is not None:
            refuse_changed(experiment, run)
        wear = partial(_worn, experiment) if experiment is not None else None
        models = candidates(run, method, chosen, rounds_of(chosen), wear)
        return evaluate_benchmarks(setting, benchmarks, models)
    finally:
        if experiment is not None:
            experiment.close()


def _passes(code: str, tests: str) -> bool:
    return sandbox.run_python(code, timeout=3.0, tests=tests).passed


def merge_evaluations(directory: str | Path, files: Sequence[str | Path]) -> Results:
    """Take the figures of other machines' results files into this run's own."""
    run = RunDirectory.open(Path(directory))
    return merge_files(run.root / "evaluation", run.facts()["base_digest"], list(map(Path, files)))


@contextmanager
def _worn(
    experiment: Experiment, shared: Mapping[str, Tensor], own: Mapping[str, Tensor], mix: str
) -> Generator[Answerer]:
    flats = experiment.branches.enter(shared, [own])[0] if mix else {}
    with experiment.lora.folded(shared):
        worn = {b: flats[b] for b in split_mix(mix) if b != FOLD}
        yield ModelAnswerer(experiment.lora, worn, mix_weights(mix))
