"""A report as a file, and its figures as files for a paper."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedsdr.report.figures.svg import Figure, anchor
from fedsdr.report.page import DEFAULT, PageOptions
from fedsdr.report.record import RunRecord
from fedsdr.report.section import Absent, Section
from fedsdr.report.sections import all_sections
from fedsdr.report.sections.material import Material
from fedsdr.runs.files import write_text_atomic
from fedsdr.runs.places import figures_at

WITH_TEXTS = "report-with-texts"
TIP = re.compile(r' (?:data-tip|class)="[^"]*"')  # of the page; a saved figure needs neither


def save_figures(
    records: Sequence[RunRecord], folder: Path, options: PageOptions = DEFAULT
) -> list[Path]:
    """Every figure of the page as an SVG that stands alone; rounds of a heat-map: the last one."""
    figures_at(folder)
    material = Material(records, options.include_texts, options.contrasts)
    written = dict[Path, None]()
    for figure in figures_of(all_sections(material)):
        path, number = folder / f"{anchor(figure.name)}.svg", 1
        while path in written:
            number += 1
            path = folder / f"{anchor(figure.name)}-{number}.svg"
        write_text_atomic(
            path, f'<?xml version="1.0" encoding="UTF-8"?>\n{TIP.sub("", figure.svg)}\n'
        )
        written[path] = None
    return list(written)


def figures_of(sections: Sequence[Section | Absent]) -> Iterator[Figure]:
    for section in sections:
        if isinstance(section, Section):
            for part in (*section.data.get("panels", ()), *section.data.get("blocks", ())):
                yield from part.figures


def place_of(paths: Sequence[Path], records: Sequence[RunRecord], options: PageOptions) -> Path:
    """Where a report goes that was given no place: with the run. One that holds private texts has a
    name that says so."""
    if len(paths) > 1:
        return Path("report.html")
    private = options.include_texts and any(not record.synthetic for record in records)
    if not private or len(records) > 1:
        return paths[0] / "report.html"
    clients = () if isinstance(options.include_texts, bool) else tuple(options.include_texts)
    whose = f"-{clients[0]}" if len(clients) == 1 else ""
    return paths[0] / f"{WITH_TEXTS}{whose}.html"
