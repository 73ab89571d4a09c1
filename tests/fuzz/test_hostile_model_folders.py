"""Folders of models that are broken or mean harm: each is refused in words, or loaded as what it
says; no code of theirs runs, no pickle is opened, nothing outside is read."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from attack import Tally, attempt, how_many, snapshot
from hostile_models import CASES, EITHER, IN_ORDER, mutated, used, workplace

PATIENCE = 30.0  # seconds by the clock; the limits are 2 of computing, twice


def test_folders_of_strangers(tiny_folder: Path, tmp_path: Path) -> None:
    draw, tally, first = random.Random(10), Tally("model folders"), None
    kinds = {**IN_ORDER, **EITHER, **CASES}
    names = [*kinds]
    draw.shuffle(names)
    for number in range(how_many(14)):
        here = tmp_path / str(number)
        folder = workplace(here, tiny_folder)
        if first is None:
            first = attempt(lambda f=folder: used(f), PATIENCE).value["digest"]
        name = names[number // 2 % len(names)] if number % 2 else ""
        if name:
            said, may = name, name not in CASES
            kinds[name](folder)
        else:
            said, may = mutated(folder, draw), True
        before = snapshot(here)
        outcome = attempt(lambda f=folder: used(f), PATIENCE)
        tally.add(said, outcome, may)
        if snapshot(here) != before:
            tally.note(said, "it wrote something")
        if outcome.kind == "returned" and not name and outcome.value["digest"] == first:
            same = snapshot(folder) == snapshot(tiny_folder)
            if not same and not said.startswith("generation_config"):
                tally.note(said, "loaded, and by its digest still the old one")
        shutil.rmtree(here)
    print(tally)
    assert tally.bad == []
