"""`merge`, `export`, `chat`: a run's models put to use."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel

from fedsdr.cli.printing import AsJson, RunPath, complain, plain, print_json, say, talk
from fedsdr.errors import DataError, RecipeError

if TYPE_CHECKING:
    from fedsdr.jobs.export.chat import Answer, Chat

NARROWEST = 32  # columns of a terminal in which an answer still reads well
COMMANDS = "/reset begins anew, /system TEXT sets the system line, /quit ends"

NewFolder = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="A new folder.", show_default=False)
]
Mix = Annotated[str, typer.Option("--mix", metavar="NAME", help="Which deployed model.")]
Client = Annotated[
    str | None,
    typer.Option(
        "--client",
        metavar="ID",
        help="Whose personal model.",
        show_default=False,
    ),
]


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Format(StrEnum):
    peft = "peft"
    safetensors = "safetensors"


def merge(
    directory: RunPath,
    out: NewFolder,
    mix: Mix = "global",
    client: Client = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Of the merged weights.", show_default="the run's"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fold an adapter into the base's weights, with proof that the result says the same.

    What was written is read again and asked held-out prompts of the run. If its logits or its
    greedy answers are not those of base + adapter, nothing is left behind.

    \b
    Example:  fedsdr merge runs/fedsdr-seed1 --out merged
    """
    from fedsdr.coordinator.job import Watch
    from fedsdr.jobs.export.merge import merge as run_merge

    console = talk(as_json)
    watch = Watch(note=lambda text: say(console, text))
    proof = run_merge(directory, out, mix, client, dtype.value if dtype else None, watch)
    if as_json:
        print_json({"folder": str(out), **asdict(proof)})
        return
    say(console, f"merged model: {out}")
    say(
        console,
        f"proof, over {proof.prompts} held-out prompts: {proof.equal_answers} of {proof.prompts} "
        f"greedy answers equal, logits differ by at most {proof.difference:.2g} "
        f"({proof.tolerance:.2g} allowed; the adapter changes them by up to {proof.effect:.2g})",
    )


def export(
    directory: RunPath,
    out: NewFolder,
    mix: Mix = "global",
    client: Client = None,
    format: Annotated[
        Format,
        typer.Option("--format", help="PEFT's folder, or one file that holds all."),
    ] = Format.peft,
    as_json: AsJson = False,
) -> None:
    """Write an adapter to hand on: with model card and checksums, for PEFT, vLLM and others.

    The card holds counts, scores and the recipe; no record, no client's name, no path.

    \b
    Example:  fedsdr export runs/fedsdr-seed1 --out adapter
    """
    from fedsdr.jobs.export.folder import export_adapter

    exported = export_adapter(directory, out, mix, client, format.value)
    if as_json:
        print_json(asdict(exported))
        return
    console = talk()
    say(console, f"adapter of rank {exported.rank}: {exported.folder}")
    for name, digest in exported.files.items():
        say(console, f"  {digest}  {name}")
    say(console, "Read README.md before handing it on: an adapter can give records back.")


def chat(
    directory: RunPath,
    client: Client = None,
    once: Annotated[
        str | None,
        typer.Option("--once", metavar="TEXT", help="Ask this, and end.", show_default=False),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, max=100.0, help="0: the likeliest words."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Talk to the base, the global model and, with --client, a personal one, side by side.

    Reads lines from the terminal or from a pipe; --json prints one object per line.

    \b
    Example:  fedsdr chat runs/fedsdr-seed1 --client c3
    """
    from fedsdr.jobs.export.chat import open_chat

    if once is not None and not once.strip():
        raise RecipeError("--once is empty; say what is to be asked")
    typed = once is None and sys.stdin.isatty()
    with open_chat(directory, client, temperature) as talking:
        if typed:
            say(talk(), f"{', '.join(talking.models)}; {COMMANDS}")
        for line in [once] if once is not None else _lines(typed):
            if once is None and line.startswith("/"):
                if not _obeyed(talking, line):
                    break
                continue
            try:
                _answer(talking, line, as_json)
            except DataError as error:
                if not typed:
                    raise
                complain(str(error))


def _lines(typed: bool) -> Iterator[str]:
    """What is asked, line by line, to the end of the file."""
    if typed:
        with suppress(ImportError):
            importlib.import_module("readline")  # arrow keys, and earlier lines
        with suppress(EOFError):
            while True:
                if line := input("> ").strip():
                    yield line
    else:
        yield from filter(None, map(str.strip, sys.stdin))


def _obeyed(talking: Chat, line: str) -> bool:
    """Do as a command says; False to end."""
    command, _, rest = line.partition(" ")
    if command == "/quit":
        return False
    if command == "/reset":
        talking.reset()
    elif command == "/system":
        talking.reset(rest.strip())
    else:
        complain(f"there is no {command}: {COMMANDS}", label="")
    return True


def _answer(talking: Chat, line: str, as_json: bool) -> None:
    console = Console(markup=False, highlight=False)
    beside = console.is_terminal and console.width >= NARROWEST * len(talking.models)
    answers: dict[str, Answer] = {}
    for model, answer in talking.ask(line):
        answers[model] = answer
        if not as_json and not beside:
            console.print(_shown(console, model, answer), soft_wrap=not console.is_terminal)
    if as_json:
        by_model = {model: asdict(answer) for model, answer in answers.items()}
        typer.echo(json.dumps({"asked": line, "answers": by_model}))
    elif beside:
        width = console.width // len(answers)
        panels = [_panel(model, answer) for model, answer in answers.items()]
        console.print(Columns(panels, width=width - 1, padding=(0, 1, 0, 0)))
    if not as_json:
        _tell_cuts(answers)


def _shown(console: Console, model: str, answer: Answer) -> Panel | str:
    return _panel(model, answer) if console.is_terminal else f"{plain(model)}: {plain(answer.text)}"


def _panel(model: str, answer: Answer) -> Panel:
    return Panel(plain(answer.text), title=plain(model), title_align="left")


def _tell_cuts(answers: Mapping[str, Answer]) -> None:
    for model, answer in answers.items():
        if answer.left_out:
            turns = "turn was" if answer.left_out == 1 else f"{answer.left_out} turns were"
            complain(f"{model}: the oldest {turns} left out, to fit its positions", label="")
        if answer.cut:
            complain(f"{model}: its answer was cut at the limit on its length", label="")
