"""Folders of models that are broken or mean harm: each is refused in words, or loaded as what it
says; no code of theirs runs, no pickle is opened, nothing outside is read."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import torch

from attack import Tally, attempt, how_many, snapshot
from fedsdr.data.render import render, render_prompt
from fedsdr.model.base import with_template
from fedsdr.model.loading import load_base
from fedsdr.types import Example
from hostile_models import CASES, EITHER, IN_ORDER, Opened, mutated

ROW = Example("r", "What is the dose of Marudel?", "It is 40 mg aaaa 11.")


def used(folder: Path) -> dict[str, Any]:
    """The model is loaded, and does what a run does with it, under watch."""
    watch = Opened(folder.parent)
    try:
        base = with_template(load_base(folder), "auto")
        row = render(base, ROW, 256)
        render_prompt(base, ROW)
        with torch.no_grad():
            base.logits(torch.tensor([row.ids]))
        base.tokenizer.decode(list(row.ids))
        assert base.stops
        return {"digest": base.digest}
    finally:
        beside = sorted(f for f in watch.files if not f.startswith("model/") or f.endswith(".bin"))
        assert not watch.wrong, watch.wrong
        assert not beside, beside


def workplace(here: Path, plain: Path) -> Path:
    (here / "outside").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(plain / name, here / "outside" / name)
    (here / "outside" / "t.jinja").write_text("{{ messages }}")
    shutil.copytree(plain, here / "model")
    return here / "model"


def test_folders_of_strangers(tiny_folder: Path, tmp_path: Path) -> None:
    draw, tally, first = random.Random(10), Tally("model folders"), None
    kinds = {**IN_ORDER, **EITHER, **CASES}
    names = [*kinds]
    draw.shuffle(names)
    for number in range(how_many(14)):
        here = tmp_path / str(number)
        folder = workplace(here, tiny_folder)
        if first is None:
            first = attempt(lambda f=folder: used(f)).value["digest"]
        name = names[number // 2 % len(names)] if number % 2 else ""
        if name:
            said, may = name, name not in CASES
            kinds[name](folder)
        else:
            said, may = mutated(folder, draw), True
        before = snapshot(here)
        outcome = attempt(lambda f=folder: used(f))
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
