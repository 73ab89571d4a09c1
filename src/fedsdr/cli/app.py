"""All verbs, and the one place where errors become messages and exit codes.

Nothing heavy (torch, transformers) is imported before a verb needs it, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fedsdr import __version__
from fedsdr.cli import (
    adapters,
    algorithms,
    diagnose,
    evaluate,
    prepare,
    report,
    run,
    serve,
    show,
    study,
    sweep,
)
from fedsdr.cli.printing import complain
from fedsdr.errors import FedsdrError


class Verbs(TyperGroup):
    """A user's mistake is a message and exit code 2; a stop from the keyboard is 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
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
        from fedsdr.model.source import TRUSTED

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
    app.command()(verb)
