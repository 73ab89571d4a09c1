"""`init`, `plan`, `distill`: what comes before a training."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedsdr.cli.options import AsJson, Changes, RecipePath, free_path
from fedsdr.cli.printing import complain, print_json, say, show_table, talk
from fedsdr.cli.progress import progress_watch
from fedsdr.errors import RunError

if TYPE_CHECKING:
    from fedsdr.distill.audit import AuditSummary, ClientAudit


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
    target = path / "recipe.yaml" if path.is_dir() else path
    text = files("fedsdr.cli").joinpath("recipe.yaml").read_text(encoding="utf-8")
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RunError(
            f"{target} is there already; choose another PATH, or overwrite it with --force"
        ) from None
    except OSError as error:
        raise RunError(f"{target} cannot be written: {error.strerror}") from error
    say(talk(), f"wrote {target}; edit it, then: fedsdr plan {target}")


def plan(recipe: RecipePath, changes: Changes = None, as_json: AsJson = False) -> None:
    """Check everything before any training: data, model, settings, memory, traffic, time.

    Trains nothing and writes nothing. Whatever cannot work is listed, and the exit code is 2.

    \b
    Example:  fedsdr plan recipe.yaml --set model.max_length=512
    """
    from fedsdr.config import read_recipe

    chosen = read_recipe(recipe, changes or ())

    from fedsdr.cli.plan_view import show_plan
    from fedsdr.plan import make_plan, plan_json

    found = make_plan(chosen)
    if as_json:
        print_json(plan_json(found))
    else:
        show_plan(talk(), found)
    for problem in found.problems:
        complain(problem, "cannot work: ")
    if found.problems:
        raise typer.Exit(2)


def distill(
    recipe: RecipePath,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="A new folder for the rewrites.",
            show_default="rewrites/seedN",
        ),
    ] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection",
            metavar="RULE",
            help="Which rewrites to keep: none, sdft, facts or resample(N).",
            show_default="as in the recipe",
        ),
    ] = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Let the model rewrite every client's answers, and see what that did to them.

    Writes the rewrites, one file per client, and an audit: how many were kept, why the others
    fell back to the original, what was lost or invented. The folder is private, as the data are.

    \b
    Example:  fedsdr distill recipe.yaml --selection facts --out rewrites/first
    """
    from fedsdr.config import read_recipe

    chosen = read_recipe(recipe, changes or ())
    folder = out or free_path(Path("rewrites") / f"seed{chosen.seed}")

    from fedsdr import experiment

    console = talk(as_json)
    try:
        with progress_watch(console) as watch:
            summary = experiment.distill(chosen, folder, watch, selection)
    except KeyboardInterrupt:
        complain(f"stopped; the same command with --out {folder} goes on", label="")
        raise typer.Exit(130) from None
    if as_json:
        print_json({"directory": str(folder), **asdict(summary)})
        return
    _show_audit(console, summary)
    say(console, f"rewrites: {folder}")


def _show_audit(console: Console, summary: AuditSummary) -> None:
    header = (
        "client", "rows", "kept", "fell back", "length ×", "numbers lost", "numbers invented",
        "names lost", "names invented",
    )  # fmt: skip
    everyone = {**summary.clients, "all": summary.overall}
    rows = [(name, *_audit_cells(audit)) for name, audit in everyone.items()]
    show_table(console, "rewrites, in shares of rows; length: median ratio", header, rows)
    for name, audit in summary.clients.items():
        if audit.reasons:
            why = ", ".join(f"{reason} ({count})" for reason, count in audit.reasons.items())
            say(console, f"{name} fell back: {why}")


def _audit_cells(audit: ClientAudit) -> tuple[str, ...]:
    written = audit.written
    shares = (
        written.numbers_lost,
        written.numbers_invented,
        written.names_lost,
        written.names_invented,
    )
    return (
        str(audit.examples),
        f"{audit.kept:.0%}",
        f"{audit.fell_back:.0%}",
        f"{written.length_ratio:.2f}",
        *(f"{share:.0%}" for share in shares),
    )
