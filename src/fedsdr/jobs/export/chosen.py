"""Which of a finished run's deployed models is meant, and the base that it belongs to.

A deployed model is what the run saved at its end: an adapter folder. Neither data nor the clients'
states are needed to use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedsdr.errors import RunError, nearest
from fedsdr.evaluate.finished import load_results
from fedsdr.jobs.assembly import open_base
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Recipe, parse_recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import checked_name


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that is done: its recipe, facts and results."""

    run: RunDirectory
    recipe: Recipe
    facts: Mapping[str, Any]
    results: Mapping[str, Any]

    @classmethod
    def open(cls, directory: str | Path) -> Finished:
        run = RunDirectory.open(Path(directory))
        recipe = parse_recipe(run.recipe(), str(run.root / "recipe.yaml"))
        return cls(run, recipe, run.facts(), load_results(run.root))

    def mixes(self) -> list[str]:
        """All that the run deployed, adapter or not."""
        return list(self.results["scores"])

    def saved(self, mix: str) -> bool:
        return self._folder(mix).is_dir()

    def clients(self, mix: str) -> list[str]:
        """Who has an adapter of its own by this mix; nobody where one serves all."""
        return sorted(p.name for p in self._folder(mix).glob("*") if p.is_dir())

    def _folder(self, mix: str) -> Path:
        return self.run.inside(f"adapters/{checked_name(mix)}")

    def chosen(self, mix: str, client: str | None = None) -> Chosen:
        """The one model by this mix, or this client's."""
        if mix not in self.mixes():
            raise RunError(
                f"{self.run.root} deployed no mix {mix!r}; there are "
                f"{', '.join(self.mixes())}.{nearest(mix, self.mixes())}"
            )
        folder, clients = self._folder(mix), self.clients(mix)
        if not self.saved(mix):
            if "private state" in self.facts.get("purged", []):
                raise RunError(f"the adapters of mix {mix!r} were removed by `fedsdr purge`")
            raise RunError(
                f"mix {mix!r} weighs its branches anew for every input, so there are no fixed "
                "weights that an adapter or a merged model could hold; `fedsdr evaluate` scores it"
            )
        if client is None and clients:
            raise RunError(
                f"every client has its own model by mix {mix!r}: name one with --client; there are "
                f"{', '.join(clients)}"
            )
        if client is not None and not clients:
            raise RunError(f"mix {mix!r} is one model for all clients: leave out --client {client}")
        if client is not None and client not in clients:
            raise RunError(
                f"client {client!r} has no model by mix {mix!r}; there are "
                f"{', '.join(clients)}.{nearest(client, clients)}"
            )
        return Chosen(self, mix, client, folder / checked_name(client) if client else folder)

    @property
    def device(self) -> str:
        """The run's, or the CPU where its GPU is missing."""
        return self.recipe.model.device if torch.cuda.is_available() else "cpu"

    def base(self, quantized: bool = True) -> BaseModel:
        """The base as the run had it, or unquantised."""
        changes: dict[str, Any] = {"device": self.device} | (
            {} if quantized else {"quantize": None}
        )
        model = self.recipe.model.model_copy(update=changes)
        base = open_base(self.recipe.model_copy(update={"model": model}))
        if base.digest != self.facts["base_digest"]:
            raise RunError(
                f"{base.path} is not the base that {self.run.root} was trained on (digest "
                f"{base.digest[:12]}, not {self.facts['base_digest'][:12]}): its weights, "
                "tokenizer or chat template changed; bring that one back"
            )
        return base


@dataclass(frozen=True, slots=True)
class Chosen:
    """One deployed model: its adapter's folder, and the run it is of."""

    of: Finished
    mix: str
    client: str | None
    folder: Path

    @property
    def round(self) -> int:
        return self.of.results["chosen_rounds"][self.mix]

    def scores(self) -> Mapping[str, float]:
        """On test data: the client's own, or the mean over all clients."""
        if self.client is not None:
            return self.of.results["clients"][self.mix].get(self.client, {})
        return self.of.results["scores"][self.mix]
