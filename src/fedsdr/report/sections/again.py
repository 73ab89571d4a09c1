"""How to run it again: the command, the recipe, seeds, digests, environment; and what differs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from fedsdr import __version__
from fedsdr.report.compared import differing, flat
from fedsdr.report.figures.svg import Table
from fedsdr.report.record import STATES, RunRecord, glance
from fedsdr.report.safe_text import LONGEST_SENTENCE, short
from fedsdr.report.section import Absent, Panel, Section, paneled
from fedsdr.report.sections.personal import Material
from fedsdr.text.numbers import NONE, fixed, listed, plain, size

AGAIN, DIFFERENCES, NOTES = (
    "Recipe, environment, and how to run it again",
    "What the runs do differently",
    "Notes",
)
SIDE_BY_SIDE = 8  # runs as columns; of more, values are rows
FACTS = {
    "run": "run id", "seed": "seed", "algorithm": "algorithm", "recipe_sha256": "recipe, sha256",
    "world": "data and partition, sha256", "base_digest": "base model, sha256",
    "fedsdr": "fedsdr", "torch": "torch", "python": "Python", "machine": "machine",
    "dtype": "number format", "stack": "clients side by side", "micro_batch": "rows at a time",
    "threads": "threads",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rerun:
    label: str
    command: str
    words: str
    facts: Table
    recipe: str


def again(material: Material) -> Section | Absent:
    runs = [_rerun(label, record) for label, record in material.detailed]
    lead = (
        "The same recipe on the same data and machine gives the same run, byte by byte; on another "
        "machine the numbers differ by rounding."
    )
    several = material.single is None
    data = {
        "lead": f"{lead} {material.summarised}".strip(),
        "runs": runs,
        "all": _all(material.records) if several else None,
    }
    return Section("again", AGAIN, "again.html.j2", data)


def differences(material: Material) -> Section | Absent:
    records = material.records
    if material.single is not None:
        return Absent("differences", DIFFERENCES, "")
    keys = differing(records)
    if not keys:
        words = "All runs have the same recipe but for the seed."
        return Absent("differences", DIFFERENCES, words)
    trees = [flat(record.recipe) for record in records]
    if len(records) <= SIDE_BY_SIDE:
        table = Table(
            ("key", *(record.name for record in records)),
            tuple((key, *(tree.get(key, NONE) for tree in trees)) for key in keys),
        )
    else:
        rows = list[tuple[str, ...]]()
        for key in keys:
            by_value = dict[str, list[str]]()
            for record, tree in zip(records, trees, strict=True):
                by_value.setdefault(tree.get(key, NONE), []).append(record.name)
            rows += [(key, value, str(len(of)), listed(of)) for value, of in by_value.items()]
        table = Table(("key", "value", "runs", "which"), tuple(rows))
    lead = (
        "The keys of the recipes that are not the same in all runs; seeds and caches are left out."
    )
    panel = Panel("all runs", (), (), (("Keys that differ", table),))
    return paneled("differences", DIFFERENCES, lead, (panel,))


def notes(material: Material) -> Section | Absent:
    """What is wrong with what was read, and where the page shows less than there is."""
    lines = [
        f"{record.name}: {note}" if material.single is None else note
        for record in material.records
        for note in record.notes
    ]
    for record in material.records:
        if record.state == "purged":
            lines.append(f"{record.name} was purged: its clients' private files are gone.")
        elif record.state != "finished":
            lines.append(
                f"{record.name} is {STATES[record.state]}; the page shows what there is so far."
            )
    if material.single is None and material.summarised:
        lines.append(material.summarised)
    lines.append(f"Made with fedsdr {__version__}.")
    return Section("notes", NOTES, "notes.html.j2", {"notes": lines})


def _rerun(label: str, record: RunRecord) -> Rerun:
    facts = record.facts
    rows = [(name, _fact(facts[key])) for key, name in FACTS.items() if facts.get(key) is not None]
    rows.insert(0, ("directory", str(record.path)))
    rows.insert(1, ("state", STATES[record.state]))
    recipe = shlex.quote(str(record.path / "recipe.yaml"))
    out = shlex.quote(f"{record.path}-again")
    command = f"fedsdr train {recipe} --out {out}" if record.recipe_text else ""
    words = "Then `fedsdr compare` or the digests below tell whether it is the same."
    from_python = facts.get("from_python")
    if isinstance(from_python, dict) and any(from_python.values()):
        given = listed(str(what) for what, was in from_python.items() if was)
        command, words = (
            "",
            f"This run was started from Python with its own {given}: run that program again.",
        )
    elif not record.recipe_text:
        words = "The recipe is not in this directory: it is a cell of a sweep; run the sweep again."
    return Rerun(label, command, words, Table(("", "value"), tuple(rows)), record.recipe_text)


def _all(records: Sequence[RunRecord]) -> Table:
    rows = list[tuple[str, ...]]()
    for record in records:
        seen = glance(record)
        scores = ", ".join(f"{mix} {fixed(value, 3)}" for mix, value in seen.scores.items())
        rows.append(
            (
                record.name,
                seen.method,
                plain(seen.seed),
                STATES[seen.state],
                f"{seen.round}/{seen.rounds}" if seen.rounds else str(seen.round),
                f"{seen.measure}: {scores}" if scores else NONE,
                size(seen.bytes_up + seen.bytes_down),
            )
        )
    return Table(("run", "method", "seed", "state", "rounds", "score", "bytes"), tuple(rows))


def _fact(value: object) -> str:
    return short(value, LONGEST_SENTENCE)
