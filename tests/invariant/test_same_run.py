"""A resume goes on with the run that began: the same algorithm, rows, adapter and wrap, or none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fedsdr.algorithms.fedavg import fedavg
from fedsdr.algorithms.fedprox import fedprox
from fedsdr.coordinator.job import Watch
from fedsdr.errors import FedsdrError, RunError
from fedsdr.jobs import assembly, recorded
from fedsdr.jobs import train as experiment
from fedsdr.jobs.evaluate import evaluate
from fedsdr.model.base import BaseModel
from fedsdr.parts.algorithm import Algorithm
from fedsdr.parts.combine import Mean
from fedsdr.parts.moves import Copy, When
from fedsdr.parts.robust import CoordinateMedian
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.identity import read_facts, write_facts
from fedsdr.types import ClientData
from toy import clients, recipe

pytestmark = pytest.mark.usefixtures("no_fsync")
CLIENTS = tuple(clients((2, 3, 4, 2)).values())
SHORT = {"rounds": 2, "local_epochs": 1.0, "batch": 3, "lr": 0.01}


class Stopped(BaseException):
    """Where a kill would come."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A rule of the user's own."""

    by: float

    def __call__(self, state: Any, updates: Any) -> Any:
        return Mean()(state, updates)


def stop(row: Mapping[str, Any]) -> None:
    raise Stopped


def started(root: Path, tree: Mapping[str, Any], base: BaseModel, **given: Any) -> Path:
    """A run that was stopped after its first round."""
    chosen = recipe(base.path, training=SHORT, **tree)
    with pytest.raises(Stopped):
        experiment.train(chosen, root, Watch(told=stop), base=base, **given)
    return root


@pytest.fixture(scope="module")
def begun(base64: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fedprox(mu=5) from Python, with a client that never trains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        root = tmp_path_factory.mktemp("begun") / "run"
        tree = {"data": {"atlas": {"preset": "mild"}, "unseen": 1}}
        return started(root, tree, base64, algorithm=fedprox(mu=5.0), clients=CLIENTS)


def changed(place: int, **parts: Any) -> tuple[ClientData, ...]:
    """The same clients, but one."""
    return tuple(replace(c, **parts) if i == place else c for i, c in enumerate(CLIENTS))


def other_row(client: ClientData, part: str, **fields: str) -> dict[str, Any]:
    rows = getattr(client, part)
    return {part: (*rows[:-1], replace(rows[-1], **fields))}


def refused(root: Path, base: BaseModel, said: str, **given: Any) -> None:
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match=said):
        experiment.resume(root, base=base, **given)
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


ALGORITHMS: dict[str, tuple[Callable[[], Algorithm], str]] = {
    "fedavg": (fedavg, r"algorithm\.name is 'fedavg' and was 'fedprox'"),
    "another mu": (lambda: fedprox(mu=1.0), r"objective.*mu is 1\.0 and was 5\.0"),
    "its name alone is the same": (
        lambda: replace(fedavg(), name="fedprox"),
        r"objective is the default and was fedsdr\.",
    ),
    "another rule": (
        lambda: replace(fedprox(mu=5.0), combine=CoordinateMedian()),
        r"combine is fedsdr\.CoordinateMedian and was the default",
    ),
    "a rule of one's own": (
        lambda: replace(fedprox(mu=5.0), combine=Weighted(2.0)),
        r"combine is test_same_run\.Weighted",
    ),
    "a filter": (
        lambda: replace(fedprox(mu=5.0), filters=(lambda state, updates: updates,)),
        r"filters is tuple of 1",
    ),
    "other mixes": (
        lambda: replace(fedprox(mu=5.0), deploys={"global": "0.5*R"}),
        r"deploys is dict of 'global' and was the default",
    ),
    "a move": (
        lambda: replace(
            fedprox(mu=5.0),
            stages=(replace(fedprox(mu=5.0).stages[0], after=(Copy("T", "R", When(2)),)),),
        ),
        r"after is tuple of 1",
    ),
}


@pytest.mark.parametrize("what", ALGORITHMS)
def test_another_algorithm_is_refused(what: str, begun: Path, base64: BaseModel) -> None:
    make, said = ALGORITHMS[what]
    said = f"the algorithm is not the one this run began with: .*{said}.*start a new run"
    refused(begun, base64, said, algorithm=make(), clients=CLIENTS)
    with pytest.raises(RunError, match=said):
        evaluate(begun, base=base64, algorithm=make(), clients=CLIENTS)


ROWS: dict[str, tuple[Sequence[ClientData], str]] = {
    "training row": (
        changed(1, **other_row(CLIENTS[1], "train", response="other")),
        r"client 'c1', train row 3",
    ),
    "validation row": (
        changed(0, **other_row(CLIENTS[0], "validation", prompt="other")),
        r"client 'c0', validation row 2",
    ),
    "test row": (
        changed(2, **other_row(CLIENTS[2], "test", response="other")),
        r"client 'c2', test row 2",
    ),
    "row of a client that never trains": (
        changed(3, **other_row(CLIENTS[3], "test", response="other")),
        r"client 'c3', test row 2",
    ),
    "id": (changed(0, **other_row(CLIENTS[0], "train", id="other")), "ids and labels"),
    "label": (changed(0, **other_row(CLIENTS[0], "train", domain="other")), "ids and labels"),
    "order of rows": (changed(1, train=CLIENTS[1].train[::-1]), r"client 'c1', train row 1"),
    "order of clients": ((CLIENTS[1], CLIENTS[0], *CLIENTS[2:]), "set of rows"),
    "who never trains": ((*CLIENTS[:2], CLIENTS[3], CLIENTS[2]), "set of rows"),
    "one client less": (CLIENTS[1:], r"client 'c0' is missing"),
    "one client more": (
        (replace(CLIENTS[0], client_id="c9"), *CLIENTS),
        r"client 'c9' is new",
    ),
    "a row more": (
        changed(0, train=(*CLIENTS[0].train, CLIENTS[1].train[0])),
        r"client 'c0', train row 3",
    ),
}


@pytest.mark.parametrize("what", ROWS)
def test_other_rows_are_refused(what: str, begun: Path, base64: BaseModel) -> None:
    given, said = ROWS[what]
    refused(begun, base64, said, algorithm=fedprox(mu=5.0), clients=given)


def through(cohort: Any) -> Any:
    return cohort


def late(by: float) -> Callable[[Any], Any]:
    return lambda cohort: cohort if by else None


def test_another_wrap_is_refused(begun: Path, base64: BaseModel, tmp_path: Path) -> None:
    given: dict[str, Any] = {"algorithm": fedprox(mu=5.0), "clients": CLIENTS}
    refused(
        begun, base64, r"wrap is function test_same_run\.through and was", wrap=through, **given
    )
    root = started(tmp_path / "run", {}, base64, wrap=late(1.0), **given)
    refused(root, base64, "wrap= is not the one this run began with", **given)
    refused(root, base64, r"wrap \(by\) is 2\.0 and was 1\.0", wrap=late(2.0), **given)
    experiment.resume(root, base=base64, wrap=late(1.0), **given)


def test_the_same_again_is_the_same_run(begun: Path, base64: BaseModel, tmp_path: Path) -> None:
    """A value that is equal, not the very object; and runs by another algorithm are other runs."""
    shutil.copytree(begun, tmp_path / "run")
    notes: list[str] = []
    experiment.resume(
        tmp_path / "run",
        Watch(note=notes.append),
        base=base64,
        algorithm=fedprox(mu=5.0),
        clients=tuple(clients((2, 3, 4, 2)).values()),
    )
    assert not [note for note in notes if "began with" in note or "written anew" in note]
    tree = {"data": {"atlas": {"preset": "mild"}, "unseen": 1}}
    other = started(tmp_path / "other", tree, base64, algorithm=fedprox(mu=4.0), clients=CLIENTS)
    assert read_facts(other)["run"] != read_facts(begun)["run"]
    shutil.rmtree(other / "checkpoints" / "round-00001")
    theirs = tmp_path / "run" / "checkpoints" / "round-00001"
    shutil.copytree(theirs, other / "checkpoints" / "round-00001")
    number, _, problems = RunDirectory.open(other).load_latest_checkpoint()
    assert (number, len(problems)) == (0, 1)


@pytest.fixture
def from_files(base64: BaseModel, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A run of a recipe alone, over a file."""
    rows = [{"prompt": e.prompt, "response": e.response} for c in CLIENTS for e in c.train]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"file": str(tmp_path / "rows.jsonl"), "partition": {"method": "iid", "clients": 2}}
    tree = {"data": data, "algorithm": {"name": "fedavg"}}
    return started(tmp_path / "run", tree, base64), tree


def test_an_entry_point_that_became_another_algorithm(
    from_files: tuple[Path, Any], base64: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = from_files
    refused(root, base64, "pass no clients to fedsdr.resume", clients=CLIENTS)
    monkeypatch.setattr(assembly, "make_algorithm", lambda *args: fedprox(mu=0.1))
    refused(root, base64, "the algorithm is not the one this run began with")
    monkeypatch.undo()
    experiment.resume(root, base=base64, algorithm=fedavg())  # which is what the recipe says


def test_other_versions_are_told_and_kept(
    from_files: tuple[Path, Any], base64: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = from_files
    now = {**recorded.versions(), "torch": "1.0.0"}
    monkeypatch.setattr(recorded, "versions", lambda: now)
    notes: list[str] = []
    for _ in range(2):
        experiment.resume(root, Watch(note=notes.append), base=base64)
    told = [note for note in notes if note.startswith("torch is 1.0.0, this run began with")]
    assert len(told) == 2
    assert read_facts(root)["resumed_under"] == [{"torch": "1.0.0"}]


def test_another_manifest_is_refused(
    from_files: tuple[Path, Any], base64: BaseModel, tmp_path: Path
) -> None:
    first, tree = from_files
    manifest = tmp_path / "manifest.json"
    shutil.copy(first / "partition.json", manifest)
    data = {**tree["data"], "manifest": str(manifest)}
    del data["partition"]
    root = started(tmp_path / "second", {**tree, "data": data}, base64)
    split = json.loads(manifest.read_text())
    one, two = (client["train"] for client in split["clients"])
    one[0], two[0] = two[0], one[0]
    manifest.write_text(json.dumps(split))
    refused(root, base64, r"set of rows is not the one.*client 'client-\d+', train row 1")


def test_another_adapter_to_start_from_is_refused(
    from_files: tuple[Path, Any], base64: BaseModel, tmp_path: Path
) -> None:
    first, tree = from_files
    experiment.resume(first, base=base64)
    adapter = tmp_path / "adapter"
    shutil.copytree(first / "adapters" / "global", adapter)
    spec = {"R": {"rank": 2, "alpha": 4.0}, "init": str(adapter)}
    root = started(tmp_path / "second", {**tree, "lora": spec}, base64)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    weights[name] = weights[name] + 1e-3
    save_file(weights, adapter / "adapter_model.safetensors")
    refused(root, base64, "the adapter that lora.init names is not the one this run began with")


def test_a_data_file_rewritten_with_the_same_rows_is_none_of_that(
    from_files: tuple[Path, Any], base64: BaseModel
) -> None:
    root, tree = from_files
    partition = (root / "partition.json").read_bytes()
    file = Path(tree["data"]["file"])
    file.write_text("\n" + file.read_text())
    experiment.resume(root, base=base64)
    assert (root / "partition.json").read_bytes() == partition
    (root / "partition.json").write_bytes(partition.replace(b'"seed": 5', b'"seed": 6'))
    with pytest.raises(FedsdrError, match=r"partition\.json is not what this run wrote"):
        experiment.resume(root, base=base64)


def test_a_run_of_an_older_version_still_resumes(
    begun: Path, base64: BaseModel, tmp_path: Path
) -> None:
    """Its run.json says less: what it does not say is not compared, and that is told."""
    root = tmp_path / "run"
    shutil.copytree(begun, root)
    facts = read_facts(root)
    for key in ("algorithm_value", "wrap", "rows_sha256", "partition_sha256"):
        del facts[key]
    write_facts(root, facts)
    notes: list[str] = []
    watch = Watch(note=notes.append)
    experiment.resume(root, watch, base=base64, algorithm=fedprox(mu=5.0), clients=CLIENTS)
    assert any("an older version began this run" in note for note in notes)
