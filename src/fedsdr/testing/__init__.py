"""The same checks for every algorithm, built-in or anybody's.

    from fedsdr.testing import check_algorithm
    print(check_algorithm("fedprox"))
    print(check_algorithm(my_factory, {"mu": 0.1}, reduces_to_fedavg={"mu": 0.0}))

They run on a tiny Llama in fp64, made on the spot, and five toy clients; a few seconds on one core.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsdr.algorithms.registry import Factory, make_algorithm
from fedsdr.errors import RecipeError, RoundFailed
from fedsdr.parts.algorithm import Algorithm
from fedsdr.testing import checks
from fedsdr.testing import checks as on_the_wire
from fedsdr.testing.case import PRIVACY, Case
from fedsdr.testing.report import REDUCTIONS, CheckFailed, Finding, NotApplicable, Report

__all__ = ["CheckFailed", "Finding", "Report", "check_algorithm"]


def check_algorithm(
    algorithm: str | Factory | Algorithm,
    options: Mapping[str, Any] | None = None,
    reduces_to_fedavg: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
) -> Report:
    """Run every check; the first that does not hold raises `CheckFailed`, which names the check,
    the tensor and by how much.

    `algorithm`: a registered name, a factory, or an Algorithm (of which every run gets a copy, as a
    new process would). `options` are its factory's; `reduces_to_fedavg`: those under which it must
    be FedAvg. The runs are kept in `folder` where one is given, which has to be new or empty.
    """
    chosen = dict(options or {})
    make = _maker(algorithm, chosen)
    known = REDUCTIONS.get(algorithm) if isinstance(algorithm, str) and not chosen else None
    limit = known if reduces_to_fedavg is None else reduces_to_fedavg
    special = None if limit is None else _maker(algorithm, chosen | dict(limit))
    listed = {
        checks.STACKED: checks.stacked,
        checks.ORDER: checks.order,
        checks.RESUME: checks.resume,
        PRIVACY: on_the_wire.privacy,
        on_the_wire.TRAFFIC: on_the_wire.traffic,
        checks.ALONE: checks.alone,
        checks.REDUCES: checks.reduces(special),
        checks.BOOSTED: checks.boost,
        checks.RANKS: checks.ranks,
    }
    with tempfile.TemporaryDirectory(dir=_in_memory()) as temporary:
        case = Case(make, Path(folder or temporary))
        return Report(make().name, tuple(_finding(n, check, case) for n, check in listed.items()))


def _in_memory() -> str | None:
    """Where waiting for the disk, most of a tiny run's time, costs nothing."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _finding(name: str, check: checks.Check, case: Case) -> Finding:
    try:
        return Finding(name, check(case))
    except NotApplicable as why:
        return Finding(name, not_applicable=str(why))
    except RoundFailed as error:
        raise CheckFailed(name, str(error)) from error


def _maker(
    algorithm: str | Factory | Algorithm, options: Mapping[str, Any]
) -> Callable[[], Algorithm]:
    if isinstance(algorithm, str):
        return lambda: make_algorithm(algorithm, options)
    if not isinstance(algorithm, Algorithm):
        return lambda: algorithm(**options)
    if options:
        raise RecipeError(
            f"{algorithm.name} is an Algorithm already: give check_algorithm its factory or its "
            f"name, so that it can set {', '.join(options)}"
        )
    pristine = copy.deepcopy(algorithm)
    return lambda: copy.deepcopy(pristine)
