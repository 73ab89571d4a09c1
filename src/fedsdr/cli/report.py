"""`report`: what a run, or several, came to, as one page to look at.

`serve`: the pages of the report, live, for a browser on this machine.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.printing import AsJson, print_json, say, talk
from fedsdr.errors import MissingExtra, RecipeError, nearest
from fedsdr.text.numbers import size


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="A run, several runs to compare, a folder of runs, or a sweep's folder.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page to write.",
            show_default="report.html in DIR; here, of several",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            "--figures",
            metavar="FOLDER",
            help="Write every figure as an SVG file for a paper too.",
            show_default=False,
        ),
    ] = None,
    contrast: Annotated[
        list[str] | None,
        typer.Option(
            "--contrast",
            metavar='"A > B on MEASURE"',
            help="What to test, named before looking; may be given more than once.",
            show_default="every method against FedAvg",
        ),
    ] = None,
    include_texts: Annotated[
        bool,
        typer.Option("--include-texts", help="Show clients' private texts. Keep such a page."),
    ] = False,
    client: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            metavar="ID",
            help="With --include-texts: of this client only; may be given more than once.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One self-contained page that needs no network: scores, curves, who drifted, what it cost.

    It holds no text of a record, but of the embedded world's, unless --include-texts is given.

    \b
    Example:  fedsdr report runs/fedsdr-seed1
              fedsdr report runs/demo -o demo.html --figures paper/figures
    """
    from fedsdr.evaluate.verdicts import Contrast
    from fedsdr.report.page import PageOptions, place_of, render_report, save_figures
    from fedsdr.report.read import read_records
    from fedsdr.report.sections.personal import Material
    from fedsdr.report.words import verdict
    from fedsdr.runs.files import write_text_atomic
    from fedsdr.runs.places import figures_at, page_at

    if client and not include_texts:
        raise RecipeError("--client chooses whose texts are shown: give --include-texts with it")
    records = read_records(directories)
    known = {name for record in records for name in record.clients}
    for name in client or ():
        if name not in known:
            raise RecipeError(
                f"--client {name}: no such client in these runs.{nearest(name, known)}"
            )
    options = PageOptions(
        include_texts=tuple(client) if client else include_texts,
        contrasts=tuple(map(Contrast.parse, contrast)) if contrast else None,
    )
    path = out or place_of(directories, records, options)
    place = page_at(path, ".html", beside_a_run=True)
    if figures is not None:
        figures_at(figures)
    text = render_report(records, options)
    write_text_atomic(place, text)
    drawn = save_figures(records, figures, options) if figures is not None else []
    conclusion = verdict(Material(records, options.include_texts, options.contrasts))
    if as_json:
        print_json(
            {
                "report": str(path),
                "bytes": len(text.encode()),
                "verdict": list(conclusion.sentences),
                "figures": [str(figure) for figure in drawn],
            }
        )
        return
    console = talk()
    say(console, conclusion.title, "bold")
    for sentence in conclusion.sentences:
        say(console, sentence)
    say(console, f"report: {path} ({size(len(text.encode()))})")
    if figures is not None:
        say(console, f"figures: {len(drawn)} in {figures}")


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
    from fedsdr.report.gate import listen

    console, server = talk(), listen(directory, host, port, include_texts)
    say(console, f"the runs in {directory}, to look at only, until Ctrl-C:")
    say(console, f"  {server.address}")
    server.run()
    say(console, "no longer served; the runs themselves go on")
