"""From a recipe's `data` section to clients and the scorer that fits them.

Rows that do not fit into the model: refused by name (plan/rows.py), or left out and counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsdr.atlas.federation import AtlasFederation, AtlasSpec, build_federation, preset
from fedsdr.atlas.scores import AtlasScorer
from fedsdr.data.formats import Table, read_table
from fedsdr.data.manifest import (
    ManifestInfo,
    apply_manifest,
    manifest_text,
    read_manifest,
    row_digest,
    source_of,
)
from fedsdr.data.partition import PartitionSpec, partition
from fedsdr.data.render import render, render_prompt
from fedsdr.distill import prompts
from fedsdr.distill.engine import no_room
from fedsdr.errors import DataError, RecipeError
from fedsdr.evaluate.scoring import HeldOutLoss, Scorer
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Atlas, Data, Recipe, RewritingChoice
from fedsdr.runs.files import write_text_atomic
from fedsdr.runs.plain import user_path
from fedsdr.types import ClientData, Example


@dataclass(frozen=True, slots=True)
class Federation:
    """All clients of a run, and how models are scored on them. `world` identifies the rows and who
    has which."""

    clients: tuple[ClientData, ...]
    scorer: Scorer
    info: ManifestInfo
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # how each file was read, where there are several
    atlas: AtlasFederation | None = None

    @property
    def world(self) -> str:
        sha = hashlib.sha256()
        for client in self.clients:
            sha.update(f"client {client.client_id}\n".encode())
            for part in (client.train, client.validation, client.test):
                sha.update("".join(map(row_digest, part)).encode() + b"\n")
        return sha.hexdigest()

    def manifest(self) -> str:
        return manifest_text(self.clients, self.info)

    def write_manifest(self, path: Path) -> None:
        write_text_atomic(path, self.manifest())


def hold_back(federation: Federation, count: int) -> tuple[Federation, tuple[ClientData, ...]]:
    """The last `count` clients never train."""
    clients = federation.clients
    if count < 0:
        raise RecipeError(f"data.unseen: {count} is no number of clients")
    if count >= len(clients):
        raise RecipeError(f"data.unseen: {count} of {len(clients)} clients leaves none to train")
    trained = len(clients) - count
    return replace(federation, clients=clients[:trained]), clients[trained:]


def load_federation(recipe: Recipe) -> Federation:
    """The clients that the recipe names, the same for the same recipe and seed."""
    data = recipe.data
    if data.atlas is not None:
        return _atlas(data.atlas, data.manifest, recipe.seed)
    return _from_files(data, recipe.seed)


def pooled(federation: Federation) -> tuple[ClientData, ...]:
    """All clients' rows in one place, for the centralised reference."""
    parts = federation.clients
    train = tuple(e for c in parts for e in c.train)
    validation = tuple(e for c in parts for e in c.validation)
    return (ClientData("all", train, validation, tuple(e for c in parts for e in c.test)),)


def _atlas(given: Atlas, manifest: str | None, seed: int) -> Federation:
    chosen = given.model_dump(include=set(AtlasSpec.__dataclass_fields__), exclude_none=True)
    spec = replace(preset(given.preset), **chosen)
    world_seed = given.world_seed if given.world_seed is not None else seed
    built = build_federation(spec, world_seed)
    clients, notes = built.clients, [f"the embedded world, preset {given.preset}"]
    if manifest is not None:  # the same world, dealt out as another run dealt it
        every = [e for c in clients for part in (c.train, c.validation, c.test) for e in part]
        clients = apply_manifest(read_manifest(user_path(manifest, DataError)), every).clients
        notes.append(f"split as in {manifest}")
    described = {"atlas": given.preset, **_scalars(spec)}
    return Federation(
        clients,
        AtlasScorer(built, given.public),
        ManifestInfo(described, world_seed),
        tuple(notes),
        atlas=built,
    )


def _from_files(data: Data, seed: int) -> Federation:
    shape = None if data.shape == "auto" else data.shape
    columns = dict(data.columns) or None
    tests: Mapping[str, Table] | None = None
    if data.files is not None:
        tables: Table | dict[str, Table] = {
            name: read_table(user_path(path, DataError), shape, columns)
            for name, path in data.files.items()
        }
        if data.test_files:
            strangers = set(data.test_files) - set(data.files)
            if strangers:
                raise DataError(
                    f"data.test_files names client {min(strangers)!r}, data.files does not"
                )
            tests = {
                n: read_table(user_path(p, DataError), shape, columns)
                for n, p in data.test_files.items()
            }
        spec = PartitionSpec(method="files", validation=data.validation, test=data.test)
        shown = list(tables.values())
    else:
        tables = read_table(user_path(data.file or "", DataError), shape, columns)
        chosen = data.partition
        spec = PartitionSpec(
            method=chosen.method if chosen else "iid",
            clients=(chosen.clients if chosen and chosen.method != "column" else None)
            or (8 if not chosen else None),
            column=(chosen.column or "") if chosen else "",
            alpha=chosen.alpha if chosen else 0.5,
            validation=data.validation,
            test=data.test,
        )
        shown = [tables]
    files = tuple(
        f"{t.path}: {len(t.examples)} rows, read as {t.shape} ({_mapping(t.fields)})" for t in shown
    )
    notes = list(files) if len(files) == 1 else [_in_a_line(shown)]
    if data.manifest is not None:
        every = [e for t in [*shown, *(tests or {}).values()] for e in t.examples]
        applied = apply_manifest(read_manifest(user_path(data.manifest, DataError)), every)
        clients = applied.clients
        notes.append(f"split as in {data.manifest}; {applied.unused} rows are not in it")
    else:
        clients = partition(tables, spec, seed, tests)
    sources = tuple(source_of(t.path) for t in shown)
    info = ManifestInfo(_scalars(spec), seed, sources)
    return Federation(clients, HeldOutLoss(), info, tuple(notes), files if len(files) > 1 else ())


def _in_a_line(tables: Sequence[Table]) -> str:
    """Of several files; `fedsdr plan` tells of each."""
    rows = sum(len(table.examples) for table in tables)
    shapes = Counter(table.shape for table in tables)
    if len(shapes) == 1:
        return f"{len(tables)} files, {rows:,} rows, read as {tables[0].shape}"
    read = ", ".join(f"{n} as {shape}" for shape, n in shapes.items())
    return f"{len(tables)} files, {rows:,} rows, read {read}"


def _scalars(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


def _mapping(fields: Mapping[str, str]) -> str:
    return ", ".join(f"{ours} from {theirs!r}" for ours, theirs in fields.items())


NAMED = 8  # clients in one message
UNCUT = 1 << 40
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many rows, by client and part; those that lost none are not in it."""

    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    notes: tuple[str, ...] = ()


def leave_out(
    recipe: Recipe, base: BaseModel, clients: Sequence[ClientData], limit: int
) -> tuple[tuple[ClientData, ...], LeftOut]:
    """The clients without the rows whose prompt fills `limit`, so that nothing of the response
    would be left, and without the training rows that leave no room for a rewrite: under whatever
    algorithm, for methods that are compared have to have the same rows."""
    kept_clients, rows, why = list[ClientData](), dict[str, Mapping[str, int]](), Counter[str]()
    for client in clients:
        kept = dict[str, tuple[Example, ...]]()
        for part in PARTS:
            examples: tuple[Example, ...] = getattr(client, part)
            wrong = [_wrong(recipe, base, e, limit, part == "train") for e in examples]
            why.update(filter(None, wrong))
            kept[part] = tuple(e for e, w in zip(examples, wrong, strict=True) if not w)
        lost = {part: len(getattr(client, part)) - len(kept[part]) for part in PARTS}
        if lost["train"] == len(client.train) > 0:
            raise DataError(
                f"client {client.client_id!r}: data.overlong: drop would leave none of its "
                f"{lost['train']} training rows; raise model.max_length (now {limit}), lower "
                "rewriting.max_new_tokens, or leave the client out"
            )
        if any(lost.values()):
            rows[client.client_id] = {part: count for part, count in lost.items() if count}
        kept_clients.append(replace(client, **kept))
    return tuple(kept_clients), LeftOut(rows, _told(rows, why))


def room_to_rewrite(base: BaseModel, choice: RewritingChoice, example: Example) -> str:
    """Why an example leaves no room for its rewrite; nothing if it does."""
    if choice.engine is not None:
        return ""  # the server's model has positions of its own
    asked = prompts.render(prompts.choose_template(example, choice.template), example)
    return no_room(base, len(render_prompt(base, asked)), choice.max_new_tokens)


def _wrong(recipe: Recipe, base: BaseModel, example: Example, limit: int, trained: bool) -> str:
    try:
        if render(base, example, UNCUT).prompt >= limit:
            return f"prompts that alone fill model.max_length ({limit} tokens)"
        if trained and room_to_rewrite(base, recipe.rewriting, example):
            return f"training rows that leave no room for a rewrite ({base.max_length} positions)"
    except DataError:
        pass  # of another kind: told with the other rows that cannot be used
    return ""


def _told(rows: Mapping[str, Mapping[str, int]], why: Mapping[str, int]) -> tuple[str, ...]:
    if not rows:
        return ()
    places = [f"{client} {sum(lost.values())}" for client, lost in rows.items()]
    rest = f" and {len(places) - NAMED} more clients" if len(places) > NAMED else ""
    reasons = "; ".join(f"{wrong}: {count}" for wrong, count in why.items())
    return (
        f"data.overlong: drop left out {sum(why.values())} rows "
        f"({', '.join(places[:NAMED])}{rest}): {reasons}",
    )
