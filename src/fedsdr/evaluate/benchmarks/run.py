"""Several benchmarks, several models: scored one after the other, with what federation made them
forget, into `results.json` beside the answers."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fedsdr.errors import DataError, ModelError
from fedsdr.evaluate.benchmarks.answerer import Answerer, AnswersFile
from fedsdr.evaluate.benchmarks.forgetting import Forgetting, forgetting
from fedsdr.evaluate.benchmarks.questions import LONGEST, Benchmark, Questions, prompt_limit
from fedsdr.evaluate.benchmarks.results import (
    FORMAT,
    RESULTS,
    Entry,
    Forgot,
    Results,
    own_results,
    replaced,
    write_results_file,
)
from fedsdr.evaluate.benchmarks.session import (
    Advance,
    Runner,
    Scored,
    ask,
    limited,
    model_key,
    recall,
    score,
)
from fedsdr.evaluate.benchmarks.tasks import Candidate
from fedsdr.runs.files import make_private
from fedsdr.runs.lock import run_lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all candidates share. `base`: the base model's digest."""

    folder: Path
    data: Path
    base: str
    dtype: str
    seed: int
    batch: int
    limit: int | None
    runner: Runner | None
    advance: Advance


def evaluate_benchmarks(
    setting: Setting, benchmarks: Sequence[Benchmark], candidates: Iterable[Candidate]
) -> Results:
    """All of it; `candidates` begin with the base. What is in the folder's results file of other
    tasks stays there."""
    every = [(b, _questions(setting, b)) for b in benchmarks]
    make_private(setting.folder)
    with run_lock(setting.folder):
        path = setting.folder / RESULTS
        old = own_results(path, setting.base)
        entries, forgot, bases = list[Entry](), list[Forgot](), dict[str, Scored]()
        for candidate in candidates:
            for benchmark, questions in every:
                scored, entry = _evaluate(setting, benchmark, questions, candidate)
                entries.append(entry)
                base = bases.setdefault(benchmark.name, scored)
                if base is not scored and (change := forgetting(candidate.mix, base, scored)):
                    forgot.append(_forgot(change))
                new = Results(format=FORMAT, base=setting.base, entries=entries, forgetting=forgot)
                write_results_file(path, replaced(old, new))
    return Results(format=FORMAT, base=setting.base, entries=entries, forgetting=forgot)


def _questions(setting: Setting, benchmark: Benchmark) -> Questions:
    questions = benchmark.read(setting.data)
    if not questions.items:
        raise DataError(f"{questions.files[0]}: all of its items are among the shots")
    return limited(questions, setting.limit)


def _evaluate(
    setting: Setting, benchmark: Benchmark, questions: Questions, candidate: Candidate
) -> tuple[Scored, Entry]:
    sampling = benchmark.sampling
    model = model_key(setting.base, candidate.adapter, setting.dtype, sampling, setting.seed)
    file = AnswersFile(setting.folder / candidate.mix / f"{benchmark.name}.jsonl")
    finish = partial(
        score, benchmark, questions, file=file, runner=setting.runner, advance=setting.advance
    )
    if candidate.on is None:
        scored, limit = finish(answers=recall(benchmark, questions, file, model)), ""
    else:
        with candidate.on() as answerer:
            limit = _limit(benchmark, answerer)
            answers, prompts = ask(
                benchmark,
                questions,
                answerer=answerer,
                file=file,
                model=model,
                seed=setting.seed,
                batch=setting.batch,
                advance=lambda what, done, total: setting.advance(
                    f"{candidate.mix}: {what}", done, total
                ),
            )
        scored = finish(answers=answers, prompts=prompts)
    return scored, _entry(setting, questions, candidate, scored, limit)


def _limit(benchmark: Benchmark, answerer: Answerer) -> str:
    """How long a prompt may be, and why."""
    new, positions = benchmark.sampling.max_new_tokens, answerer.positions
    limit = prompt_limit(positions, new)
    if limit < 1:
        raise ModelError(
            f"{benchmark.name} needs {new} tokens for an answer; the model has {positions} "
            "positions in all"
        )
    if limit == LONGEST:
        return f": a prompt may have {limit} tokens"
    return f": a prompt may have {limit} tokens, as the model has {positions} positions"


def _entry(
    setting: Setting, questions: Questions, candidate: Candidate, scored: Scored, limit: str
) -> Entry:
    benchmark = scored.benchmark
    return Entry(
        task=benchmark.name,
        mix=candidate.mix,
        adapter=candidate.adapter,
        round=candidate.round,
        n=scored.n,
        score=scored.score,
        interval=scored.interval,
        measures=dict(scored.measures),
        notes=_notes(scored, limit),
        settings={
            "protocol": benchmark.source,
            "shots": max(map(len, questions.shots.values()), default=0),
            "limit": setting.limit,
            "seed": setting.seed,
            "dtype": setting.dtype,
            **asdict(benchmark.sampling),
        },
        data=questions.digest,
        versions=_versions(),
    )


def _notes(scored: Scored, limit: str) -> list[str]:
    notes = list[str]()
    if scored.dropped:
        notes.append(f"{scored.dropped} of {scored.n} prompts lost shots{limit}")
    if scored.cut:
        notes.append(f"{scored.cut} of {scored.n} prompts lost their beginning{limit}")
    if scored.score is None:
        notes.append("not scored: that runs code which the model wrote; allow it with --run-code")
    return notes


def _forgot(change: Forgetting) -> Forgot:
    return Forgot.model_validate({**asdict(change), "words": change.words})


def _versions() -> dict[str, str]:
    known = {name: version(name) for name in ("fedsdr", "torch", "transformers")}
    return {**known, "python": platform.python_version(), "machine": platform.machine()}
