"""One benchmark, one model: what is not answered yet is asked, what is answered is scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from fedsdr.distill.generate import Sampling
from fedsdr.errors import RunError
from fedsdr.evaluate.benchmarks.answerer import TOKENS_AT_ONCE, Answer, Answerer, AnswersFile
from fedsdr.evaluate.benchmarks.grading import program
from fedsdr.evaluate.benchmarks.questions import (
    Benchmark,
    Prompt,
    Question,
    Questions,
    fit,
    text_digest,
)
from fedsdr.evaluate.statistics import bootstrap
from fedsdr.tensors import derive_seed

Advance = Callable[[str, int, int], None]
Runner = Callable[[str, str], bool]  # whether a program and then its tests came to their end


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """`score` is None where code was written and not run. `dropped`: prompts that lost shots to
    the limit; `cut`: those that were too long even so, and lost their beginning."""

    benchmark: Benchmark
    groups: tuple[str, ...]
    grades: Mapping[str, float]
    score: float | None
    interval: tuple[float, float] | None
    measures: Mapping[str, float]
    dropped: int
    cut: int = 0

    @property
    def n(self) -> int:
        return len(self.groups)


def model_key(base: str, adapter: str, dtype: str, sampling: Sampling, seed: int) -> str:
    """Whose answers these are; greedy ones depend on no seed."""
    drawn = seed if sampling.temperature else 0
    parts = json.dumps([base, adapter, dtype, asdict(sampling), drawn])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def limited(questions: Questions, limit: int | None) -> Questions:
    """The first so many items, of each group in turn."""
    if limit is None:
        return questions
    seen: dict[str, int] = {}
    places = list[tuple[int, int]]()
    for place, item in enumerate(questions.items):
        seen[item.group] = seen.get(item.group, 0) + 1
        places.append((seen[item.group], place))
    chosen = sorted(place for _, place in sorted(places)[:limit])
    return replace(questions, items=tuple(questions.items[place] for place in chosen))


def ask(
    benchmark: Benchmark,
    questions: Questions,
    answerer: Answerer,
    file: AnswersFile,
    model: str,
    seed: int,
    batch: int,
    advance: Advance,
) -> tuple[list[Answer], list[Prompt]]:
    """Every item's answer, in order. Batches follow from all items, not from what is left to do, so
    that going on after a kill gives the same answers."""
    sampling, items = benchmark.sampling, questions.items
    prompts = [
        fit(questions, q, answerer.count, answerer.positions, sampling.max_new_tokens)
        for q in items
    ]
    known = file.read(model)
    keys = [(q.id, p.digest) for q, p in zip(items, prompts, strict=True)]
    for share in _batches(prompts, sampling.max_new_tokens, batch):
        if all(keys[i] in known for i in share):
            continue
        seeds = [derive_seed("benchmark", seed, benchmark.name, items[i].id) for i in share]
        texts = answerer.answer([prompts[i].text for i in share], sampling, seeds)
        for i, text in zip(share, texts, strict=True):
            if keys[i] not in known:
                grade = benchmark.grade(items[i], text) if benchmark.grade else None
                known[keys[i]] = Answer(
                    items[i].id, model, prompts[i].digest, prompts[i].shots, text, grade
                )
                file.add(known[keys[i]])
        advance(benchmark.name, sum(key in known for key in keys), len(keys))
    return [known[key] for key in keys], prompts


def recall(
    benchmark: Benchmark, questions: Questions, file: AnswersFile, model: str
) -> list[Answer]:
    """The kept answers to these very prompts, or an error that says what is missing."""
    kept = {}
    for answer in file.read(model).values():
        kept.setdefault(answer.id, []).append(answer)
    answers = list[Answer]()
    for question in questions.items:
        right = [
            a
            for a in kept.get(question.id, [])
            if a.prompt == text_digest(questions.prompt(question, a.shots))
        ]
        answers += right[-1:]
    if missing := len(questions.items) - len(answers):
        others = "; the answers there are another model's" if file.models() - {model} else ""
        raise RunError(
            f"{file.path}: {missing} of {len(questions.items)} answers to {benchmark.name} are not "
            f"kept{others}; leave out --rescore to have the model answer"
        )
    return answers


def score(
    benchmark: Benchmark,
    questions: Questions,
    answers: Sequence[Answer],
    file: AnswersFile,
    runner: Runner | None,
    advance: Advance,
    prompts: Sequence[Prompt] = (),
) -> Scored:
    items, texts = questions.items, [a.answer for a in answers]
    grades = [
        _grade(benchmark, q, a, runner) for q, a in _counted(items, answers, benchmark, advance)
    ]
    file.rescored([replace(a, score=g) for a, g in zip(answers, grades, strict=True)])
    groups = tuple(q.group for q in items)
    known = {q.id: g for q, g in zip(items, grades, strict=True) if g is not None}
    mean, interval = None, None
    if len(known) == len(items):
        mean, interval = bootstrap(list(known.values()), groups if benchmark.by_group else None)
    empty = sum(not text.strip() for text in texts)
    return Scored(
        benchmark=benchmark,
        groups=groups,
        grades=known,
        score=mean,
        interval=interval,
        measures={**benchmark.measures(items, texts), "empty": empty / len(items)},
        dropped=sum(a.shots < questions.most_shots(q) for q, a in zip(items, answers, strict=True)),
        cut=sum(p.cut for p in prompts),
    )


def _grade(
    benchmark: Benchmark, question: Question, answer: Answer, runner: Runner | None
) -> float | None:
    if benchmark.grade is not None:
        return benchmark.grade(question, answer.answer)
    if runner is None:
        return answer.score
    return float(runner(*program(question, answer.answer)))


def _counted(
    items: Sequence[Question], answers: Sequence[Answer], benchmark: Benchmark, advance: Advance
) -> Iterator[tuple[Question, Answer]]:
    for done, pair in enumerate(zip(items, answers, strict=True), 1):
        yield pair
        if benchmark.grade is None:
            advance(f"running {benchmark.name}", done, len(items))


def _batches(prompts: Sequence[Prompt], new: int, batch: int) -> list[list[int]]:
    """Prompts of like length together, the longest first, no more tokens at a time than fit."""
    order = sorted(range(len(prompts)), key=lambda i: (-prompts[i].tokens, i))
    batches = list[list[int]]()
    while order:
        share = max(1, min(batch, TOKENS_AT_ONCE // (prompts[order[0]].tokens + new)))
        batches.append(order[:share])
        order = order[share:]
    return batches
