"""A run's models scored again: on held-out rows, and on public benchmarks."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fedsdr import sandbox
from fedsdr.cohort.in_process import InProcessCohort
from fedsdr.coordinator.job import Watch
from fedsdr.coordinator.reports import Inquiry
from fedsdr.errors import RecipeError, SandboxError
from fedsdr.evaluate.benchmarks.answerer import Answerer, ModelAnswerer
from fedsdr.evaluate.benchmarks.results import Results, merge_files
from fedsdr.evaluate.benchmarks.run import Setting, evaluate_benchmarks
from fedsdr.evaluate.benchmarks.tasks import candidates, chosen_benchmarks, fixed_mixes
from fedsdr.evaluate.means import means
from fedsdr.evaluate.scoring import WithAnswers
from fedsdr.jobs.assembly import Experiment, chosen_algorithm
from fedsdr.jobs.opened import job_of, reopened, site_of
from fedsdr.jobs.recorded import run_to_score
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm, mix_weights, split_mix
from fedsdr.runs.directory import RunDirectory
from fedsdr.types import FOLD, ClientData, Split


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
    mix's chosen one). With `answers`, the models also answer the rows: ROUGE-L and exact match.

    Args:
        directory: The run's folder.
        split: `"validation"` or `"test"`.
        round: The checkpoint to score; by default each mix's chosen round.
        watch: Is told progress, every round's row and notes; nobody by default.
        base: A model that is open already, in place of the one that the recipe names.
        algorithm: An algorithm from Python, in place of the recipe's.
        clients: Clients from Python, in place of the recipe's data; a run begun with
            them needs them again.
        answers: Whether the models also answer the rows.
    """
    run, recipe, rounds_of = run_to_score(directory, round)
    watch = watch or Watch()
    with reopened(run, "fedsdr.score", base, algorithm, clients) as experiment:
        site, job = site_of(experiment, run, watch), job_of(experiment, run)
        if answers:
            site.scorer = WithAnswers(site.scorer, recipe.rewriting.max_new_tokens)
        cohort = InProcessCohort(site, recorded=False)
        inquire = Inquiry(cohort, job.loop.run, recipe.seed, watch.note)
        rounds, scores = rounds_of(job.algorithm.deploys), dict[str, Any]()
        for name, at in rounds.items():
            shared = run.load_checkpoint(at).tensors.get("shared", {})
            scores[name] = inquire("score", job.scored, at, shared=shared, mix=name, split=split)
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
    `rescore` those kept there are scored again, and no model is loaded.

    Args:
        directory: The run's folder.
        tasks: The benchmarks' names.
        data: The folder with their files.
        mixes: Deployed mixes; by default every one that the clients have in common.
        round: The checkpoint to score; by default each mix's chosen round.
        limit: Items of each task, at most.
        rescore: Score the answers kept in the run again, without a model.
        run_code: Run what models wrote, in the sandbox; code benchmarks need it.
        watch: Is told progress, every round's row and notes; nobody by default.
        base: A model that is open already, in place of the one that the recipe names.
        algorithm: An algorithm from Python, in place of the recipe's.
        clients: Clients from Python, in place of the recipe's data; a run begun with
            them needs them again.
    """
    benchmarks = chosen_benchmarks(tasks)
    if limit is not None and limit < 1:
        raise RecipeError("--limit must be at least 1: it is how many items of each task are asked")
    if run_code and (refusal := sandbox.available()) is not None:
        raise SandboxError(str(refusal))
    run, recipe, rounds_of = run_to_score(directory, round)
    method, watch, facts = chosen_algorithm(recipe, algorithm), watch or Watch(), run.facts()
    chosen = fixed_mixes(method, mixes)
    setting = Setting(
        folder=run.root / "evaluation",
        data=Path(data).expanduser(),
        base=facts["base_digest"],
        dtype=facts["dtype"],
        seed=recipe.seed,
        batch=recipe.evaluation.batch,
        limit=limit,
        runner=_passes if run_code else None,
        advance=watch.advance,
    )
    with ExitStack() as open_job:
        wear = None
        if not rescore:
            there = reopened(run, "fedsdr.evaluate_tasks", base, algorithm, clients)
            wear = partial(_worn, open_job.enter_context(there))
        models = candidates(run, method, chosen, rounds_of(chosen), wear)
        return evaluate_benchmarks(setting, benchmarks, models)


def _passes(code: str, tests: str) -> bool:
    return sandbox.run_python(code, timeout=3.0, tests=tests).passed


def merge_evaluations(directory: str | Path, files: Sequence[str | Path]) -> Results:
    """Take the figures of other machines' results files into this run's own.

    Args:
        directory: The run's folder.
        files: Results files of other machines.
    """
    run = RunDirectory.open(Path(directory))
    return merge_files(run.root / "evaluation", run.facts()["base_digest"], list(map(Path, files)))


@contextmanager
def _worn(
    experiment: Experiment, shared: Mapping[str, Tensor], private: Mapping[str, Tensor], mix: str
) -> Generator[Answerer]:
    flats = experiment.branches.enter(shared, [private])[0] if mix else {}
    with experiment.lora.folded(shared):
        worn = {b: flats[b] for b in split_mix(mix) if b != FOLD}
        yield ModelAnswerer(experiment.lora, worn, mix_weights(mix))


score = evaluate  # as `fedsdr` has it, where evaluate is a room
