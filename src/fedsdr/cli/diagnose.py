"""`diagnose`: how different clients are, raw against rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.diagnosis_view import show_diagnosis
from fedsdr.cli.printing import AsJson, Changes, complain, free_path, print_json, say, talk
from fedsdr.cli.progress import progress_watch
from fedsdr.errors import RecipeError


def diagnose(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE|RUN", help="A recipe, or the directory of a run.", show_default=False
        ),
    ],
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="A,B",
            help="Of js, tfidf, lengths, gradient, transfer, pca, cka, audit.",
            show_default="all",
        ),
    ] = None,
    rewritten: Annotated[
        bool | None,
        typer.Option(
            "--rewritten/--no-rewritten",
            help="Also measure the answers as the model rewrites them.",
            show_default="where the algorithm does",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            "--pairs",
            metavar="FILE|DIR",
            help="Take the rewritten answers from these .jsonl rows: id, and output_distilled or "
            "response.",
            show_default=False,
        ),
    ] = None,
    nli: Annotated[
        Path | None,
        typer.Option(
            "--nli",
            metavar="FOLDER",
            help="A classifier that says whether original and rewrite entail each other.",
            show_default=False,
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            metavar="N",
            min=1,
            max=10**6,
            help="Rows of each client, at most, that gradients, losses, states and NLI are of.",
        ),
    ] = 64,
    steps: Annotated[
        int,
        typer.Option(
            "--steps",
            metavar="N",
            min=1,
            max=10**5,
            help="Local steps before transfer and CKA are measured.",
        ),
    ] = 20,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Of a recipe: a folder for the figures; named again, it goes on there.",
            show_default="diagnosis/…, a new one",
        ),
    ] = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """How different clients are: their words, gradients, losses, representations.

    Raw against rewritten; and what rewriting did to the answers. Of a run, the rewrites are those
    it trained on, and the figures go into it. Nothing that is shown or written holds record text,
    but a recipe's rewrites are kept in OUT/drafts.

    \b
    Example:  fedsdr diagnose runs/fedsdr-seed1
              fedsdr diagnose recipe.yaml --only js,tfidf --no-rewritten
              fedsdr diagnose recipe.yaml --pairs rewrites --only js,audit
    """
    is_run = source.is_dir()
    if is_run:
        of_recipes = {"--out": out, "--pairs": pairs, "--set": changes or None}
        for option, value in of_recipes.items():
            if value is not None:
                raise RecipeError(f"{option} is for a recipe; a run is measured as it was recorded")

    from fedsdr.recipe.settings import read_recipe

    recipe = None if is_run else read_recipe(source, changes or ())  # before what takes seconds

    from fedsdr.jobs import diagnose as diagnosis

    chosen = tuple(name.strip() for name in only.split(",")) if only else diagnosis.MEASURES
    wanted = diagnosis.Wanted(
        chosen,
        rewritten,
        pairs,
        nli,
        examples,
        steps,
    )
    console = talk(as_json)
    folder = source if is_run else out or free_path(Path("diagnosis") / source.stem)
    try:
        with progress_watch(console) as watch:
            if recipe is None:
                figures = diagnosis.diagnose_run(source, wanted, watch)
            else:
                figures = diagnosis.diagnose(recipe, folder, wanted, watch)
    except KeyboardInterrupt:
        kept = "" if is_run else f"; with --out {folder} what was rewritten is kept"
        complain(f"stopped{kept}", label="")
        raise typer.Exit(130) from None
    if as_json:
        print_json(figures)
        return
    show_diagnosis(console, figures)
    say(console, f"figures: {folder / diagnosis.FILE}")
