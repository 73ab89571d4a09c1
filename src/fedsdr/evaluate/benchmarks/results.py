"""The figures as a file that others can merge: what was scored, on what, with which settings.

It holds no answers and no items. Only figures of the same base model belong in one file, and of one
mix only those of the same adapter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.runs.files import make_private, write_json_atomic
from fedsdr.runs.lock import run_lock
from fedsdr.runs.plain import MEGABYTE, read_plain

FORMAT, RESULTS = 1, "results.json"
LARGEST = 100 * MEGABYTE
SAME = ("score", "n", "data", "settings")  # of one task by one mix, wherever it was scored
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Entry(Part):
    """One task by one mix. `adapter` is empty for the base; `score` None where code was not run;
    `interval` is the score's bootstrap 95 % interval."""

    task: str
    mix: str
    adapter: Digest | Literal[""]
    round: int | None
    n: Annotated[int, Field(ge=1)]
    score: Share | None
    interval: tuple[float, float] | None
    measures: dict[str, float]
    notes: list[str]
    settings: dict[str, str | int | float | None]
    data: Digest
    versions: dict[str, str]


class Forgot(Part):
    task: str
    mix: str
    n: int
    base: Share
    score: Share
    difference: float
    interval: tuple[float, float] | None
    words: str


class Results(Part):
    format: Literal[1]
    base: Digest
    entries: list[Entry]
    forgetting: list[Forgot]


def read_results_file(path: Path) -> Results:
    try:
        text = read_plain(path, LARGEST, RunError)
    except FileNotFoundError:
        raise RunError(f"{path} cannot be read: it does not exist") from None
    try:
        return Results.model_validate_json(text)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CorruptArtifact(
            f"{path} is no results file of format {FORMAT}: {where}: {first['msg']}; of a run, "
            "name evaluation/results.json"
        ) from None


def own_results(path: Path, base: str) -> Results:
    """A run's own file; of another base than the run's, it was put there."""
    if not path.exists():
        return no_results(base)
    results = read_results_file(path)
    if results.base != base:
        raise RunError(
            f"{path} holds figures of another base model ({results.base[:12]}… instead of "
            f"{base[:12]}…); move it away"
        )
    return results


def write_results_file(path: Path, results: Results) -> None:
    write_json_atomic(path, results.model_dump(mode="json"))


def merge_files(folder: Path, base: str, files: Sequence[Path]) -> Results:
    """Take other files into the folder's own, which need not be there yet."""
    read = [(str(file), read_results_file(file)) for file in files]
    make_private(folder)
    with run_lock(folder):
        path = folder / RESULTS
        joined = merged(own_results(path, base), read)
        write_results_file(path, joined)
    return joined


def no_results(base: str) -> Results:
    return Results(format=FORMAT, base=base, entries=[], forgetting=[])


def merged(results: Results, others: Iterable[tuple[str, Results]]) -> Results:
    """Figures of several files, each with a name for messages. A task of a mix that occurs twice
    must have come out the same."""
    for name, other in others:
        if other.base != results.base:
            raise RunError(
                f"{name} holds figures of another base model ({other.base[:12]}… instead of "
                f"{results.base[:12]}…); figures of different models are not merged"
            )
        results = _joined(results, name, other)
    return results


def replaced(old: Results, new: Results) -> Results:
    """The run's own file after more was scored: the new figures in place of the old, and nothing
    left of adapters that the mixes no longer are."""
    adapters = {e.mix: e.adapter for e in new.entries}
    stale = {e.mix for e in old.entries if adapters.get(e.mix, e.adapter) != e.adapter}
    fresh = {(e.task, e.mix) for e in new.entries}
    entries = [e for e in old.entries if (e.task, e.mix) not in fresh and e.mix not in stale]
    # What a mix forgot is against the base on the same items: new figures of either end it.
    tasks = {e.task for e in new.entries if e.mix == "base"}
    forgot = [
        f
        for f in old.forgetting
        if (f.task, f.mix) not in fresh and f.task not in tasks and f.mix not in stale
    ]
    return _sorted(old, [*entries, *new.entries], [*forgot, *new.forgetting])


def _joined(results: Results, name: str, other: Results) -> Results:
    adapters = {e.mix: e.adapter for e in results.entries}
    known = {(e.task, e.mix): e for e in results.entries}
    for entry in other.entries:
        if adapters.get(entry.mix, entry.adapter) != entry.adapter:
            raise RunError(f"{name}: its {entry.mix!r} is another adapter than the one here")
        here = known.setdefault((entry.task, entry.mix), entry)
        if any(getattr(here, key) != getattr(entry, key) for key in SAME):
            raise RunError(
                f"{name}: {entry.task} of {entry.mix!r} is there with other figures, items or "
                "settings; remove one of the two"
            )
    for figure in other.forgetting:
        if not {(figure.task, figure.mix), (figure.task, "base")} <= known.keys():
            raise RunError(
                f"{name}: it tells what {figure.mix!r} forgot on {figure.task}, of which there are "
                "no figures"
            )
    entries = {(e.task, e.mix): e for e in (*other.entries, *results.entries)}
    forgot = {(f.task, f.mix): f for f in (*other.forgetting, *results.forgetting)}
    return _sorted(results, entries.values(), forgot.values())


def _sorted(like: Results, entries: Iterable[Entry], forgot: Iterable[Forgot]) -> Results:
    return Results(
        format=like.format,
        base=like.base,
        entries=sorted(entries, key=lambda e: (e.task, e.mix)),
        forgetting=sorted(forgot, key=lambda f: (f.task, f.mix)),
    )
