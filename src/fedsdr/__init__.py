"""fedsdr: federated fine-tuning of language models on data that look nothing alike.

    import fedsdr
    recipe = fedsdr.parse_recipe("algorithm: {name: fedsdr}")
    results = fedsdr.run(recipe, "runs/first")

Names are loaded when first used, so that `import fedsdr` alone (and `fedsdr --help`) stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedsdr.algorithms.fedsd import boosted
    from fedsdr.algorithms.registry import make_algorithm
    from fedsdr.assembly import Watch, assemble
    from fedsdr.config import Recipe, build_recipe, dump_recipe, parse_recipe, read_recipe
    from fedsdr.data.formats import read_table
    from fedsdr.data.partition import PartitionSpec, partition
    from fedsdr.errors import FedsdrError
    from fedsdr.evaluate.comparison import compare
    from fedsdr.evaluation import evaluate as score
    from fedsdr.evaluation import evaluate_tasks, merge_evaluations
    from fedsdr.experiment import distill as rewrite
    from fedsdr.experiment import resume
    from fedsdr.experiment import train as run
    from fedsdr.export.chat import open_chat
    from fedsdr.export.folder import export_adapter
    from fedsdr.export.merge import merge
    from fedsdr.lm_eval_run import evaluate_lm_eval
    from fedsdr.parts.algorithm import Algorithm, Stage, Term
    from fedsdr.parts.views import Mixed, Raw, Rewritten
    from fedsdr.plan import make_plan, plan_on_paper
    from fedsdr.results import read_results
    from fedsdr.standalone import distill_file as rewrite_file
    from fedsdr.types import ClientData, Example

# Name -> where it lives. `run`, `score` and `rewrite` do what the verbs train, evaluate and distill
# do; they are called otherwise because fedsdr.train, .evaluate and .distill are rooms.
_HOMES = {
    "Algorithm": "parts.algorithm:Algorithm",
    "ClientData": "types:ClientData",
    "Example": "types:Example",
    "FedsdrError": "errors:FedsdrError",
    "Mixed": "parts.views:Mixed",
    "PartitionSpec": "data.partition:PartitionSpec",
    "Raw": "parts.views:Raw",
    "Recipe": "config:Recipe",
    "Rewritten": "parts.views:Rewritten",
    "Stage": "parts.algorithm:Stage",
    "Term": "parts.algorithm:Term",
    "Watch": "assembly:Watch",
    "assemble": "assembly:assemble",
    "boosted": "algorithms.fedsd:boosted",
    "build_recipe": "config:build_recipe",
    "compare": "evaluate.comparison:compare",
    "dump_recipe": "config:dump_recipe",
    "evaluate_lm_eval": "lm_eval_run:evaluate_lm_eval",
    "evaluate_tasks": "evaluation:evaluate_tasks",
    "export_adapter": "export.folder:export_adapter",
    "make_algorithm": "algorithms.registry:make_algorithm",
    "make_plan": "plan:make_plan",
    "merge": "export.merge:merge",
    "merge_evaluations": "evaluation:merge_evaluations",
    "open_chat": "export.chat:open_chat",
    "parse_recipe": "config:parse_recipe",
    "partition": "data.partition:partition",
    "plan_on_paper": "plan:plan_on_paper",
    "read_recipe": "config:read_recipe",
    "read_results": "results:read_results",
    "read_table": "data.formats:read_table",
    "resume": "experiment:resume",
    "rewrite": "experiment:distill",
    "rewrite_file": "standalone:distill_file",
    "run": "experiment:train",
    "score": "evaluation:evaluate",
}

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
    "dump_recipe",
    "evaluate_lm_eval",
    "evaluate_tasks",
    "export_adapter",
    "make_algorithm",
    "make_plan",
    "merge",
    "merge_evaluations",
    "open_chat",
    "parse_recipe",
    "partition",
    "plan_on_paper",
    "read_recipe",
    "read_results",
    "read_table",
    "resume",
    "rewrite",
    "rewrite_file",
    "run",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsdr' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"fedsdr.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
