"""Where a model comes from: a folder, or a hub's name and revision, fetched once into the hub's own
cache."""

from __future__ import annotations

import re
from contextvars import ContextVar
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fedsdr.errors import ModelError
from fedsdr.runs.plain import user_path

# Never *.bin, *.pt: pickled weights are not even downloaded. Code only for a trusted model.
WEIGHTS = "*.safetensors"
FILES = (WEIGHTS, "*.json", "*.model", "*.txt", "*.jinja")
# Models whose own Python code may run: named by the user for this process, never by a recipe, which
# somebody else may have written.
TRUSTED: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def find_model(
    path: str, revision: str | None = None, code: bool = False, weights: bool = True
) -> Path:
    """The folder of a model: `path` itself, or the snapshot of a hub's `owner/name`."""
    folder = user_path(path, ModelError)
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"model.revision belongs to a hub's model, but model.path {path!r} is a folder; "
                "leave it out"
            )
        return folder
    if not NAME.fullmatch(path):
        raise ModelError(
            f"model folder {path!r} does not exist ({folder.absolute()}); model.path is a folder, "
            "or a hub's owner/name; that of a run has to be where it was (a link will do)"
        )
    at = f"{path!r}" + (f" at revision {revision!r}" if revision else "")
    files = [f for f in (*FILES, *(["*.py"] if code else [])) if weights or f != WEIGHTS]
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=files))
    except GatedRepoError:
        why = "it is gated: accept its terms on the hub, then log in with `hf auth login`"
    except RevisionNotFoundError:
        why = "there is no such revision"
    except RepositoryNotFoundError:
        why = "there is no such folder here, and no such model on the hub (or it is private)"
    except LocalEntryNotFoundError:
        why = (
            "there is no such folder here, and the hub cannot be reached"
            + (" (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "")
            + "; download it elsewhere and set model.path to the folder"
        )
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise ModelError(f"model {at} cannot be fetched: {why}")
