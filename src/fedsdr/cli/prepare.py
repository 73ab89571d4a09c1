"""`init`, `plan`, `distill`: what comes before a training."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.plan_view import rewriting_watch, show_audit
from fedsdr.cli.printing import (
    AsJson,
    Changes,
    RecipePath,
    complain,
    free_path,
    print_json,
    say,
    talk,
)
from fedsdr.errors import EndpointError, RecipeError, RunError


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to write it.")] = Path(
        "recipe.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a recipe to start from: every key, its default, and what it does.

    \b
    Example:  fedsdr init recipe.yaml
    """
    from fedsdr.runs.files import write_text_atomic, write_text_once
    from fedsdr.runs.places import file_at

    target = path / "recipe.yaml" if path.is_dir() else path
    text = files("fedsdr.cli").joinpath("recipe.yaml").read_text(encoding="utf-8")
    place = file_at(target)
    if not place.parent.is_dir():
        raise RunError(f"{target} cannot be written: there is no folder {place.parent}")
    if force:
        write_text_atomic(place, text)
    elif not write_text_once(place, text):
        raise RunError(
            f"{target} is there already; choose another PATH, or overwrite it with --force"
        )
    say(talk(), f"wrote {target}; edit it, then: fedsdr plan {target}")


def plan(
    recipe: RecipePath,
    on_paper: Annotated[
        bool,
        typer.Option(
            "--on-paper", help="Without the model's weights: config.json and tokenizer are enough."
        ),
    ] = False,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            metavar="GB",
            min=0,
            max=1e9,
            help="On paper: what the device has; run.stack: auto goes by it.",
            show_default=False,
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops",
            metavar="RATE",
            min=0.001,
            max=1e9,
            help="On paper: 10^12 operations that it does in a second; gives the time.",
            show_default=False,
        ),
    ] = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Check everything before any training: data, model, settings, memory, traffic, time.

    Trains nothing and writes nothing. Whatever cannot work is listed, and the exit code is 2.

    \b
    Example:  fedsdr plan recipe.yaml --set model.max_length=512
              fedsdr plan recipe.yaml --on-paper --memory 24 --tflops 60
    """
    from fedsdr.recipe.settings import read_recipe

    if not on_paper and (memory is not None or tflops is not None):
        raise RecipeError("--memory and --tflops say what is not measured: add --on-paper")
    chosen = read_recipe(recipe, changes or ())

    from fedsdr.cli.plan_view import show_plan
    from fedsdr.jobs.plan import make_plan, plan_json, plan_on_paper

    if on_paper:
        planned = plan_on_paper(chosen, None if memory is None else round(memory * 1e9), tflops)
    else:
        planned = make_plan(chosen)
    if as_json:
        print_json(plan_json(planned))
    else:
        show_plan(talk(), planned)
    for problem in planned.problems:
        complain(problem, "cannot work: ")
    if planned.problems:
        raise typer.Exit(2)


def distill(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|FILE",
            help="A recipe, or a file of records: .jsonl, .json, .csv or .parquet.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="A folder for the rewrites; named again, it goes on there.",
            show_default="rewrites/…, a new one",
        ),
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection",
            metavar="RULE",
            help="Which rewrites to keep: none, sdft, facts, resample(N) …",
            show_default="as in the recipe, else none",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PATH",
            help="The model that rewrites: a folder, or atlas.",
            show_default="the recipe's",
        ),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            metavar="URL",
            help="Or a server that speaks OpenAI's protocol, up to /v1. On another machine it must "
            "be allowed by name: --set 'rewriting.engine.allow=[HOST]'.",
            show_default=False,
        ),
    ] = None,
    endpoint_model: Annotated[
        str | None,
        typer.Option(
            "--endpoint-model", metavar="NAME", help="The server's model.", show_default=False
        ),
    ] = None,
    include_texts: Annotated[
        bool, typer.Option("--include-texts", help="Write the records' texts into the audit.")
    ] = False,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Let a model rewrite answers, and see what that did to them.

    Of a recipe, every client's; of a file, all of it: out comes the same file with other answers.
    And an audit: how many were kept, why the others fell back to the original, what was lost or
    invented. The folder is private, as the data are. Stopped, the same command goes on.

    \b
    Example:  fedsdr distill recipe.yaml --selection facts --out rewrites/first
              fedsdr distill data/all.jsonl --model models/mine --out rewrites/all
              fedsdr distill data/all.jsonl --out rewrites/all \\
                --endpoint http://127.0.0.1:8000/v1 --endpoint-model NAME
    """
    from fedsdr.data.files import READERS
    from fedsdr.recipe.settings import parse_recipe, read_recipe

    settings = [
        ("model.path", model),
        ("rewriting.engine.url", endpoint),
        ("rewriting.engine.model", endpoint_model),
        ("run.include_texts", include_texts or None),
    ]
    # JSON is YAML, whatever stands in a name.
    changed = [f"{key}={json.dumps(value)}" for key, value in settings if value is not None]
    changed += changes or ()
    is_file = source.suffix.lower() in READERS
    if is_file:
        chosen = parse_recipe("", "settings", changed)
        if chosen.rewriting.engine is None and not any(c.startswith("model.path") for c in changed):
            raise RecipeError("who rewrites? Name --model PATH, or --endpoint URL")
    else:
        chosen = read_recipe(source, changed)
    name = source.stem if is_file else f"seed{chosen.seed}"
    folder = out or free_path(Path("rewrites") / name)
    console = talk(as_json)
    if chosen.run.include_texts:
        say(console, f"the audit in {folder} will hold the records' texts", "bold yellow")

    from fedsdr.jobs.distill import distill as rewrite
    from fedsdr.jobs.distill import distill_file

    try:
        with rewriting_watch(console) as watch:
            if is_file:
                rule = selection or chosen.algorithm.selection
                summary = distill_file(chosen, source, folder, watch, rule)
            else:
                summary = rewrite(chosen, folder, watch, selection)
    except KeyboardInterrupt:
        complain(f"stopped; the same command with --out {folder} goes on", label="")
        raise typer.Exit(130) from None
    except EndpointError as error:
        hint = "" if out else f" (with --out {folder})"
        raise EndpointError(f"{error}{hint}") from None
    if as_json:
        print_json({"directory": str(folder), **asdict(summary)})
        return
    show_audit(console, summary)
    say(console, f"rewrites: {folder}")
