"""`report`: what a run, or several, came to, as one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedsdr.cli.options import AsJson
from fedsdr.cli.printing import print_json, say, talk
from fedsdr.errors import RecipeError, nearest
from fedsdr.report.numbers import size


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
    from fedsdr.report.export import place_of, save_figures
    from fedsdr.report.page import PageOptions, render_report
    from fedsdr.report.read import read_records
    from fedsdr.report.sections.material import Material
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
