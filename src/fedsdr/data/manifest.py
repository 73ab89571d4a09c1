"""A partition manifest: which row went to which client, so that others run the same split.

It holds digests and no text. It is not free of information: whoever can guess a row can check the
guess, so a manifest of private data is shared only with those who may know which rows there are.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from fedsdr.data.partition import check_distinct, is_client_id
from fedsdr.data.text import opened, parse_json, read_text
from fedsdr.errors import DataError
from fedsdr.runs.files import write_text_atomic
from fedsdr.types import ClientData, Example

FORMAT, VERSION = "fedsdr-partition", 1
CLIENT_ID_RULE = "1 to 64 of A-Z a-z 0-9 . _ - and not begin with a dot"
PARTS = ("train", "validation", "test")
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Source:
    """A file that rows came from: its name without folders, and the sha256 of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ManifestInfo:
    """How the partition was made; `spec` is whatever its maker needs to make it again."""

    spec: Mapping[str, Scalar]
    seed: int
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientRows:
    """The digests of one client's rows, in order."""

    client_id: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    info: ManifestInfo
    clients: tuple[ClientRows, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """The clients of a manifest, and how many of the given rows it does not mention."""

    clients: tuple[ClientData, ...]
    unused: int


def row_digest(example: Example) -> str:
    """sha256 of what is trained on: system, history, prompt and response; not of id or labels."""
    history = [[message.role, message.content] for message in example.history]
    content = [example.system, history, example.prompt, example.response]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def source_of(path: Path) -> Source:
    with opened(path) as file:
        return Source(path.name, hashlib.file_digest(cast("Any", file), "sha256").hexdigest())


def manifest_text(clients: Iterable[ClientData], info: ManifestInfo) -> str:
    clients = sorted(clients, key=lambda client: client.client_id)
    for client in clients:
        if not is_client_id(client.client_id):
            raise DataError(f"client id {client.client_id!r}: must be {CLIENT_ID_RULE}")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "made": asdict(info),
        "clients": [
            {
                "client_id": client.client_id,
                "train": [row_digest(example) for example in client.train],
                "validation": [row_digest(example) for example in client.validation],
                "test": [row_digest(example) for example in client.test],
            }
            for client in clients
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_manifest(path: Path, clients: Iterable[ClientData], info: ManifestInfo) -> None:
    write_text_atomic(path, manifest_text(clients, info))


def read_manifest(path: Path) -> Manifest:
    at = _Place(path)
    top = at.object(parse_json(read_text(path), path), "the manifest")
    if top.get("format") != FORMAT:
        raise DataError(f"{path}: is no partition manifest (field 'format' is not {FORMAT!r})")
    if top.get("version") != VERSION:
        raise DataError(f"{path}: field 'version' is not {VERSION}, the only one this fedsdr reads")
    made = at.object(top.get("made"), "made")
    seed, spec = made.get("seed"), at.object(made.get("spec"), "made.spec")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise at.error("made.seed", "must be a whole number")
    for name, value in spec.items():
        if not isinstance(value, Scalar):
            raise at.error(f"made.spec.{name}", "must be text, a number, true, false or null")
    sources = [
        at.source(value, f"made.sources[{index}]")
        for index, value in enumerate(at.list(made.get("sources"), "made.sources"))
    ]
    clients = tuple(
        at.client(value, f"clients[{index}]")
        for index, value in enumerate(at.list(top.get("clients"), "clients"))
    )
    ids = [client.client_id for client in clients]
    if len(set(ids)) < len(ids):
        raise at.error("clients", "a client id occurs twice")
    check_distinct(ids)
    return Manifest(ManifestInfo(cast("dict[str, Scalar]", spec), seed, tuple(sources)), clients)


def apply_manifest(manifest: Manifest, examples: Iterable[Example]) -> Applied:
    """The same split from the rows; rows of equal content are dealt in the order they come in."""
    pool: dict[str, deque[Example]] = {}
    for example in examples:
        pool.setdefault(row_digest(example), deque()).append(example)
    missing: list[str] = []

    def take(digests: Iterable[str]) -> tuple[Example, ...]:
        taken: list[Example] = []
        for digest in digests:
            if pool.get(digest):
                taken.append(pool[digest].popleft())
            else:
                missing.append(digest)
        return tuple(taken)

    clients = tuple(
        ClientData(rows.client_id, take(rows.train), take(rows.validation), take(rows.test))
        for rows in manifest.clients
    )
    unused = sum(len(rest) for rest in pool.values())
    if missing:
        first = ", ".join(digest[:12] for digest in missing[:3])
        more = ", …" if len(missing) > 3 else ""
        raise DataError(
            f"partition manifest: {len(missing)} of its rows are missing or altered (digests "
            f"{first}{more}), and {unused} of the rows given are not in it; "
            "use the files it was made from"
        )
    return Applied(clients, unused)


@dataclass(frozen=True, slots=True)
class _Place:
    """Checks of a manifest's fields, with the file's name in every message."""

    path: Path

    def error(self, where: str, problem: str) -> DataError:
        return DataError(f"{self.path}, field {where!r}: {problem}")

    def object(self, value: object, where: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self.error(where, "must be an object")
        return cast("dict[str, object]", value)

    def list(self, value: object, where: str) -> list[object]:
        if not isinstance(value, list):
            raise self.error(where, "must be a list")
        return cast("list[object]", value)

    def digest(self, value: object, where: str) -> str:
        if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
            raise self.error(where, "must be a sha256 digest of 64 hex digits")
        return value

    def source(self, value: object, where: str) -> Source:
        fields = self.object(value, where)
        name = fields.get("name")
        if not isinstance(name, str):
            raise self.error(f"{where}.name", "must be text")
        return Source(name, self.digest(fields.get("sha256"), f"{where}.sha256"))

    def client(self, value: object, where: str) -> ClientRows:
        fields = self.object(value, where)
        name = fields.get("client_id")
        if not isinstance(name, str) or not is_client_id(name):
            raise self.error(f"{where}.client_id", f"must be {CLIENT_ID_RULE}")
        return ClientRows(name, *(self._digests(fields, where, part) for part in PARTS))

    def _digests(self, fields: dict[str, object], where: str, part: str) -> tuple[str, ...]:
        place = f"{where}.{part}"
        values = enumerate(self.list(fields.get(part), place))
        return tuple(self.digest(value, f"{place}[{index}]") for index, value in values)
