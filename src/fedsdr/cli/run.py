"""`train`, `resume`, `purge`: what writes in a run directory."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedsdr.cli.printing import (
    AsJson,
    Changes,
    RecipePath,
    RunPath,
    complain,
    free_path,
    print_json,
    rounds_in_words,
    say,
    show_scores,
    talk,
)
from fedsdr.cli.progress import progress_watch
from fedsdr.errors import FedsdrError, RunError
from fedsdr.text.numbers import size

if TYPE_CHECKING:
    from fedsdr.runs.directory import RunDirectory

Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="NAME",
        help="Draw the rounds' curves with tensorboard or wandb (offline); may be repeated.",
        show_default=False,
    ),
]


def train(
    recipe: RecipePath,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="A new directory for the run.",
            show_default="runs/ALGORITHM-seedN",
        ),
    ] = None,
    changes: Changes = None,
    tracker: Trackers = None,
    as_json: AsJson = False,
) -> None:
    """Train as the recipe says, and score what comes out.

    Everything goes into one run directory. Stopped at any moment, `fedsdr resume DIR` goes on
    from where it was, to the same result.

    \b
    Example:  fedsdr train recipe.yaml --out runs/first --set training.rounds=5
    """
    from fedsdr.recipe.settings import read_recipe

    chosen = read_recipe(recipe, changes or ())
    name = ("fedsd+" if chosen.algorithm.boosted else "") + chosen.algorithm.name
    directory = out or free_path(Path("runs") / f"{name}-seed{chosen.seed}")

    from fedsdr.jobs import train as experiment
    from fedsdr.jobs.trackers import follow

    console = talk(as_json)
    watching = progress_watch(console, chosen.training.rounds, directory=directory)
    with _resumable(directory), watching as watch:
        results = follow(
            tracker or (),
            directory,
            watch,
            lambda tracked: experiment.train(chosen, directory, tracked),
        )
    _show(console, directory, results, as_json)


def resume(directory: RunPath, tracker: Trackers = None, as_json: AsJson = False) -> None:
    """Go on with a run that was stopped.

    It ends with the same result, byte for byte, as if it had never been stopped.

    \b
    Example:  fedsdr resume runs/fedsdr-seed1
    """
    from fedsdr.jobs import train as experiment
    from fedsdr.jobs.trackers import follow
    from fedsdr.recipe.settings import parse_recipe
    from fedsdr.runs.directory import RunDirectory

    recipe = parse_recipe(RunDirectory.open(directory).recipe(), str(directory / "recipe.yaml"))
    console = talk(as_json)
    watching = progress_watch(console, recipe.training.rounds, directory=directory)
    with _resumable(directory), watching as watch:
        results = follow(
            tracker or (), directory, watch, lambda tracked: experiment.resume(directory, tracked)
        )
    _show(console, directory, results, as_json)


def purge(
    directory: RunPath,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is private in a run: rewrites, answers, the clients' own state.

    Only what is known to hold no text stays: results, figures, the global adapter, the ledger,
    pages made without texts. Files of your own in the run go too. It cannot be resumed afterwards.

    \b
    Example:  fedsdr purge runs/fedsdr-seed1
    """
    from fedsdr.runs.directory import RunDirectory
    from fedsdr.runs.purge import private
    from fedsdr.runs.purge import purge as remove_private

    run, console = RunDirectory.open(directory), talk(as_json)
    if not yes:
        for part in private(run):
            say(console, f"{part.path}: {part.size.files} files, {size(part.size.bytes)}")
        _confirm(as_json)
    purged = remove_private(run)
    if as_json:
        print_json({"directory": str(directory), **asdict(purged)})
    say(
        console,
        f"removed {purged.files} files ({size(purged.bytes)}): the clients' private state, the "
        f"rewrites and all that may hold texts in {directory}; results, the global adapter and the "
        "ledger stay",
    )
    if purged.linked:
        say(
            console,
            f"{purged.linked} of these files had another name elsewhere (hard links), where what "
            "they hold is still to be read",
        )
    if cache := _shared_cache(run):
        say(console, f"the rewrites in {cache} may serve other runs and stay")


def _confirm(as_json: bool) -> None:
    try:
        agreed = typer.confirm("Remove these for good?", err=as_json)
    except typer.Abort:
        raise RunError("nothing was removed; pass --yes to remove without being asked") from None
    if not agreed:
        complain("nothing was removed", label="")
        raise typer.Exit(1)


def _shared_cache(run: RunDirectory) -> str | None:
    """Where the recipe keeps rewrites outside the run; a damaged recipe must not hinder a purge."""
    from fedsdr.recipe.settings import parse_recipe

    with suppress(FedsdrError):
        return parse_recipe(run.recipe()).rewriting.cache
    return None


@contextmanager
def _resumable(directory: Path) -> Generator[None]:
    try:
        yield
    except KeyboardInterrupt:
        from fedsdr.runs.identity import holds_run

        goes_on = f"; `fedsdr resume {shlex.quote(str(directory))}` goes on"
        complain(
            "stopped" + (goes_on if holds_run(directory) else " before anything was written"), ""
        )
        raise typer.Exit(130) from None


def _show(console: Console, directory: Path, results: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"directory": str(directory), **results})
        return
    when = f"after {rounds_in_words(results['chosen_rounds'])} of {results['rounds']}"
    show_scores(console, f"test scores {when}, mean over clients", results["scores"])
    if "unseen" in results:
        show_scores(console, "the same on clients that never trained", results["unseen"])
    say(console, f"run directory: {directory}")
    say(console, f"adapters:      {directory / 'adapters'}")
