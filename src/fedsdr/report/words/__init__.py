"""The verdict: what the numbers come to, in three sentences computed from them."""

from __future__ import annotations

from fedsdr.report.sections.personal import Material
from fedsdr.report.words.one import Verdict, of_run
from fedsdr.report.words.several import of_several

__all__ = ["Verdict", "verdict"]


def verdict(material: Material) -> Verdict:
    """Of one run, or of several compared."""
    return of_run(material.single) if material.single is not None else of_several(material)
