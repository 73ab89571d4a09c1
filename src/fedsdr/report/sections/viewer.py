"""The rewrites and the answers of the one run that has most to show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedsdr.report.answers import answers_section
from fedsdr.report.record import RunRecord
from fedsdr.report.rewrites import rewrites_section
from fedsdr.report.section import Absent, Section
from fedsdr.report.sections.material import Material
from fedsdr.report.texts import IncludeTexts

Build = Callable[[RunRecord, IncludeTexts], Section | Absent]


def rewrites(material: Material) -> Section | Absent:
    return _of_last(material, rewrites_section, "rewrites", "What rewriting did to the answers")


def answers(material: Material) -> Section | Absent:
    return _of_last(material, answers_section, "answers", "Answers side by side")


def _of_last(material: Material, build: Build, id: str, title: str) -> Section | Absent:
    """Of several runs, the last that has something: methods come from plain to boosted."""
    why = Absent(id, title, material.summarised)
    for label, record in reversed(material.detailed):
        if not record.path.is_dir():
            continue
        section = build(record, material.include_texts)
        if isinstance(section, Section):
            run = "" if material.single is not None else label
            return replace(section, data={**section.data, "run": run})
        why = section
    return why
