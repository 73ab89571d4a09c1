"""All verbs, and the one place where errors become messages and exit codes.

Nothing heavy (torch, transformers) is imported before a verb needs it, so that help comes at once.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, cast

import click
import typer
from typer.core import TyperCommand, TyperGroup

from fedsdr import __version__
from fedsdr.cli import (
    adapters,
    algorithms,
    diagnose,
    evaluate,
    prepare,
    report,
    run,
    show,
    study,
    sweep,
)
from fedsdr.cli import report as serve
from fedsdr.cli.printing import complain, plain
from fedsdr.errors import FedsdrError, RecipeError, cut_line, cut_message
from fedsdr.runs.plain import user_path


class Verb(TyperCommand):
    """Every path that a verb is given is one that can be: `~` is read, and no name is too long."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for word in args:
            if "\0" in word:
                raise RecipeError(f"{cut_line(word, 200)!r} holds a NUL character")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        for param in self.params:
            name = param.name or ""
            for value in _each(ctx.params.get(name)):
                _check(param, value)
            if isinstance(param.type, click.Path):
                ctx.params[name] = _expanded(ctx.params.get(name))
        return super().invoke(ctx)


def _each(given: Any) -> Sequence[Any]:
    return cast("Sequence[Any]", given) if isinstance(given, list | tuple) else [given]


def _check(param: click.Parameter, value: Any) -> None:
    """What click takes for a number, or for text, and nobody can use."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{param.opts[0]}: {value} is no finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise RecipeError(f"{param.opts[0]}: the number is too large")


def _expanded(given: Any) -> Any:
    if isinstance(given, list | tuple):
        return [_expanded(path) for path in cast("Sequence[Any]", given)]
    return given if given is None else str(user_path(given, RecipeError))


class Verbs(TyperGroup):
    """A user's mistake is a message and exit code 2; a stop from the keyboard is 130."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _in_short():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _in_short():
                return super().invoke(ctx)
        except FedsdrError as error:
            complain(str(error))
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            complain(
                "memory ran out while rewriting or scoring; lower rewriting.batch, "
                "evaluation.batch or run.stack"
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            complain("stopped", label="")
            raise typer.Exit(130) from None


@contextmanager
def _in_short() -> Generator[None]:
    """What is wrong with a command line quotes it, however long and whatever is in it."""
    try:
        yield
    except click.UsageError as error:
        vars(error)["message"] = cut_message(plain(error.message).plain)
        raise


app = typer.Typer(
    name="fedsdr",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    # Typer's own tracebacks show local variables: records of clients, that is.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedsdr {__version__}")
        raise typer.Exit


@app.callback()
def fedsdr(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
    trusted: Annotated[
        list[str] | None,
        typer.Option(
            "--trust-remote-code",
            metavar="MODEL",
            help="Run the Python code that this model brings, named as in model.path; it can do "
            "anything on this machine.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Federated fine-tuning of language models on data that look nothing alike.

    \b
    See it work:      fedsdr demo
    Your own data:    fedsdr init, then edit recipe.yaml,
                      fedsdr plan recipe.yaml, fedsdr train recipe.yaml
    Stopped halfway:  fedsdr resume runs/fedsdr-seed1
    Which methods:    fedsdr algorithms
    Many runs:        fedsdr sweep recipe.yaml --out runs/sweep
    Look at them:     fedsdr show runs/fedsdr-seed1, fedsdr serve runs,
                      fedsdr report runs/fedsdr-seed1
    """
    if trusted:
        from fedsdr.model.sealed import TRUSTED

        TRUSTED.set(frozenset(trusted))


for verb in (
    study.demo,
    prepare.init,
    prepare.plan,
    algorithms.algorithms,
    run.train,
    run.resume,
    prepare.distill,
    diagnose.diagnose,
    evaluate.evaluate,
    study.compare,
    adapters.merge,
    adapters.export,
    adapters.chat,
    sweep.sweep,
    show.show,
    report.report,
    serve.serve,
    run.purge,
):
    app.command(cls=Verb)(verb)
