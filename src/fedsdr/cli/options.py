"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="The recipe, a YAML file; `fedsdr init` writes one.",
        show_default=False,
    ),
]
RunPath = Annotated[
    Path, typer.Argument(metavar="DIR", help="The directory of a run.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the recipe, such as training.lr=0.001; may be repeated.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")]


def free_path(wish: Path) -> Path:
    """The path itself, or the first of path-2, path-3 … that is not taken."""
    path, number = wish, 1
    while path.exists():
        number += 1
        path = wish.with_name(f"{wish.name}-{number}")
    return path
