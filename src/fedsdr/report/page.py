"""The page: sections into one HTML file that needs nothing else and runs no script but its own.

A report as a file, and its figures as files for a paper.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup, escape

from fedsdr.evaluate.verdicts import Contrast
from fedsdr.report.answer_view import IncludeTexts
from fedsdr.report.figures.svg import Figure, anchor
from fedsdr.report.record import RunRecord
from fedsdr.report.safe_text import visible
from fedsdr.report.section import Absent, Section
from fedsdr.report.sections import all_sections
from fedsdr.report.sections.personal import Material
from fedsdr.report.words import verdict
from fedsdr.runs.files import write_text_atomic
from fedsdr.runs.places import figures_at

TEMPLATES = Path(__file__).parent / "templates"
COMMAND = re.compile(r"`(fedsdr [^`]+)`")


@dataclass(frozen=True, slots=True)
class PageOptions:
    include_texts: IncludeTexts = False  # of runs that are not synthetic too
    contrasts: tuple[Contrast, ...] | None = None  # what to test; every method against FedAvg
    live: str | None = None  # where the page hears of changes, under `fedsdr serve`


DEFAULT = PageOptions()


def render_report(records: Sequence[RunRecord], options: PageOptions = DEFAULT) -> str:
    """HTML of one run, or of several compared."""
    material = Material(records, options.include_texts, options.contrasts)
    summary, sections = verdict(material), all_sections(material)
    banner = _banner(records, options.include_texts)
    return render_page(
        "report.html.j2", summary.title, options, sections, "held" if banner else "none",
        verdict=summary, banner=banner, several=len(records) > 1,
    )  # fmt: skip


def render_page(
    template: str,
    title: str,
    options: PageOptions,
    sections: Sequence[Section | Absent] = (),
    texts: Literal["held", "none"] = "none",
    **values: Any,
) -> str:
    """Any page of fedsdr: the look, the script and the content security policy are the same. That
    it holds private texts, or none, is written in it, for `fedsdr purge` (`runs/contents.py`)."""
    shown = [section for section in sections if isinstance(section, Section)]
    live = options.live is not None  # its script comes first: it keeps the page as it was sent
    scripts = _taken(
        "live.js" if live else None, "script.js", *(n for s in shown for n in s.scripts)
    )
    styles = _taken("style.css", "live.css" if live else None, *(s.style for s in shown))
    return environment().get_template(template).render(
        title=title,
        texts=texts,
        sections=sections,
        scripts=[Markup(text) for text in scripts],
        styles=[Markup(text) for text in styles],
        policy=policy(scripts, styles, live),
        live=options.live,
        **values,
    )  # fmt: skip


def policy(scripts: Iterable[str], styles: Iterable[str], connect: bool = False) -> str:
    """Nothing is loaded, and nothing runs but these very texts."""
    parts = [
        "default-src 'none'",
        f"style-src {' '.join(map(_hashed, styles))}",
        f"script-src {' '.join(map(_hashed, scripts))}",
        "img-src data:",
        *(["connect-src 'self'"] if connect else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(parts)


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters["json"] = json_block
    made.filters["visible"] = visible
    made.filters["anchor"] = anchor
    made.filters["seen"] = _seen
    made.filters["prose"] = prose
    made.tests["shown"] = lambda value: isinstance(value, Section)
    return made


def json_block(value: object) -> Markup:
    """JSON that may stand in a script element: nothing in it ends the element or a line."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def prose(text: str) -> Markup:
    """A sentence of ours, in which a command is code; other such marks came with a name."""
    parts = [escape(visible(part)) for part in COMMAND.split(text)]
    return Markup("").join(
        Markup(f"<code>{part}</code>") if n % 2 else part for n, part in enumerate(parts)
    )


def _shown(value: object) -> object:
    """Everything a template writes, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _seen(value: Any) -> Any:
    """The same, all the way down a JSON value."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(key): _seen(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_seen(inner) for inner in value]
    return value


def _taken(*names: str | None) -> list[str]:
    return [_file(name) for name in dict.fromkeys(names) if name is not None]


def _file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hashed(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _banner(records: Sequence[RunRecord], include_texts: IncludeTexts) -> str:
    """What a reader must know who is about to pass the page on."""
    private = [r for r in records if not r.synthetic and r.state != "purged"]
    if not include_texts or not private:
        return ""
    return (
        "This page holds texts of clients' records (--include-texts). It belongs to those whose "
        "records they are: do not pass it on."
    )


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
