"""A run that selects rewrites by a classifier is another run with another classifier."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_classifier import make

from fedsdr import resume, run
from fedsdr.errors import RunError
from fedsdr.jobs.recorded import CLASSIFIER
from fedsdr.jobs.train import train
from fedsdr.model.base import BaseModel
from toy import clients, recipe

CLIENTS = list(clients((3, 2)).values())


def test_resume_asks_for_the_same_classifier(
    tmp_path: Path, tiny_folder: Path, base64: BaseModel
) -> None:
    judge = make(tmp_path / "judge", known=False)
    chosen = recipe(
        tiny_folder,
        algorithm={"name": "fedsdr", "options": {"selection": f"none+nli(0.5, {judge})"}},
        training={"rounds": 1},
        evaluation={"answers": 0},
    )
    first = run(chosen, tmp_path / "run", base=base64, clients=CLIENTS)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert len(facts[CLASSIFIER]) == 64
    assert resume(tmp_path / "run", base=base64, clients=CLIENTS) == first
    shutil.rmtree(judge)
    make(judge)  # of the same shape, with other weights
    with pytest.raises(RunError, match="the classifier that selects rewrites is not the one this"):
        resume(tmp_path / "run", base=base64, clients=CLIENTS)
    train(chosen, tmp_path / "other", base=base64, clients=CLIENTS)
    other = json.loads((tmp_path / "other/run.json").read_text())
    assert other["run"] != facts["run"]
    assert other[CLASSIFIER] != facts[CLASSIFIER]


def test_a_run_without_one_says_nothing_of_it(
    tmp_path: Path, tiny_folder: Path, base64: BaseModel
) -> None:
    chosen = recipe(tiny_folder, algorithm={"name": "fedavg"}, training={"rounds": 1})
    run(chosen, tmp_path / "run", base=base64, clients=CLIENTS)
    assert CLASSIFIER not in json.loads((tmp_path / "run/run.json").read_text())
