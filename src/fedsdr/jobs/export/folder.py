"""A deployed adapter as a folder to hand on: as PEFT reads it, or as one self-contained file; with
a model card and checksums.

A new folder, whole or not there at all, and the digests of what is in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsdr.errors import RunError
from fedsdr.jobs.export.card import model_card
from fedsdr.jobs.export.chosen import Finished
from fedsdr.model.adapter_config import CONFIG, read_config
from fedsdr.model.adapters import BASE_DIGEST, WEIGHTS, read_tensors, write_tensors
from fedsdr.runs.files import make_private, private_umask, unwritable
from fedsdr.runs.places import refuse_inside_a_run


def refuse_unless_free(out: Path) -> None:
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if os.path.lexists(out):
        raise RunError(f"{out} is there already; choose another --out")


@contextmanager
def placed(out: Path) -> Generator[Path]:
    """A private folder to fill: it stands beside `out`, is renamed into its place at the end, and
    is gone if that is not reached. What a killed process left beside `out` is removed; nothing else
    is touched."""
    refuse_inside_a_run(out)
    refuse_unless_free(out)
    try:
        make_private(out.parent)
        _remove_abandoned(out)
        with private_umask():
            beside = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}.", dir=out.parent))
        # By its handle: the kernel drops the lock with the process, kill -9 or not.
        held = _locked(beside)
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        with private_umask():  # whoever hands the folder on says to whom
            yield beside
        refuse_unless_free(out)
        os.rename(beside, out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if held is not None:
            os.close(held)


def _remove_abandoned(out: Path) -> None:
    """Folders such as `placed` makes, of this user, that no process holds."""
    ours = re.compile(rf"\.tmp-{re.escape(out.name)}\.[a-z0-9_]{{8}}")
    for path in sorted(p for p in out.parent.iterdir() if ours.fullmatch(p.name)):
        about = path.lstat()
        private = about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) == 0o700
        if stat.S_ISDIR(about.st_mode) and private and (held := _locked(path)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)


def _locked(folder: Path) -> int | None:
    """A handle that holds the folder; None if another process does, it is gone, or its file system
    has no locks."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(folder)):
            return handle
    os.close(handle)
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> dict[str, str]:
    """SHA256SUMS over all files of a folder, as `sha256sum --check` reads it."""
    sums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (folder / "SHA256SUMS").write_text(text)
    return sums


Format = Literal["peft", "safetensors"]
FILE = "adapter.safetensors"


@dataclass(frozen=True, slots=True)
class Exported:
    folder: str
    rank: int  # what vLLM's --max-lora-rank has to allow for
    files: Mapping[str, str]  # name -> sha256


def export_adapter(
    directory: str | Path,
    out: str | Path,
    mix: str = "global",
    client: str | None = None,
    format: Format = "peft",
) -> Exported:
    """Write a run's deployed adapter to a new folder. Of the records, only counts go with it.

    Args:
        directory: The run's folder.
        out: A new folder.
        mix: The deployed mix.
        client: Whose personal model is meant, where each client has one.
        format: `peft`, or another that `fedsdr export` names.
    """
    chosen = Finished.open(directory).chosen(mix, client)
    config = read_config(chosen.folder)
    tensors = read_tensors(chosen.folder, chosen.of.facts["base_digest"])
    with placed(Path(out)) as folder:
        if format == "peft":
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(chosen.folder / name, folder / name)
        else:
            about = {
                BASE_DIGEST: chosen.of.facts["base_digest"],
                CONFIG: (chosen.folder / CONFIG).read_text(),
            }
            write_tensors(folder / FILE, tensors, about)
        (folder / "README.md").write_text(model_card(chosen, config, format), encoding="utf-8")
        files = write_checksums(folder)
    return Exported(str(out), config.rank, files)
