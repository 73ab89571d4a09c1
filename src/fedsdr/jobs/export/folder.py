"""A deployed adapter as a folder to hand on: as PEFT reads it, or as one self-contained file; with
a model card and checksums."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsdr.jobs.export.card import model_card
from fedsdr.jobs.export.chosen import Finished
from fedsdr.jobs.export.place import placed, write_checksums
from fedsdr.model.adapter_config import CONFIG, read_config
from fedsdr.model.adapters import BASE_DIGEST, WEIGHTS, read_tensors, write_tensors

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
