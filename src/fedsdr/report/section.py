"""What a page is made of: sections, or the words that say why one is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsdr.report.figures.svg import Figure, Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. Its template is rendered with `section` (this) and `data`.

    `scripts` and `style` name further files of templates/, which the page takes in once. In the
    template `{{ value | json }}` writes a value for a `<script type="application/json">` block.
    """

    id: str  # the anchor, and the stem of all ids within
    title: str
    template: str  # a file in report/templates/
    data: Mapping[str, Any]
    scripts: tuple[str, ...] = ()
    style: str | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """A section that cannot be shown, and why, with what to do about it."""

    id: str
    title: str
    why: str


@dataclass(frozen=True, slots=True)
class Panel:
    """What a section says of one run, or of all: sentences, figures, tables. Several panels of a
    section stand behind tabs."""

    label: str
    sentences: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()  # (caption, table)


def paneled(id: str, title: str, lead: str, panels: tuple[Panel, ...]) -> Section:
    return Section(id, title, "panels.html.j2", {"lead": lead, "panels": panels})
