"""`algorithms`: what there is to choose from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fedsdr.cli.printing import AsJson, print_json, say, show_facts, talk

if TYPE_CHECKING:
    from fedsdr.jobs.plan.catalogue import Entry
    from fedsdr.recipe.settings import Recipe


def algorithms(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show all about this one.", show_default=False),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Count bytes for the model, ranks, clients and rounds of this recipe.",
            show_default="the embedded world's",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What algorithms there are: papers, what is sent, what stays, bytes, options and defaults.

    \b
    Example:  fedsdr algorithms fedprox
    """
    from fedsdr.jobs.plan.catalogue import catalogue
    from fedsdr.recipe.settings import Recipe, read_recipe

    chosen = read_recipe(recipe) if recipe is not None else Recipe()
    listing = catalogue(chosen, name)
    if as_json:
        entries = [asdict(entry) for entry in listing]
        print_json(entries if name is None else entries[0])
    elif name is None:
        _show_all(talk(), listing, chosen)
    else:
        _show_one(talk(), listing[0], chosen)


def _show_all(console: Console, entries: list[Entry], recipe: Recipe) -> None:
    show_facts(
        console, f"{len(entries)} algorithms", [(entry.name, _short(entry)) for entry in entries]
    )
    say(console, f"bytes: {_unit(recipe)}")
    say(console, "all about one: fedsdr algorithms NAME")


def _show_one(console: Console, entry: Entry, recipe: Recipe) -> None:
    facts = [
        ("sends", entry.sends),
        ("keeps", entry.keeps),
        ("deploys", _deploys(entry)),
        ("bytes", f"{_bytes(entry)}: {_unit(recipe)}"),
        ("ranks", "may differ between clients" if entry.any_rank else "the same on all clients"),
        *((f"stage {number}", text) for number, text in enumerate(entry.stages, 1)),
        *((f"option {key}", f"default {_value(value)}") for key, value in entry.options.items()),
    ]
    show_facts(console, entry.name, facts)
    say(console, entry.documentation)


def _short(entry: Entry) -> str:
    ranks = "; ranks may differ" if entry.any_rank else ""
    lines = [
        entry.about,
        f"sends {entry.sends}; keeps {entry.keeps}; deploys {_deploys(entry)}{ranks}",
        f"bytes {_bytes(entry)}",
    ]
    if entry.options:
        options = (f"{key} = {_value(value)}" for key, value in entry.options.items())
        lines.append(f"options {', '.join(options)}")
    return "\n".join([*lines, ""])


def _unit(recipe: Recipe) -> str:
    model = "atlas-base" if recipe.model.path == "atlas" else recipe.model.path
    rounds, rank = recipe.training.rounds, recipe.lora.R.rank
    return (
        f"of one client in a round (mean over {rounds}), in units of one LoRA of rank {rank} on "
        f"{model}"
    )


def _bytes(entry: Entry) -> str:
    if entry.up is None or entry.down is None:
        return "not counted: the data themselves go up"
    most = "at most " if entry.grows else ""
    return f"{entry.up:.2f} up, {most}{entry.down:.2f} down"


def _deploys(entry: Entry) -> str:
    return ", ".join(f"{name} {mix}" for name, mix in entry.deploys.items())


def _value(value: Any) -> str:
    """As a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value)
