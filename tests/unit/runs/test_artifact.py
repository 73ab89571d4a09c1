"""Artifacts: what is loaded is what was saved, to the bit, whatever happened in between."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs.artifact import (
    artifacts_in,
    load_artifact,
    recover,
    remove_artifact,
    save_artifact,
    write_json_atomic,
    write_text_atomic,
)


class Killed(BaseException):
    """Stands for a kill -9: no handler of the code under test may run on it."""


OLD = {"branch": {"A": torch.arange(6.0).view(2, 3), "B": torch.zeros(3)}, "slots": {}}
NEW = {"branch": {"A": torch.ones(2, 3), "B": torch.ones(3)}, "momentum": {"m": torch.ones(1)}}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_artifact(tmp_path / "checkpoints" / "round-00001", OLD, {"round": 1, "loss": 0.1})
    return tmp_path / "checkpoints" / "round-00001"


def is_old(path: Path) -> bool:
    return load_artifact(path).meta["round"] == 1


def leftovers(path: Path) -> list[str]:
    return [name for name in os.listdir(path.parent) if name.startswith(".tmp-")]


def test_round_trip_of_every_dtype_and_shape(tmp_path: Path) -> None:
    stack = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1))
    named = {
        "half": stack[1].to(torch.bfloat16),
        "double": stack[2].double(),
        "slice": stack[:, 1],
        "other slice": stack[:, 2],
        "transposed": stack[0].T,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "not a number": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    meta = {"best": None, "list": [1, 2.5, "ü\u2028"], "deep": {"x": {"y": 1e-300}}}
    digest = save_artifact(tmp_path / "a", {"one": named, "none": {}}, meta)
    loaded = load_artifact(tmp_path / "a")
    assert loaded.digest == digest
    assert loaded.meta == meta
    assert loaded.tensors["none"] == {}
    assert loaded.tensors["one"].keys() == named.keys()
    for name, tensor in named.items():
        found = loaded.tensors["one"][name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found.nan_to_num(7.0), tensor.nan_to_num(7.0))


def test_same_content_gives_same_bytes(tmp_path: Path) -> None:
    swapped = {stem: dict(reversed(named.items())) for stem, named in reversed(OLD.items())}
    one = save_artifact(tmp_path / "one", OLD, {"b": 1, "a": 2})
    two = save_artifact(tmp_path / "two", swapped, {"a": 2, "b": 1})
    assert one == two
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_only_the_owner_can_read_it_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o277, 0o777):
        before = os.umask(umask)
        try:
            save_artifact(tmp_path / f"{umask}" / "deep" / "a", OLD, {})
            write_text_atomic(tmp_path / f"{umask}" / "text", "x")
        finally:
            os.umask(before)
        for path in (tmp_path / f"{umask}", *(tmp_path / f"{umask}").rglob("*")):
            expected = 0o700 if path.is_dir() else 0o600
            assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_every_truncation_is_detected(stored: Path) -> None:
    cuts = 0
    for file in sorted(stored.iterdir()):
        whole = file.read_bytes()
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            with pytest.raises(CorruptArtifact, match=r"state\.json|" + file.name):
                load_artifact(stored)
            cuts += 1
        file.write_bytes(whole)
    assert cuts > 300
    assert is_old(stored)


def test_every_sampled_bit_flip_is_detected(stored: Path) -> None:
    draw = random.Random(5)
    files = sorted(stored.iterdir())
    for _ in range(300):
        file = draw.choice(files)
        whole = file.read_bytes()
        bit = draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(flipped)
        with pytest.raises(CorruptArtifact):
            load_artifact(stored)
        file.write_bytes(whole)
    assert is_old(stored)


def test_every_third_bit_of_the_state_counts(stored: Path) -> None:
    file = stored / "state.json"
    whole = file.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(flipped)
        with pytest.raises(CorruptArtifact):
            load_artifact(stored)


def _drop_tensor_file(path: Path) -> None:
    (path / "slots.safetensors").unlink()


def _swap_files(path: Path) -> None:
    one, two = (path / "slots.safetensors", path / "branch.safetensors")
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def _respell_state(path: Path) -> None:
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state, indent=1))


def _link_file(path: Path) -> None:
    (path / "branch.safetensors").rename(path.parent / "elsewhere")
    (path / "branch.safetensors").symlink_to(path.parent / "elsewhere")


def _pipe(path: Path) -> None:
    (path / "branch.safetensors").unlink()
    os.mkfifo(path / "branch.safetensors")


def _not_a_directory(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_drop_tensor_file, "slots.safetensors is missing"),
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "extra.safetensors").write_bytes(b""), "extra.safetensors does not"),
        (lambda path: (path / "sub").mkdir(), "sub is not a plain file"),
        (_swap_files, "branch.safetensors"),
        (_respell_state, "state.json"),
        (_link_file, "branch.safetensors cannot be read"),
        (_pipe, "branch.safetensors is not a plain file"),
        (lambda path: (path / "state.json").write_bytes(b"[" * 100_000), "state.json"),
        (lambda path: (path / "state.json").write_bytes(b"\xff\xfe"), "state.json"),
        (lambda path: (path / "state.json").write_bytes(b"[]"), "state.json"),
        (lambda path: (path / "state.json").write_bytes(b'{"meta":{},"files":3}'), "state.json"),
        (
            lambda path: (path / "state.json").write_bytes(b'{"meta":{"x":NaN},"files":{}}'),
            "state.json",
        ),
        (_not_a_directory, "no artifact is there"),
        (shutil.rmtree, "no artifact is there"),
    ],
)
def test_damage_is_named(stored: Path, damage: Callable[[Path], object], named: str) -> None:
    damage(stored)
    with pytest.raises(CorruptArtifact, match=named.replace(".", r"\.")):
        load_artifact(stored)


def test_swapped_file_of_another_artifact_is_detected(stored: Path) -> None:
    save_artifact(stored.with_name("other"), NEW, {"round": 2})
    shutil.copy(stored.with_name("other") / "branch.safetensors", stored / "branch.safetensors")
    with pytest.raises(CorruptArtifact, match=r"branch\.safetensors"):
        load_artifact(stored)


def test_not_finite_facts_and_unsafe_stems_are_refused(stored: Path) -> None:
    with pytest.raises(RunError, match="not finite"):
        save_artifact(stored, OLD, {"loss": float("nan")})
    for stem in ("../evil", "a/b", "", ".hidden"):
        with pytest.raises(RunError, match="cannot name"):
            save_artifact(stored, {stem: {}}, {})
    assert is_old(stored)


CALLS = ["rename", "fsync", "mkdir", "open", "chmod", "fchmod"]


@contextmanager
def failing(name: str, at: int, error: BaseException) -> Generator[None, None, None]:
    """The call number `at` (from 0) of `os.<name>` fails."""
    real, calls = getattr(os, name), itertools.count()

    def call(*args: object, **kwargs: object) -> object:
        if next(calls) == at:
            raise error
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, name, call)
        yield


def attempt(path: Path) -> str | None:
    try:
        save_artifact(path, NEW, {"round": 2})
    except RunError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_any_failing_call_is_a_run_error_and_keeps_the_old(
    tmp_path: Path, name: str, code: int
) -> None:
    path = tmp_path / "a"
    for at in range(50):
        save_artifact(path, OLD, {"round": 1})
        with failing(name, at, OSError(code, os.strerror(code))):
            message = attempt(path)
        if message is None:
            break
        assert str(path) in message
        assert os.strerror(code) in message
        assert is_old(path)
        assert not leftovers(path)
    assert 0 < at < 49
    assert not is_old(path)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("first", [True, False])
def test_kill_at_any_call_leaves_old_or_new(tmp_path: Path, name: str, first: bool) -> None:
    between = 0
    for at in range(50):
        path = tmp_path / f"{at}" / "a"
        path.parent.mkdir()
        if not first:
            save_artifact(path, OLD, {"round": 1})
        try:
            with failing(name, at, Killed()):
                save_artifact(path, NEW, {"round": 2})
        except Killed:
            pass
        else:
            break
        between += not path.exists()
        if not first:
            before = load_artifact(path)
            assert artifacts_in(path.parent) == {"a"}
            recover(path.parent)
            assert load_artifact(path).digest == before.digest
        elif artifacts_in(path.parent):
            assert not is_old(path)
        recover(path.parent)
        assert not leftovers(path)
        save_artifact(path, NEW, {"round": 2})
        assert not is_old(path)
        assert not leftovers(path)
    assert 0 < at < 49
    if name == "rename" and not first:
        assert between == 1


def test_redo_without_recover_after_a_kill_between_the_renames(stored: Path) -> None:
    with pytest.raises(Killed), failing("rename", 1, Killed()):
        save_artifact(stored, NEW, {"round": 2})
    assert not stored.exists()
    assert is_old(stored)
    save_artifact(stored, NEW, {"round": 3})
    assert load_artifact(stored).meta["round"] == 3
    assert not leftovers(stored)


def test_full_disk_in_earnest(stored: Path) -> None:
    """A limit on file sizes makes the kernel cut the write short in the middle of a file."""
    big = {"branch": {"A": torch.zeros(200_000)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"round-00001 cannot be written.*raise the limit"):
            save_artifact(stored, big, {"round": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert is_old(stored)
    assert not leftovers(stored)


def test_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="file/a cannot be written"):
        save_artifact(tmp_path / "file" / "a", OLD, {})
    with pytest.raises(RunError, match=r"file/a\.txt cannot be written"):
        write_text_atomic(tmp_path / "file" / "a.txt", "x")


KILLED_WRITER = """
import sys, torch
from pathlib import Path
from fedsdr.runs.artifact import save_artifact
print("ready", flush=True)
for round in range(2, 100_000):
    tensors = {"branch": {"A": torch.full((2000,), float(round))}}
    save_artifact(Path(sys.argv[1]), tensors, {"round": round})
"""


@pytest.mark.parametrize("pause", [0.004, 0.023])
def test_kill_9_in_earnest(stored: Path, pause: float) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(stored)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(pause)
        writer.kill()
        writer.wait()
    found = load_artifact(stored)
    if found.meta["round"] > 1:
        assert found.tensors["branch"]["A"].unique().item() == found.meta["round"]
    recover(stored.parent)
    assert load_artifact(stored).digest == found.digest
    assert not leftovers(stored)


def test_removal_is_at_one_stroke(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(path: Path) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dies)
        with pytest.raises(Killed):
            remove_artifact(stored)
    assert artifacts_in(stored.parent) == set()
    recover(stored.parent)
    assert not leftovers(stored)
    remove_artifact(stored)


def test_text_and_json_are_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    write_json_atomic(path, {"b": [1, None], "a": "ü"})
    assert json.loads(path.read_text()) == {"a": "ü", "b": [1, None]}
    before = path.read_bytes()
    full = OSError(errno.ENOSPC, "No space left on device")
    for name in ("fsync", "replace", "fchmod"):
        with (
            pytest.raises(RunError, match=r"notes\.json cannot be written.*free some space"),
            failing(name, 0, full),
        ):
            write_text_atomic(path, "other")
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["notes.json"]


def test_a_stray_file_is_no_artifact(tmp_path: Path) -> None:
    save_artifact(tmp_path / "a", {}, {})
    (tmp_path / "report.html").write_text("<p>")
    (tmp_path / "b").symlink_to(tmp_path / "report.html")
    assert artifacts_in(tmp_path) == {"a"}
