"""What the verbs print: messages, tables, JSON. Nothing that users give is read as markup.

Arguments and options that several verbs share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedsdr.report.safe_text import HIDDEN as UNPRINTABLE


def talk(as_json: bool = False) -> Console:
    """Where to tell what is going on: not on stdout when that is to hold JSON."""
    return Console(stderr=as_json, markup=False, highlight=False)


def say(console: Console, text: str, style: str = "") -> None:
    """A line that is not wrapped, so that a path in it can be copied."""
    console.print(plain(text), style=style, soft_wrap=True)


def complain(message: str, label: str = "error: ") -> None:
    line = plain(message)
    console = talk(as_json=True)
    console.print(Text.assemble((label, "bold red"), line), soft_wrap=True)


def plain(text: str) -> Text:
    """Controls, which could move the cursor or recolour the terminal, and what hides are spelt."""
    return Text(UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text))


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def show_table(
    console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """The first column is names, the others are figures."""
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, name in enumerate(header):
        longest = max(map(len, name.split()), default=0)  # headers break between words, not within
        justify = "right" if number else "left"
        made.add_column(plain(name), justify=justify, overflow="fold", min_width=longest)
    for row in rows:
        made.add_row(*map(plain, row))
    say(console, title, "bold")
    console.print(made)


def show_facts(console: Console, title: str, facts: Iterable[tuple[str, str]]) -> None:
    made = Table(show_header=False, box=None)
    for name, value in facts:
        made.add_row(plain(name), plain(value))
    say(console, title, "bold")
    console.print(made)
    console.print()


def show_scores(console: Console, title: str, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Measures down, deployed models across, so that it fits a terminal."""
    measures = dict.fromkeys(m for column in scores.values() for m in column)
    rows = [(m, *(figure(column.get(m)) for column in scores.values())) for m in measures]
    if rows:
        show_table(console, title, ("measure", *scores), rows)
    else:
        say(console, f"{title}: there are no rows to score on")


def rounds_in_words(rounds: Mapping[str, int]) -> str:
    """{"global": 8, "personal": 10} -> "round 8 (global), round 10 (personal)"."""
    if len(set(rounds.values())) == 1:
        return f"round {next(iter(rounds.values()))}"
    return ", ".join(f"round {number} ({mix})" for mix, number in rounds.items())


def figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"


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
