"""The run directory: the whole truth about a run, and all that a resume, a report or a purge needs.

    recipe.yaml  run.json  lock
    rounds.jsonl  validation.jsonl  diagnostics.jsonl  timings.jsonl  ledger.jsonl
    checkpoints/round-00003/     the server's state after round 3
    clients/<id>/round-00003/    a client's private state after round 3; never sent
    clients/<id>/*.jsonl         its own texts, for those who look at them on this machine
    clients/<id>/rewritten/      digests of the rewrites that it trained on
    updates/round-00003/<id>/    updates of a round that is under way (the spool)
    adapters/  rewrites/

Methods that only read change nothing here; those that write are for the holder of `run_lock`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs import contents, files, identity
from fedsdr.runs.artifact import (
    Artifact,
    artifacts_in,
    load_artifact,
    recover,
    remove_artifact,
    save_artifact,
    written_as,
)
from fedsdr.runs.files import JSON
from fedsdr.runs.places import (
    checkpoint_at,
    newest,
    private_at,
    round_folder,
    round_numbers,
    safe_names,
    state_at,
    update_at,
)
from fedsdr.types import Tensors


@dataclass(frozen=True, slots=True)
class RunDirectory:
    root: Path

    @classmethod
    def create(cls, path: Path, recipe_text: str, facts: Mapping[str, JSON]) -> RunDirectory:
        """Begin a run in a new or empty directory; of many processes that try, one succeeds.

        The fact "run", the run's id, is stamped on every artifact: those of other runs are refused.
        """
        identity.claim(path, recipe_text, facts)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        identity.find(path)
        return cls(path)

    def facts(self) -> dict[str, Any]:
        """What run.json holds."""
        return identity.read_facts(self.root)

    def amend(self, changes: Mapping[str, JSON]) -> None:
        """Add facts, or replace them: K, say, after memory ran out."""
        identity.write_facts(self.root, {**self.facts(), **changes})

    def inside(self, at: str) -> Path:
        """Where to read or write in the run; refused where a link has been put in the way."""
        return contents.inside(self.root, at)

    def recipe(self) -> str:
        return identity.read_recipe(self.root)

    def refuse_if_purged(self) -> None:
        """Without the private state a resume would silently train something else."""
        if purged := self.facts().get("purged"):
            raise RunError(
                f"{self.root} cannot be resumed: its {' and '.join(purged)} were removed by "
                "`fedsdr purge`; train again with another --out"
            )

    def recover(self) -> None:
        """Undo what a kill left unfinished anywhere in the run: the first step of a resume."""
        nested = [
            self.root / parent / name
            for parent in ("clients", "updates")
            for name in artifacts_in(self.root / parent)
        ]
        top = [self.root / name for name in ("", "checkpoints", "clients", "updates", "adapters")]
        for folder in [*top, *nested]:
            recover(folder)

    # Rows: all files *.jsonl above

    def append_row(self, file: str, row: Mapping[str, JSON]) -> None:
        files.append_row(self._rows_path(file), row)

    def rows(self, file: str) -> list[dict[str, Any]]:
        """All rows but a torn last one, which is what a kill leaves behind."""
        return files.read_rows(self._rows_path(file))

    # Checkpoints

    def save_checkpoint(
        self, round: int, tensors: Mapping[str, Tensors], meta: Mapping[str, JSON]
    ) -> str:
        """Commit a round, after the clients' states of that round were saved."""
        states = {
            client_id: last
            for client_id in self._clients()
            if (last := newest(self._state_rounds(client_id), round + 1)) is not None
        }
        return self._save(checkpoint_at(round), tensors, meta, states=states)

    def checkpoints(self) -> list[int]:
        return round_numbers(artifacts_in(self.root / "checkpoints"))

    def load_checkpoint(self, round: int) -> Artifact:
        return self._load(checkpoint_at(round))[0]

    def load_latest_checkpoint(self, most: int | None = None) -> tuple[int, Artifact, list[str]]:
        """The newest round (of `most`) of which the checkpoint and the clients' states it counts on
        are whole.

        With it comes a message on what is wrong with each newer one.
        """
        self.refuse_if_purged()
        problems: list[str] = []
        for round in reversed(self.checkpoints()):
            if most is not None and round > most:
                problems.append(f"checkpoint of round {round} cannot be used: the run has {most}")
                continue
            try:
                artifact, about = self._load(checkpoint_at(round))
                for client_id, state_round in about["states"].items():
                    self._load(state_at(client_id, state_round))
            except CorruptArtifact as error:
                problems.append(f"checkpoint of round {round} cannot be used: {error}")
            else:
                return round, artifact, problems
        none = f"{self.root / 'checkpoints'} holds no checkpoint that can be used"
        raise CorruptArtifact("; ".join([none, *problems]))

    def prune_checkpoints(self, keep: int, also: Collection[int] = ()) -> None:
        """Keep the newest `keep` that are checkpoints of this run, and those of the rounds in
        `also`. What only has the name of one must not take the place of one."""
        rounds = self.checkpoints()
        sound = [round for round in rounds if self._written_as(checkpoint_at(round)) is not None]
        for round in set(rounds) - set(sound[max(len(sound) - keep, 0) :]) - set(also):
            remove_artifact(self.inside(checkpoint_at(round)))

    def drop_checkpoints_after(self, round: int) -> None:
        """Of rounds that a resume trains again: they would crowd out those it makes."""
        for later in self.checkpoints():
            if later > round:
                remove_artifact(self.inside(checkpoint_at(later)))

    # Private state of the clients

    def save_client_state(
        self,
        client_id: str,
        round: int,
        tensors: Mapping[str, Tensors],
        meta: Mapping[str, JSON],
    ) -> str:
        return self._save(state_at(client_id, round), tensors, meta)

    def load_client_state(self, client_id: str, before_round: int) -> Artifact | None:
        """The newest state from before that round; None for a client that has none yet."""
        last = newest(self._state_rounds(client_id), before_round)
        return None if last is None else self._load(state_at(client_id, last))[0]

    def own_tensors(self, client_id: str, round: int) -> Tensors:
        """A client's personal tensors as they were after a round."""
        state = self.load_client_state(client_id, round + 1)
        return state.tensors.get("branches", {}) if state is not None else {}

    def prune_client_states(self, under_way: int | None = None) -> None:
        """Keep what the checkpoints count on; of a round that is under way, what goes with the
        updates that wait."""
        counted = [self._written_as(checkpoint_at(round)) for round in self.checkpoints()]
        needed = {
            (client_id, round)
            for about, _ in filter(None, counted)
            for client_id, round in about["states"].items()
        }
        waiting = self.spooled(under_way) if under_way is not None else set[str]()
        needed |= {(client_id, under_way) for client_id in waiting}
        for client_id in self._clients():
            for round in self._state_rounds(client_id):
                if (client_id, round) not in needed:
                    remove_artifact(self.inside(state_at(client_id, round)))

    # Texts of the clients, beside their states: as private, and no part of any checkpoint

    def private_file(self, client_id: str, file: str) -> Path:
        return self.inside(f"clients/{files.checked_name(client_id)}/{files.checked_name(file)}")

    def save_private_rows(
        self, client_id: str, file: str, rows: Iterable[Mapping[str, JSON]]
    ) -> None:
        """All rows at once, in place of those that were there."""
        files.write_rows_atomic(self.private_file(client_id, file), rows)

    def save_private_facts(self, client_id: str, name: str, facts: Mapping[str, JSON]) -> None:
        """Facts without tensors, as proof against damage as a state."""
        self._save(private_at(client_id, name), {}, facts)

    def load_private_facts(self, client_id: str, name: str) -> Mapping[str, Any] | None:
        """None where there are none yet."""
        at = private_at(client_id, name)
        return self._load(at)[0].meta if self.inside(at).is_dir() else None

    # The spool: updates that have arrived in a round that is not yet committed

    def save_update(
        self,
        client_id: str,
        round: int,
        tensors: Mapping[str, Tensors],
        meta: Mapping[str, JSON],
    ) -> str:
        state = self._written_as(state_at(client_id, round))
        return self._save(
            update_at(client_id, round), tensors, meta, state=state[1] if state else None
        )

    def load_update(self, client_id: str, round: int) -> Artifact:
        return self._load(update_at(client_id, round))[0]

    def spooled(self, round: int) -> set[str]:
        """The clients whose update is here and whole, with the private state that was stored before
        it; damaged ones are removed, to be redone."""
        whole: set[str] = set()
        for client_id in safe_names(artifacts_in(self.inside(f"updates/{round_folder(round)}"))):
            try:
                _, about = self._load(update_at(client_id, round))
                state = self._written_as(state_at(client_id, round))
                if "state" in about and about["state"] != (state[1] if state else None):
                    raise CorruptArtifact("its private state is not the one stored with it")
            except CorruptArtifact:
                remove_artifact(self.inside(update_at(client_id, round)))
            else:
                whole.add(client_id)
        return whole

    def check_spool(self, round: int) -> None:
        """Remove the updates of clients whose private state of that round is damaged inside."""
        for client_id in self.spooled(round):
            try:
                if round in self._state_rounds(client_id):
                    self._load(state_at(client_id, round))
            except CorruptArtifact:
                remove_artifact(self.inside(update_at(client_id, round)))

    def drop_update(self, client_id: str, round: int) -> None:
        remove_artifact(self.inside(update_at(client_id, round)))

    def drop_spool(self, upto_round: int, under_way: int | None = None) -> None:
        """With a round `under_way`, all but what waits in that one."""
        for round in round_numbers(artifacts_in(self.root / "updates")):
            if round <= upto_round or (under_way is not None and round != under_way):
                remove_artifact(self.inside(f"updates/{round_folder(round)}"))

    def _save(
        self, at: str, tensors: Mapping[str, Tensors], meta: Mapping[str, JSON], **more: JSON
    ) -> str:
        about: dict[str, JSON] = {"run": self.facts().get("run"), "at": at, "states": {}, **more}
        return save_artifact(self.inside(at), tensors, {"about": about, "meta": meta})

    def _load(self, at: str) -> tuple[Artifact, Mapping[str, Any]]:
        """An artifact written for this very place, and what it says about that: for a checkpoint,
        the client states that it counts on."""
        stored = load_artifact(self.inside(at))
        about = stored.meta.get("about", {})
        if about.get("at") != at or about.get("run") != self.facts().get("run"):
            raise CorruptArtifact(
                f"{self.root / at} was written as {about.get('at')!r} of run {about.get('run')!r}"
            )
        return Artifact(stored.tensors, stored.meta["meta"], stored.digest), about

    def _written_as(self, at: str) -> tuple[Mapping[str, Any], str] | None:
        """What an artifact says about its place, and its digest, if it looks like one of this run
        that was written there; its tensors are not read."""
        written = written_as(self.inside(at))
        about = written[0].get("about", {}) if written else {}
        ours = about.get("at") == at and about.get("run") == self.facts().get("run")
        return (about, written[1]) if written and ours else None

    def _clients(self) -> list[str]:
        return safe_names(artifacts_in(self.root / "clients"))

    def _state_rounds(self, client_id: str) -> list[int]:
        return round_numbers(artifacts_in(self.root / "clients" / files.checked_name(client_id)))

    def _rows_path(self, file: str) -> Path:
        return self.inside(files.checked_name(file))
