"""The rewrites and the answers of the one run that has most to show."""

from __future__ import annotations

from fedsdr.report.answers import answers_section
from fedsdr.report.record import RunRecord
from fedsdr.report.rewrites import rewrites_section
from fedsdr.report.section import Absent, Section
from fedsdr.report.sections.material import Material


def rewrites(material: Material) -> Section | Absent:
    """Of several runs, the last one that rewrote: methods come from plain to boosted."""
    found = [rewrites_section(record, material.include_texts) for record in _few(material)]
    return _chosen(material, found, "rewrites", "What rewriting did to the answers")


def answers(material: Material) -> Section | Absent:
    found = [answers_section(record, material.include_texts) for record in _few(material)]
    return _chosen(material, found, "answers", "Answers side by side")


def _few(material: Material) -> list[RunRecord]:
    return [record for _, record in material.detailed if record.path.is_dir()]


def _chosen(
    material: Material, found: list[Section | Absent], id: str, title: str
) -> Section | Absent:
    shown = [section for section in found if isinstance(section, Section)]
    if not shown:
        return found[-1] if found else Absent(id, title, material.summarised)
    return shown[-1]
