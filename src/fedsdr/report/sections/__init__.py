"""The sections of a page, in their order."""

from __future__ import annotations

from collections.abc import Callable

from fedsdr.report.section import Absent, Section
from fedsdr.report.sections.absences import absences, answers, rewrites
from fedsdr.report.sections.again import again, differences, notes
from fedsdr.report.sections.agreement import agreement, drift
from fedsdr.report.sections.cost import cost
from fedsdr.report.sections.courses import courses
from fedsdr.report.sections.federation import federation
from fedsdr.report.sections.heterogeneity import heterogeneity
from fedsdr.report.sections.personal import Material, personal
from fedsdr.report.sections.scores import scores

Build = Callable[[Material], Section | Absent]
SECTIONS: tuple[tuple[str, str, Build], ...] = (
    ("scores", "Scores", scores),
    ("curves", "Learning curves", courses),
    ("data", "Who has what data", federation),
    ("heterogeneity", "How different the clients are", heterogeneity),
    ("agreement", "Do the updates agree?", agreement),
    ("drift", "Drift and conflict", drift),
    ("personal", "What personalisation gains", personal),
    ("cost", "Traffic and time", cost),
    ("absences", "Dropouts and refused updates", absences),
    ("rewrites", "What rewriting did to the answers", rewrites),
    ("answers", "Answers side by side", answers),
    ("differences", "What the runs do differently", differences),
    ("again", "Recipe, environment, and how to run it again", again),
    ("notes", "Notes", notes),
)
# What values of a kind that fedsdr never writes lead to.
DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def all_sections(material: Material) -> list[Section | Absent]:
    """Every section, or why it is not there; one that meets damaged values says so."""
    sections = list[Section | Absent]()
    for id, title, build in SECTIONS:
        try:
            sections.append(build(material))
        except DAMAGE as error:
            why = (
                f"A file of the run holds values that fedsdr does not write "
                f"({type(error).__name__}), so this cannot be shown."
            )
            sections.append(Absent(id, title, why))
    return [
        section for section in sections if not (isinstance(section, Absent) and not section.why)
    ]
