"""A new folder, whole or not there at all, and the digests of what is in it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fedsdr.errors import RunError
from fedsdr.runs.files import unwritable


def refuse_unless_free(out: Path) -> None:
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if os.path.lexists(out):
        raise RunError(f"{out} is there already; choose another --out")


@contextmanager
def placed(out: Path) -> Generator[Path]:
    """A private folder to fill: it stands beside `out`, is renamed into its place at the end, and
    is gone if that is not reached. Nothing else is touched."""
    refuse_unless_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".tmp-{out.name}.", dir=out.parent))
    except OSError as error:
        raise unwritable(out, error) from error
    try:
        yield beside
        refuse_unless_free(out)
        os.rename(beside, out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> dict[str, str]:
    """SHA256SUMS over all files of a folder, as `sha256sum --check` reads it."""
    sums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (folder / "SHA256SUMS").write_text(text)
    return sums
