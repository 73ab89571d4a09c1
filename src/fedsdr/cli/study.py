"""`demo`, `evaluate`, `compare`: what answers which model is better."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsdr.cli.printing import (
    AsJson,
    figure,
    free_path,
    print_json,
    say,
    show_table,
    talk,
)
from fedsdr.cli.progress import progress_watch

if TYPE_CHECKING:
    from fedsdr.coordinator.job import Watch


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="A new folder for the three runs.",
            show_default="runs/demo",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed is another world.")] = 1,
    as_json: AsJson = False,
) -> None:
    """See it work: FedAvg, FedSD and FedSDR on eight clients of an embedded world.

    Needs no data, no network and no GPU; a few minutes on two cores.

    \b
    Example:  fedsdr demo --seed 2
    """
    from fedsdr.jobs.demo import MEASURES, run_demo, sentences

    console = talk(as_json)

    def watching(method: str, rounds: int) -> AbstractContextManager[Watch]:
        return progress_watch(console, rounds, method)

    done = run_demo(out or free_path(Path("runs") / "demo"), seed, watching)
    if as_json:
        facts = {"directory": str(done.out), "runs": done.runs, "faithful": done.faithful}
        print_json({**facts, "sentences": sentences(done)})
        return
    models = done.rows()
    rows = [(m, *(figure(scores.get(m)) for _, _, scores in models)) for m in MEASURES]
    header = ("measure", *(f"{method} {mix}" for method, mix, _ in models))
    show_table(console, "test scores, mean over clients", header, rows)
    for sentence in sentences(done):
        say(console, sentence)
    for method in done.runs:
        say(console, f"run directory: {done.out / method}")
    place = shlex.quote(str(done.out))
    say(console, f"to look at them: fedsdr report {place}, or fedsdr serve {place}")


def compare(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories of finished runs.", show_default=False),
    ],
    contrast: Annotated[
        list[str] | None,
        typer.Option(
            "--contrast",
            metavar='"A > B on MEASURE"',
            help="What to test, named before looking; may be given more than once.",
            show_default="every method against FedAvg",
        ),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure",
            metavar="NAME",
            help="A measure to show; may be given more than once.",
            show_default="recall, retention, hallucination, redundancy",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which method is better, over several seeds: mean ± sd, and which differences hold up.

    Runs are paired by seed. At least 6 seeds are needed for anything to be significant.

    \b
    Example:  fedsdr compare runs/fed* --contrast "fedsd:global > fedavg:global on recall"
    """
    from fedsdr.evaluate import comparison
    from fedsdr.evaluate.finished import default_measures, read_results
    from fedsdr.evaluate.verdicts import Contrast

    # A page that stands among the runs is named too by `runs/*`.
    results = read_results([d for d in directories if d.suffix != ".html" or d.is_dir()])
    measures = list(dict.fromkeys(measure or default_measures(results)))
    contrasts = (
        [Contrast.parse(text) for text in contrast]
        if contrast
        else comparison.default_contrasts(results, measures)
    )
    compared = comparison.compare(results, contrasts, measures)
    if as_json:
        print_json(compared.to_json())
        return
    console, rows = talk(), comparison.table_rows(compared)
    title = "test scores, mean ± sd over seeds"
    if len(rows) <= len(measures):  # few models stand side by side: that fits a terminal
        across = ("measure", *(f"{method} {model} (n={n})" for method, model, n, *_ in rows))
        down = [(m, *(row[3 + i] for row in rows)) for i, m in enumerate(measures)]
        show_table(console, title, across, down)
    else:
        show_table(console, title, ("method", "model", "seeds", *measures), rows)
    if not contrasts:
        say(console, "Nothing to test: give runs of two methods, or name a --contrast.")
    for line in comparison.render_text(compared).splitlines():
        say(console, line)
