"""fedsdr: federated fine-tuning of language models on data that look nothing alike.

    import fedsdr
    recipe = fedsdr.parse_recipe("algorithm: {name: fedsdr}")
    results = fedsdr.train(recipe, "runs/first")

Names are loaded when first used, so that `import fedsdr` alone (and `fedsdr --help`) stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedsdr.algorithms.fedsd import boosted
    from fedsdr.algorithms.registry import make_algorithm
    from fedsdr.config import Recipe, build_recipe, dump_recipe, parse_recipe, read_recipe
    from fedsdr.data.formats import read_table
    from fedsdr.data.partition import PartitionSpec, partition
    from fedsdr.errors import FedsdrError
    from fedsdr.evaluate.comparison import compare
    from fedsdr.experiment import Watch, assemble, distill, evaluate, resume, train
    from fedsdr.parts.algorithm import Algorithm, Stage, Term
    from fedsdr.parts.views import Mixed, Raw, Rewritten
    from fedsdr.plan import make_plan
    from fedsdr.results import read_results
    from fedsdr.types import ClientData, Example

_HOMES = {
    "algorithms.fedsd": ("boosted",),
    "algorithms.registry": ("make_algorithm",),
    "config": ("Recipe", "build_recipe", "dump_recipe", "parse_recipe", "read_recipe"),
    "data.formats": ("read_table",),
    "data.partition": ("PartitionSpec", "partition"),
    "errors": ("FedsdrError",),
    "evaluate.comparison": ("compare",),
    "experiment": ("Watch", "assemble", "distill", "evaluate", "resume", "train"),
    "parts.algorithm": ("Algorithm", "Stage", "Term"),
    "parts.views": ("Mixed", "Raw", "Rewritten"),
    "plan": ("make_plan",),
    "results": ("read_results",),
    "types": ("ClientData", "Example"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Algorithm",
    "ClientData",
    "Example",
    "FedsdrError",
    "Mixed",
    "PartitionSpec",
    "Raw",
    "Recipe",
    "Rewritten",
    "Stage",
    "Term",
    "Watch",
    "assemble",
    "boosted",
    "build_recipe",
    "compare",
    "distill",
    "dump_recipe",
    "evaluate",
    "read_results",
    "make_algorithm",
    "make_plan",
    "parse_recipe",
    "partition",
    "read_recipe",
    "read_table",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fedsdr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedsdr.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
