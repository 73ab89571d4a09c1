"""Finished runs as the comparison takes them: each directory's results.json."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedsdr.errors import CorruptArtifact, RunError
from fedsdr.evaluate.comparison import DEFAULT_MEASURES, RunResult
from fedsdr.runs.identity import find, read_facts

RESULTS, SEAL = "results.json", "results_sha256"
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "method": str,
    "seed": int,
    "world": str,
    "lr": (int, float),
    "chosen_rounds": dict,
    "scores": dict,
}


def read_results(directories: Iterable[Path]) -> list[RunResult]:
    """The final scores of finished runs, for `compare`.

    Args:
        directories: Folders of finished runs.
    """
    return [read_result(directory) for directory in directories]


def read_result(directory: Path) -> RunResult:
    """One run's final scores; a run that is not finished has none."""
    values = load_results(directory)
    return RunResult(
        path=str(directory),
        method=values["method"],
        seed=values["seed"],
        world=values["world"],
        lr=float(values["lr"]),
        scores=values["scores"],
        base=str(read_facts(directory).get("base_digest", "")),
    )


def load_results(directory: Path) -> Mapping[str, Any]:
    """What results.json holds, checked."""
    find(directory)
    path = directory / RESULTS
    try:
        raw = path.read_bytes()
        parsed: Any = json.loads(raw)
    except FileNotFoundError:
        raise RunError(
            f"{directory} has no {RESULTS}: the run is not finished; "
            f"go on with `fedsdr resume {directory}`"
        ) from None
    except OSError as error:
        raise CorruptArtifact(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    values = _checked(path, parsed)
    _check_scores(path, values["scores"])
    if read_facts(directory).get(SEAL, sealed(raw)) != sealed(raw):
        raise RunError(
            f"{path} is not what this run wrote: it is another run's, or was changed; "
            f"`fedsdr resume {directory}` writes its own anew"
        )
    return values


def sealed(raw: bytes) -> str:
    """What run.json keeps of results.json, so that another run's cannot pass for it."""
    return hashlib.sha256(raw).hexdigest()


def default_measures(results: Sequence[RunResult]) -> tuple[str, ...]:
    """Atlas's four, or the held-out loss; where no run has any of them, all that there are."""
    there = dict.fromkeys(m for run in results for scores in run.scores.values() for m in scores)
    return tuple(m for m in (*DEFAULT_MEASURES, "loss") if m in there) or tuple(there)


def _checked(path: Path, parsed: Any) -> Mapping[str, Any]:
    if not isinstance(parsed, dict):
        raise _damaged(path, "it is not a JSON object")
    values = cast("dict[str, Any]", parsed)
    for key, kind in KINDS.items():
        if not isinstance(values.get(key), kind) or isinstance(values[key], bool):
            raise _damaged(path, f"{key!r} is missing or of the wrong type")
    return values


def _check_scores(path: Path, scores: Mapping[str, Any]) -> None:
    for mix, measures in scores.items():
        if not isinstance(measures, dict):
            raise _damaged(path, f"'scores.{mix}' is not an object")
        for measure, value in cast("dict[str, Any]", measures).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise _damaged(path, f"'scores.{mix}.{measure}' is not a number")


def _damaged(path: Path, why: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path} is damaged: {why}; `fedsdr resume {path.parent}` writes it anew"
    )
