"""The run directory: who may begin, what a resume finds, what a purge leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attack import how_many
from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.lock import run_lock

FACTS = {"run": "r1", "seed": 7, "clients_per_stack": 8, "dtype": "float32"}
RECIPE = "algorithm: fedsdr\n# größer\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", RECIPE, FACTS)


def tensors(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"shared": {"A": torch.full((3,), value)}}


def play(run: RunDirectory, rounds: int, clients: tuple[str, ...] = ("a", "b")) -> None:
    """What a round loop leaves behind."""
    for number in range(1, rounds + 1):
        for client_id in clients:
            run.save_client_state(client_id, number, tensors(number), {"round": number})
            run.save_update(client_id, number, tensors(number), {"weight": 1.0})
        run.append_row("rounds.jsonl", {"round": number})
        run.save_checkpoint(number, tensors(number), {"round": number})


def damage(path: Path) -> None:
    file = path / "shared.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


# Beginning and opening


def test_a_new_run_is_private_and_opens_again(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run = RunDirectory.create(tmp_path / "deep" / "run", RECIPE, FACTS)
        run.append_row("rounds.jsonl", {"round": 1})
        run.amend({"clients_per_stack": 4})
        play(run, 1)
    finally:
        os.umask(before)
    assert RunDirectory.open(run.root) == run
    assert run.recipe() == RECIPE
    assert {**FACTS, "clients_per_stack": 4}.items() <= run.facts().items()
    for path in (run.root.parent, run.root, *run.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_existing_empty_directory_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o755)
    (tmp_path / "out" / ".tmp-recipe.yaml.abc").write_text("left behind")
    with run_lock(tmp_path / "out"):
        RunDirectory.create(tmp_path / "out", RECIPE, FACTS)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_a_used_or_foreign_directory_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"already holds a run.*`fedsdr resume .*run`.*--out"):
        RunDirectory.create(run.root, RECIPE, {})
    assert run.facts()["seed"] == 7
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"not empty \(thesis.tex is in it\).*another --out"):
        RunDirectory.create(tmp_path / "home", RECIPE, FACTS)
    assert os.listdir(tmp_path / "home") == ["thesis.tex"]
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o755
    for path in (tmp_path / "home" / "thesis.tex", tmp_path / "home" / "thesis.tex" / "run"):
        with pytest.raises(RunError, match="cannot be written"):
            RunDirectory.create(path, RECIPE, FACTS)


def test_a_start_that_was_killed_half_way_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    RunDirectory.create(tmp_path, RECIPE, FACTS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("algorithm: fedavg\n")
    with pytest.raises(RunError, match="not empty"):
        RunDirectory.create(other, RECIPE, FACTS)
    assert (other / "recipe.yaml").read_text() == "algorithm: fedavg\n"


STARTER = """
import sys
from pathlib import Path
from fedsdr.errors import RunError
from fedsdr.runs.identity import claim
print("ready", flush=True)
sys.stdin.readline()
try:
    claim(Path(sys.argv[1]), f"seed: {sys.argv[2]}", {"run": sys.argv[2]})
except RunError as error:
    print(f"refused: {error}")
else:
    print("won")
"""


def test_of_starts_at_once_one_wins_with_its_own_recipe(tmp_path: Path) -> None:
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, str(tmp_path / "run"), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(how_many(20))
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        assert starter.stdin is not None
        starter.stdin.write("\n")
        starter.stdin.flush()
    answers = [starter.communicate()[0] for starter in starters]
    assert answers.count("won\n") == 1
    assert sum(answer.startswith("refused: ") for answer in answers) == len(starters) - 1
    run = RunDirectory.open(tmp_path / "run")
    assert run.recipe() == f"seed: {run.facts()['run']}"
    assert run.facts()["run"] == str(answers.index("won\n"))


def test_open_says_where_the_run_is(run: RunDirectory, tmp_path: Path) -> None:
    play(run, 1)
    for path, advice in (
        (run.root / "checkpoints", f"Did you mean '{run.root}'"),
        (tmp_path, f"Did you mean '{run.root}'"),
        (tmp_path / "runn", "Did you mean 'run'"),
        (tmp_path / "zzzzzzzz", "fedsdr train RECIPE"),
        (Path("/nonexistent/somewhere"), "fedsdr train RECIPE"),
        (tmp_path / ("x" * 300), "fedsdr train RECIPE"),
    ):
        with pytest.raises(RunError, match="holds no run") as caught:
            RunDirectory.open(path)
        assert advice in str(caught.value)


def test_altered_facts_or_recipe_are_detected(run: RunDirectory) -> None:
    path = run.root / "run.json"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        with pytest.raises(CorruptArtifact, match=r"run\.json"):
            run.facts()
    path.write_bytes(whole)
    (run.root / "recipe.yaml").write_text(RECIPE + "rounds: 3\n")
    with pytest.raises(CorruptArtifact, match="not the recipe that this run was started with"):
        run.recipe()
    (run.root / "recipe.yaml").unlink()
    with pytest.raises(CorruptArtifact, match=r"recipe\.yaml cannot be read"):
        run.recipe()


# Rows


def test_rows_survive_a_cut_at_every_byte(run: RunDirectory) -> None:
    path = run.root / "rounds.jsonl"
    wanted = [{"round": n, "loss": n / 3, "text": "ü\n\u2028"} for n in range(1, 4)]
    for row in wanted:
        run.append_row("rounds.jsonl", row)
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n")
        assert run.rows("rounds.jsonl") == wanted[:complete]
        run.append_row("rounds.jsonl", {"round": 9})
        assert run.rows("rounds.jsonl") == [*wanted[:complete], {"round": 9}]


def test_bad_rows_elsewhere_are_named(run: RunDirectory) -> None:
    path = run.root / "rounds.jsonl"
    for bad in (b"{", b"[1]", b"", b'{"a": \xff}', b"\0\0\0"):
        path.write_bytes(b'{"round": 1}\n' + bad + b'\n{"round": 2}\n')
        with pytest.raises(CorruptArtifact, match=r"rounds\.jsonl, line 2 is damaged"):
            run.rows("rounds.jsonl")
        path.write_bytes(b'{"round": 1}\n' + bad + b"\n")
        assert run.rows("rounds.jsonl") == [{"round": 1}]
        path.write_bytes(b'{"round": 1}\n' + bad + b'\n{"rou')
        with pytest.raises(CorruptArtifact, match=r"rounds\.jsonl, line 2"):
            run.rows("rounds.jsonl")


def test_a_row_that_cannot_be_written_leaves_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.append_row("rounds.jsonl", {"round": 1})
    before = (run.root / "rounds.jsonl").read_bytes()
    real = os.write

    def half(handle: int, data: bytes) -> int:
        real(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(RunError, match=r"rounds\.jsonl cannot be written: No space left"):
            run.append_row("rounds.jsonl", {"round": 2})
    assert (run.root / "rounds.jsonl").read_bytes() == before
    with pytest.raises(RunError, match="not finite"):
        run.append_row("rounds.jsonl", {"loss": float("nan")})
    with pytest.raises(RunError, match="cannot name"):
        run.append_row("../rounds.jsonl", {"round": 2})
    assert (run.root / "rounds.jsonl").read_bytes() == before


# Checkpoints


def test_the_newest_good_checkpoint_is_found(run: RunDirectory) -> None:
    with pytest.raises(CorruptArtifact, match="holds no checkpoint"):
        run.load_latest_checkpoint()
    play(run, 3)
    assert run.checkpoints() == [1, 2, 3]
    number, artifact, problems = run.load_latest_checkpoint()
    assert (number, artifact.meta, problems) == (3, {"round": 3}, [])
    assert run.load_checkpoint(2).meta == {"round": 2}
    with pytest.raises(CorruptArtifact, match="round-00009: no artifact is there"):
        run.load_checkpoint(9)
    assert torch.equal(artifact.tensors["shared"]["A"], torch.full((3,), 3.0))
    damage(run.root / "checkpoints" / "round-00003")
    (run.root / "checkpoints" / "round-00002" / "state.json").unlink()
    number, artifact, problems = run.load_latest_checkpoint()
    assert (number, artifact.meta) == (1, {"round": 1})
    assert [text.split(" cannot")[0] for text in problems] == [
        "checkpoint of round 3",
        "checkpoint of round 2",
    ]
    assert "shared.safetensors" in problems[0]
    assert "state.json" in problems[1]
    damage(run.root / "checkpoints" / "round-00001")
    with pytest.raises(CorruptArtifact, match=r"round 3 .*round 2 .*round 1 "):
        run.load_latest_checkpoint()


def test_swapped_and_foreign_checkpoints_are_detected(run: RunDirectory, tmp_path: Path) -> None:
    play(run, 3)
    folder = run.root / "checkpoints"
    shutil.rmtree(folder / "round-00003")
    shutil.copytree(folder / "round-00001", folder / "round-00003")
    number, _, problems = run.load_latest_checkpoint()
    assert number == 2
    assert "was written as 'checkpoints/round-00001' of run 'r1'" in problems[0]
    other = RunDirectory.create(tmp_path / "other", RECIPE, {**FACTS, "run": "r2"})
    shutil.copytree(folder, other.root / "checkpoints")
    with pytest.raises(CorruptArtifact, match="of run 'r1'"):
        other.load_latest_checkpoint()


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_checkpoint_without_its_client_states_is_not_good(run: RunDirectory, how: str) -> None:
    play(run, 3)
    state = run.root / "clients" / "b" / "round-00003"
    damage(state) if how == "damaged" else shutil.rmtree(state)
    number, _, problems = run.load_latest_checkpoint()
    assert number == 2
    assert "clients/b/round-00003" in problems[0]


def test_a_checkpoint_caught_between_its_renames_counts(run: RunDirectory) -> None:
    play(run, 2)
    folder = run.root / "checkpoints"
    (folder / "round-00002").rename(folder / ".tmp-round-00002.old")
    (folder / ".tmp-round-00007.new").mkdir()
    assert run.checkpoints() == [1, 2]
    assert run.load_latest_checkpoint()[0] == 2
    (run.root / ".tmp-rounds.jsonl.x").touch()
    (run.root / "clients" / "a" / ".tmp-round-00003.new").mkdir()
    run.recover()
    assert sorted(os.listdir(folder)) == ["round-00001", "round-00002"]
    assert not list(run.root.rglob(".tmp-*"))
    assert run.load_latest_checkpoint()[0] == 2


def test_pruned_checkpoints(run: RunDirectory) -> None:
    play(run, 6)
    run.prune_checkpoints(2, {1, 3})
    assert run.checkpoints() == [1, 3, 5, 6]
    run.prune_checkpoints(9)
    assert run.checkpoints() == [1, 3, 5, 6]
    run.prune_checkpoints(0)
    assert run.checkpoints() == []


@pytest.mark.parametrize("what", ["empty", "a copy", "without its tensors", "of another run"])
def test_what_only_bears_the_name_of_a_checkpoint_gets_none_pruned(
    run: RunDirectory, tmp_path: Path, what: str
) -> None:
    play(run, 4)
    folder = run.root / "checkpoints"
    planted = folder / "round-99999"
    if what == "empty":
        planted.mkdir()
    elif what == "of another run":
        other = RunDirectory.create(tmp_path / "other", RECIPE, {**FACTS, "run": "r2"})
        other.save_checkpoint(99999, tensors(1.0), {})
        shutil.copytree(other.root / "checkpoints" / "round-99999", planted)
    else:
        shutil.copytree(folder / "round-00002", planted)
        if what == "without its tensors":
            (planted / "shared.safetensors").unlink()
    run.prune_checkpoints(2)
    assert sorted(os.listdir(folder)) == ["round-00003", "round-00004"]
    assert run.load_latest_checkpoint()[0] == 4


def test_one_number_has_one_name(run: RunDirectory) -> None:
    """Other digits, or more zeros, would be a second checkpoint of the same round."""
    play(run, 3)
    for name in ("round-000004", "round-\u0660\u0660\u0660\u0660\u0664", "round-00004x", "round-4"):
        (run.root / "checkpoints" / name).mkdir()
    assert run.checkpoints() == [1, 2, 3]


def test_a_checkpoint_beyond_the_last_round_is_none(run: RunDirectory) -> None:
    play(run, 3)
    number, _, problems = run.load_latest_checkpoint(2)
    assert (number, len(problems)) == (2, 1)
    assert "round 3 cannot be used: the run has 2" in problems[0]


# Private state and spool


def test_client_state_before_a_round(run: RunDirectory) -> None:
    assert run.load_client_state("a", 1) is None
    for number in (1, 4):
        run.save_client_state("a", number, tensors(number), {"round": number})
    found = {before: run.load_client_state("a", before) for before in range(1, 7)}
    rounds = {before: state.meta["round"] if state else None for before, state in found.items()}
    assert rounds == {1: None, 2: 1, 3: 1, 4: 1, 5: 4, 6: 4}
    damage(run.root / "clients" / "a" / "round-00004")
    with pytest.raises(CorruptArtifact, match="round-00004"):
        run.load_client_state("a", 5)


def test_pruning_keeps_what_the_checkpoints_count_on(run: RunDirectory) -> None:
    trained = {"every": range(1, 6), "rare": (1, 3), "new": (5,)}
    for number in range(1, 6):
        for client_id in (c for c, rounds in trained.items() if number in rounds):
            run.save_client_state(client_id, number, tensors(number), {"round": number})
        run.save_checkpoint(number, tensors(number), {})

    def kept(client_id: str) -> list[str]:
        return sorted(os.listdir(run.root / "clients" / client_id))

    run.prune_checkpoints(2, {2})
    run.prune_client_states()
    assert kept("every") == ["round-00002", "round-00004", "round-00005"]
    assert kept("rare") == ["round-00001", "round-00003"]
    assert kept("new") == ["round-00005"]
    run.prune_checkpoints(2)
    run.prune_client_states()
    assert kept("every") == ["round-00004", "round-00005"]
    assert kept("rare") == ["round-00003"]


def test_planted_states_get_none_pruned_and_go(run: RunDirectory) -> None:
    """Of the round under way, states are there before any checkpoint knows of them."""
    play(run, 3, ("a",))
    run.prune_checkpoints(2)
    planted = {run.root / "clients" / "a" / f"round-{n}" for n in ("00000", "99999")}
    for path in planted:
        path.mkdir()
    for client_id in ("a", "b"):  # of which b's update has not arrived, so that it trains again
        run.save_client_state(client_id, 4, tensors(4), {})
    run.save_update("a", 4, tensors(4), {"weight": 1.0})
    run.prune_client_states(under_way=4)
    assert sorted(os.listdir(run.root / "clients" / "a")) == [
        "round-00002", "round-00003", "round-00004"
    ]  # fmt: skip
    assert os.listdir(run.root / "clients" / "b") == []
    run.prune_client_states()
    assert sorted(os.listdir(run.root / "clients" / "a")) == ["round-00002", "round-00003"]
    shutil.rmtree(run.root / "checkpoints" / "round-00003")
    assert run.load_latest_checkpoint()[0] == 2


def test_after_pruning_one_checkpoint_can_still_be_lost(run: RunDirectory) -> None:
    for number in range(1, 5):
        asked = ("a", "b") if number % 2 else ("b", "c")
        for client_id in asked:
            run.save_client_state(client_id, number, tensors(number), {"round": number})
        run.save_checkpoint(number, tensors(number), {})
        run.prune_checkpoints(2)
        run.prune_client_states()
        assert run.load_latest_checkpoint()[0] == number
    shutil.rmtree(run.root / "checkpoints" / "round-00004")
    assert run.load_latest_checkpoint()[0] == 3


@pytest.mark.parametrize("how", ["missing", "another", "damaged inside"])
def test_an_update_counts_with_the_state_that_was_stored_before_it(
    run: RunDirectory, how: str
) -> None:
    for client_id in ("a", "b"):
        run.save_client_state(client_id, 1, tensors(1), {})
        run.save_update(client_id, 1, tensors(1), {"weight": 1.0})
    run.save_update("c", 1, tensors(1), {"weight": 1.0})  # of one that keeps nothing
    state = run.root / "clients" / "b" / "round-00001"
    if how == "missing":
        shutil.rmtree(state)
    elif how == "another":
        run.save_client_state("b", 1, tensors(2), {})
    else:
        damage(state)
        run.check_spool(1)
    assert run.spooled(1) == {"a", "c"}


def test_private_facts(run: RunDirectory) -> None:
    assert run.load_private_facts("a", "rewritten") is None
    run.save_private_facts("a", "rewritten", {"used": [1, 2]})
    assert run.load_private_facts("a", "rewritten") == {"used": [1, 2]}
    shutil.copytree(run.root / "clients" / "a", run.root / "clients" / "b")
    with pytest.raises(CorruptArtifact, match="was written as 'clients/a/rewritten'"):
        run.load_private_facts("b", "rewritten")


@pytest.mark.parametrize(
    "client_id",
    ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a\0b", "a b", "a\n", "ü", "x" * 65, "a\\b"],
)
def test_unsafe_client_ids_are_refused(run: RunDirectory, client_id: str) -> None:
    before = sorted(run.root.parent.rglob("*"))
    for call in (
        lambda: run.save_client_state(client_id, 1, tensors(1), {}),
        lambda: run.load_client_state(client_id, 1),
        lambda: run.save_update(client_id, 1, tensors(1), {}),
        lambda: run.load_update(client_id, 1),
    ):
        with pytest.raises(RunError, match="cannot name a client"):
            call()
    assert sorted(run.root.parent.rglob("*")) == before


def test_the_spool_offers_whole_updates_only(run: RunDirectory) -> None:
    assert run.spooled(1) == set()
    for client_id in ("a", "b", "c"):
        for number in (1, 2):
            run.save_update(client_id, number, tensors(number), {"weight": 2.5})
    update = run.load_update("a", 2)
    assert update.meta == {"weight": 2.5}
    damage(run.root / "updates" / "round-00002" / "b")
    (run.root / "updates" / "round-00002" / ".tmp-d.new").mkdir()
    assert run.spooled(2) == {"a", "c"}
    assert run.spooled(2) == {"a", "c"}
    run.drop_spool(1)
    assert (run.spooled(1), run.spooled(2)) == (set(), {"a", "c"})
    run.drop_spool(2)
    assert os.listdir(run.root / "updates") == []


# Texts of the clients


def test_texts_lie_beside_the_states_and_are_in_nobodys_way(run: RunDirectory) -> None:
    rows = [{"id": str(i), "prompt": "é\udc80"} for i in range(3)]
    run.save_private_rows("a", "rewrites.jsonl", rows)
    run.save_private_rows("z", "answers.jsonl", rows[:1])  # of a client that never trained
    play(run, 3)
    run.prune_client_states()
    run.recover()
    file = run.private_file("a", "rewrites.jsonl")
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert run.load_client_state("z", 9) is None
    assert run.load_latest_checkpoint()[0] == 3


def test_texts_are_replaced_at_once_or_not_at_all(run: RunDirectory) -> None:
    run.save_private_rows("a", "answers.jsonl", [{"id": "1"}])

    def dies() -> Iterator[dict[str, str]]:
        yield {"id": "2"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_private_rows("a", "answers.jsonl", dies())
    file = run.private_file("a", "answers.jsonl")
    assert file.read_text() == '{"id": "1"}\n'
    left = file.with_name(".tmp-answers.jsonl.x1")  # as kill -9 would leave it
    left.write_text("half a t")
    run.recover()
    assert os.listdir(file.parent) == ["answers.jsonl"]
    with pytest.raises(RunError, match="cannot name"):
        run.private_file("../b", "answers.jsonl")


def test_facts_are_plain_json_for_others_to_read(run: RunDirectory) -> None:
    found = json.loads((run.root / "run.json").read_text())
    assert FACTS.items() <= found.items()
