"""`serve`: the pages of the report, live, for a browser on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.printing import say, talk
from fedsdr.errors import MissingExtra

NEEDED = ("starlette", "uvicorn")


def serve(
    directory: Annotated[
        Path,
        typer.Argument(metavar="[DIR]", help="A folder of runs, or a run."),
    ] = Path("runs"),
    port: Annotated[
        int,
        typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes any that is free."),
    ] = 8765,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="A loopback address."),
    ] = "127.0.0.1",
    include_texts: Annotated[
        bool,
        typer.Option(
            "--include-texts", help="Show records' texts of runs on data that are not Atlas's too."
        ),
    ] = False,
) -> None:
    """Show the runs of a folder in a browser, live while they go on.

    The pages are those of `fedsdr report`, and change by themselves as the runs do; runs can be
    sorted, filtered and compared. Only this machine is answered, and only with the token in the
    address that is printed. Nothing can be started or changed from there.

    \b
    Example:  fedsdr serve
              fedsdr serve runs/demo --port 0
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise MissingExtra(f"{package} is not installed: pip install 'fedsdr[serve]'")
    from fedsdr.report.listening import listen

    console, server = talk(), listen(directory, host, port, include_texts)
    say(console, f"the runs in {directory}, to look at only, until Ctrl-C:")
    say(console, f"  {server.address}")
    server.run()
    say(console, "no longer served; the runs themselves go on")
