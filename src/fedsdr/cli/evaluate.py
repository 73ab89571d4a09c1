"""`evaluate`: how good a run's models are, on held-out rows and on public benchmarks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedsdr.cli.benchmarks import show_benchmarks
from fedsdr.cli.printing import (
    AsJson,
    RunPath,
    figure,
    print_json,
    rounds_in_words,
    show_scores,
    show_table,
    talk,
)
from fedsdr.cli.progress import progress_watch
from fedsdr.errors import RecipeError


class Split(StrEnum):
    test = "test"
    validation = "validation"


def evaluate(
    directory: RunPath,
    split: Annotated[
        Split, typer.Option("--split", help="Which of the rows kept from training to score on.")
    ] = Split.test,
    round: Annotated[
        int | None,
        typer.Option(
            "--round",
            metavar="N",
            min=0,
            max=10**6,
            help="Score the models as they were after this round.",
            show_default="the round chosen on validation data",
        ),
    ] = None,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers", help="Have the models answer those rows too: ROUGE-L, exact match."
        ),
    ] = False,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            metavar="A,B",
            help="Public benchmarks instead: mmlu, bbh, drop, crass, humaneval, gsm8k, fpb, "
            "pubmedqa.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DIR", help="The folder with the tasks' files.", show_default=False
        ),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix",
            metavar="NAME",
            help="A deployed model to compare with the base; may be given more than once.",
            show_default="all that clients have in common",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            max=10**9,
            help="Only so many items of each task.",
            show_default=False,
        ),
    ] = None,
    rescore: Annotated[
        bool,
        typer.Option("--rescore", help="Score the answers kept from before; loads no model."),
    ] = False,
    run_code: Annotated[
        bool,
        typer.Option("--run-code", help="Run what the models write for HumanEval, in a sandbox."),
    ] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--merge",
            metavar="FILE",
            help="Take in another results file of the same models; may be given more than once.",
            show_default=False,
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval",
            metavar="A,B",
            help="Tasks of lm-eval instead, its own or those of --include.",
            show_default=False,
        ),
    ] = None,
    include: Annotated[
        Path | None,
        typer.Option(
            "--include", metavar="DIR", help="A folder of lm-eval task files.", show_default=False
        ),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            metavar="N",
            min=0,
            max=1000,
            help="Shots of lm-eval's tasks.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score the models of a run again, on held-out rows or on public benchmarks.

    Rows are scored from the checkpoints, and nothing in the run changes. With --tasks, the base
    and the mixes are asked a benchmark's questions by the papers' protocol; answers and figures
    are kept in the run's evaluation folder, and a stopped evaluation goes on where it was. With
    --lm-eval, lm-eval asks its own.

    \b
    Example:  fedsdr evaluate runs/fedsdr-seed1 --split validation
              fedsdr evaluate runs/fedsdr-seed1 --tasks mmlu,fpb --data eval --limit 100
              fedsdr evaluate runs/fedsdr-seed1 --lm-eval my_task --include tasks --limit 100
    """
    console = talk(as_json)
    kinds = {"--tasks": tasks, "--merge": merge, "--lm-eval": lm_eval, "--answers": answers}
    wanted = [option for option, value in kinds.items() if value is not None and value is not False]
    if len(wanted) > 1:
        raise RecipeError(f"{' and '.join(wanted)} are different things; ask for one")
    kind = wanted[0] if wanted else ""
    for option, value, belongs in (
        ("--data", data, ("--tasks",)),
        ("--mix", mix, ("--tasks", "--lm-eval")),
        ("--limit", limit, ("--tasks", "--lm-eval")),
        ("--rescore", rescore, ("--tasks",)),
        ("--run-code", run_code, ("--tasks",)),
        ("--include", include, ("--lm-eval",)),
        ("--shots", shots, ("--lm-eval",)),
    ):
        if value is not None and value is not False and kind not in belongs:
            raise RecipeError(f"{option} is for benchmarks; name them with {' or '.join(belongs)}")
    if kind == "--lm-eval":
        _lm_eval(
            console,
            as_json,
            directory=directory,
            tasks=lm_eval or "",
            include=include,
            limit=limit,
            mix=mix,
            shots=shots,
            round=round,
        )
    elif kind in ("--tasks", "--merge"):
        from fedsdr.jobs import evaluate as evaluation

        if tasks is None:
            results = evaluation.merge_evaluations(directory, merge or ())
        else:
            with progress_watch(console) as watch:
                results = evaluation.evaluate_tasks(
                    *(directory, _listed(tasks), _given(data), mix or ()),
                    *(round, limit, rescore, run_code, watch),
                )
        if as_json:
            print_json(results.model_dump(mode="json"))
        else:
            show_benchmarks(console, results)
    else:
        _held_out(console, as_json, directory, split, round, answers)


def _held_out(
    console: Console, as_json: bool, directory: Path, split: Split, round: int | None, answers: bool
) -> None:
    from fedsdr.jobs import evaluate as evaluation

    with progress_watch(console) as watch:
        results = evaluation.evaluate(directory, split.value, round, watch, answers=answers)
    if as_json:
        print_json(results)
        return
    title = f"{split.value} scores after {rounds_in_words(results['rounds'])}, mean over clients"
    show_scores(console, title, results["scores"])


def _lm_eval(
    console: Console,
    as_json: bool,
    directory: Path,
    tasks: str,
    include: Path | None,
    limit: int | None,
    mix: list[str] | None,
    shots: int | None,
    round: int | None,
) -> None:
    from fedsdr.jobs.lm_eval import evaluate_lm_eval

    mixes = ("base", *(mix or ("global",)))
    with progress_watch(console) as watch:
        results = evaluate_lm_eval(
            *(directory, _listed(tasks), include, limit, mixes),
            shots=shots,
            round=round,
            watch=watch,
        )
    if as_json:
        print_json(results)
        return
    models: dict[str, Any] = results["models"]
    measures = dict.fromkeys(
        (task, measure)
        for model in models.values()
        for task, result in model["tasks"].items()
        for measure in result["scores"]
    )
    rows = [
        (task, measure, *(_score(model, task, measure) for model in models.values()))
        for task, measure in measures
    ]
    show_table(console, results["tool"], ("task", "measure", *models), rows)


def _score(model: dict[str, Any], task: str, measure: str) -> str:
    return figure(model["tasks"].get(task, {}).get("scores", {}).get(measure))


def _listed(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _given(data: Path | None) -> Path:
    if data is None:
        raise RecipeError("--tasks needs --data DIR, the folder with the tasks' files")
    return data
