"""Trackers show the numbers of rounds.jsonl, all of them, each once, and nothing else; whatever was
killed when."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorboard", reason="needs the extra fedsdr[tensorboard]")
pytest.importorskip("wandb", reason="needs the extra fedsdr[wandb]")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner
from wandb.proto.wandb_internal_pb2 import Record

from fedsdr.cli.app import app
from fedsdr.coordinator.job import Watch
from fedsdr.errors import MissingExtra, RunError
from fedsdr.jobs import train as experiment
from fedsdr.jobs.trackers import WandB, final_scores, follow, numbers, open_trackers
from fedsdr.model.base import BaseModel
from toy import TEXTS, clients, recipe

CLIENTS = list(clients((2, 3)).values())
pytestmark = pytest.mark.usefixtures("no_fsync")
Curves = dict[str, dict[int, float]]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def train(tiny_folder: Path, base64: BaseModel) -> Callable[..., Mapping[str, Any]]:
    def work(out: Path, watch: Watch, verb: str = "train") -> Mapping[str, Any]:
        chosen = recipe(tiny_folder, algorithm={"name": "fedavg"})
        if verb == "train":
            return experiment.train(chosen, out, watch, base=base64, clients=CLIENTS)
        return experiment.resume(out, watch, base=base64, clients=CLIENTS)

    return work


class Killed(Exception):
    """What a kill looks like from inside."""


def killed_in(round: int) -> Watch:
    def told(row: Mapping[str, Any]) -> None:
        if row["round"] == round:
            raise Killed

    return Watch(told=told)


def on_tensorboard(out: Path) -> Curves:
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    curves: Curves = {}
    for tag in events.Tags()["scalars"]:
        steps = [(point.step, point.value) for point in events.Scalars(tag)]
        assert len(dict(steps)) == len(steps), f"{tag}: a step is there twice"
        curves[tag] = dict(steps)
    return curves


def records(file: Path) -> list[Record]:
    """W&B's offline log: LevelDB's format of checksummed pieces in blocks of 32 KiB."""
    data, found, piece, at = file.read_bytes(), list[Record](), b"", 7
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(piece))
            piece = b""
    return found


def wandb_file(out: Path) -> Path:
    """Of the one session there is, once W&B's own process has closed the file."""
    (file,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(2000):
        if any(record.HasField("exit") for record in records(file)):
            return file
        time.sleep(0.05)
    pytest.fail(f"{file} was not finished")


def on_wandb(out: Path) -> tuple[Curves, dict[str, float]]:
    curves: Curves = {}
    summary = dict[str, float]()
    for record in records(wandb_file(out)):
        row = {".".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        step = record.history.step.num
        for name, value in row.items():
            if not name.startswith("_"):
                assert step not in curves.setdefault(name, {}), f"{name}: step {step} twice"
                curves[name][step] = json.loads(value)
        for item in record.summary.update:
            summary[".".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return curves, summary


def wanted(out: Path) -> Curves:
    curves: Curves = {}
    for line in (out / "rounds.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name, value in numbers(row).items():
            curves.setdefault(name, {})[row["round"]] = value
    return curves


def same(found: Curves, expected: Curves) -> None:
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert found[name] == pytest.approx(points, rel=1e-6), name


def test_a_row_becomes_numbers_only() -> None:
    row = {
        "round": 2,
        "lr": 0.01,
        "clients": 2,
        "refused": ["client 'c3' lost: no answer", "client 'c4' lost: no answer"],
        "loss": 1.5,
        "losses": {"c1": 1.0, "c2": 2.0},
        "steps": 7.0,
        "tokens": 99.0,
        "bytes_up": 10,
        "bytes_down": 20,
        "validation": {"global": {"loss": 1.25, "perplexity": 3.5}, "personal": {}},
        "best_rounds": {"global": 2},
    }
    assert numbers(row) == {
        "loss": 1.5,
        "lr": 0.01,
        "clients": 2.0,
        "steps": 7.0,
        "tokens": 99.0,
        "bytes_up": 10.0,
        "bytes_down": 20.0,
        "refused": 2.0,
        "losses/c1": 1.0,
        "losses/c2": 2.0,
        "validation/global/loss": 1.25,
        "validation/global/perplexity": 3.5,
    }


def test_what_else_was_trained_is_shown_by_name() -> None:
    row = {
        **dict.fromkeys(("loss", "lr", "clients", "steps", "tokens", "bytes_up", "bytes_down"), 1),
        "round": 1,
        "refused": [],
        "loss_of": "R on raw",
        "losses": {"c1": 1.0},
        "other_losses": {"S on rewritten": {"mean": 0.5, "clients": {"c1": 0.5}}},
        "validation": {},
    }
    found = numbers(row)
    assert found["other_losses/S on rewritten"] == 0.5
    assert found["other_losses/S on rewritten/c1"] == 0.5


def test_tensorboard_shows_every_round_and_the_test_scores(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = follow(["tensorboard"], out, Watch(), lambda watch: train(out, watch))
    last = {name: {3: value} for name, value in final_scores(results).items()}
    assert "test/global/loss" in last
    same(on_tensorboard(out), wanted(out) | last)


def test_wandb_shows_every_round_and_the_test_scores_offline(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = follow(["wandb"], out, Watch(), lambda watch: train(out, watch))
    curves, summary = on_wandb(out)
    same(curves, wanted(out))
    for name, value in final_scores(results).items():
        assert summary[name] == pytest.approx(value)
    about = next(r.run for r in records(wandb_file(out)) if r.run.run_id)
    assert (about.run_id, about.project) == (results_id(out), "fedsdr")
    assert about.display_name == "run"
    assert not about.host
    assert not about.git.commit
    assert json.loads(about.config.update[0].value_json) == {}


def results_id(out: Path) -> str:
    return json.loads((out / "run.json").read_text())["run"]


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("seen", ["before", "after"])
def test_a_resumed_run_continues_the_same_curves(
    train: Any, tmp_path: Path, at: int, seen: str
) -> None:
    """Stopped between a round's commit and the trackers' news of it, or right after that."""
    out, trackers = tmp_path / "run", ["tensorboard", "wandb"]

    def work(watch: Watch) -> Mapping[str, Any]:
        kill = killed_in(at).told
        first, second = (kill, watch.told) if seen == "before" else (watch.told, kill)

        def told(row: Mapping[str, Any]) -> None:
            first(row)
            second(row)

        return train(out, Watch(told=told))

    with pytest.raises(Killed):
        follow(trackers, out, Watch(), work)
    told = list[int]()
    again = Watch(told=lambda row: told.append(row["round"]))
    results = follow(trackers, out, again, lambda watch: train(out, watch, "resume"))
    assert told == list(range(at + 1, 4))
    last = {name: {3: value} for name, value in final_scores(results).items()}
    same(on_tensorboard(out), wanted(out) | last)
    same(on_wandb(out)[0], wanted(out))


def test_a_tracker_that_comes_later_has_the_whole_run(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, Watch())
    (out / "tensorboard").mkdir()
    (out / "tensorboard" / "events.out.tfevents.1.x.1").write_bytes(b"\x03torn")
    results = follow(
        ["tensorboard", "wandb"], out, Watch(), lambda watch: train(out, watch, "resume")
    )
    last = {name: {3: value} for name, value in final_scores(results).items()}
    same(on_tensorboard(out), wanted(out) | last)
    same(on_wandb(out)[0], wanted(out))


def test_results_do_not_depend_on_who_watches(train: Any, tmp_path: Path) -> None:
    alone = train(tmp_path / "alone", Watch())
    out = tmp_path / "watched"
    assert follow(["tensorboard"], out, Watch(), lambda watch: train(out, watch)) == alone
    for file in ("rounds.jsonl", "results.json", "run.json"):
        assert (out / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


def test_no_record_text_and_nothing_of_the_machine_is_written(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    follow(["tensorboard", "wandb"], out, Watch(), lambda watch: train(out, watch))
    shutil.rmtree(out / "wandb" / "logs", ignore_errors=True)
    files = [*(out / "tensorboard").iterdir(), wandb_file(out)]
    words = {word for text in TEXTS for word in text.split() if len(word) > 5}
    for file in files:
        data = file.read_bytes()
        for word in (*words, str(out), "pytest"):
            assert word.encode() not in data, f"{word} is in {file.name}"


def test_wandb_goes_online_only_by_the_users_own_wish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WandB(tmp_path).mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert WandB(tmp_path).mode == "online"
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.raises(RunError, match="WANDB_MODE=sideways: use offline"):
        WandB(tmp_path)


def test_a_wrong_name_and_a_missing_package_are_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    work = lambda watch: pytest.fail("began to train")  # noqa: E731
    with pytest.raises(RunError, match=r"no tracker 'tensorbord'.*Did you mean 'tensorboard'"):
        follow(["tensorbord"], out, Watch(), work)
    monkeypatch.setattr("fedsdr.jobs.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'fedsdr\[wandb\]'"):
        follow(["wandb"], out, Watch(), work)
    assert not out.exists()


@pytest.mark.parametrize("verb", ["train", "resume"])
def test_the_command_line_takes_trackers(train: Any, tmp_path: Path, verb: str) -> None:
    out = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text("algorithm: {name: fedavg}\n")
    where = [str(tmp_path / "recipe.yaml"), "--out", str(out)] if verb == "train" else [str(out)]
    if verb == "resume":
        train(out, Watch())
    told = CliRunner().invoke(app, [verb, *where, "--tracker", "tensorbord"])
    assert told.exit_code == 2
    assert "Did you mean 'tensorboard'?" in " ".join(told.output.split())
    assert not (out / "tensorboard").exists()


def test_a_tracker_named_twice_is_one(tmp_path: Path) -> None:
    assert len(open_trackers(["tensorboard", "tensorboard"], tmp_path)) == 1
