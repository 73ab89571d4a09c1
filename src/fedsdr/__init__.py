"""fedsdr: federated fine-tuning of language models on data that look nothing alike.

    import fedsdr
    recipe = fedsdr.parse_recipe("algorithm: {name: fedsdr}")
    results = fedsdr.run(recipe, "runs/first")

Names are loaded when first used, so that `import fedsdr` alone (and `fedsdr --help`) stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fedsdr.algorithms.fedsd import boosted
    from fedsdr.algorithms.registry import make_algorithm
    from fedsdr.coordinator.observer import Watch
    from fedsdr.data.formats import read_table
    from fedsdr.data.partition import PartitionSpec, partition
    from fedsdr.errors import FedsdrError
    from fedsdr.evaluate.comparison import compare
    from fedsdr.evaluate.finished import read_results
    from fedsdr.jobs.assembly import assemble
    from fedsdr.jobs.distill import distill as rewrite
    from fedsdr.jobs.distill import distill_file as rewrite_file
    from fedsdr.jobs.evaluate import evaluate as score
    from fedsdr.jobs.evaluate import evaluate_tasks, merge_evaluations
    from fedsdr.jobs.export.chat import open_chat
    from fedsdr.jobs.export.folder import export_adapter
    from fedsdr.jobs.export.merge import merge
    from fedsdr.jobs.lm_eval import evaluate_lm_eval
    from fedsdr.jobs.plan import make_plan, plan_on_paper
    from fedsdr.jobs.train import resume
    from fedsdr.jobs.train import train as run
    from fedsdr.parts.algorithm import Algorithm, Stage, Term
    from fedsdr.parts.views import Mixed, Raw, Rewritten
    from fedsdr.recipe.settings import Recipe, build_recipe, dump_recipe, parse_recipe, read_recipe
    from fedsdr.types import ClientData, Example

# Name -> where it lives. `run`, `score` and `rewrite` do what the verbs train, evaluate and distill
# do; they are called otherwise because fedsdr.evaluate and fedsdr.distill are rooms.
_HOMES = {
    "Algorithm": "parts.algorithm:Algorithm",
    "ClientData": "types:ClientData",
    "Example": "types:Example",
    "FedsdrError": "errors:FedsdrError",
    "Mixed": "parts.views:Mixed",
    "PartitionSpec": "data.partition:PartitionSpec",
    "Raw": "parts.views:Raw",
    "Recipe": "recipe.settings:Recipe",
    "Rewritten": "parts.views:Rewritten",
    "Stage": "parts.algorithm:Stage",
    "Term": "parts.algorithm:Term",
    "Watch": "coordinator.observer:Watch",
    "assemble": "jobs.assembly:assemble",
    "boosted": "algorithms.fedsd:boosted",
    "build_recipe": "recipe.settings:build_recipe",
    "compare": "evaluate.comparison:compare",
    "dump_recipe": "recipe.settings:dump_recipe",
    "evaluate_lm_eval": "jobs.lm_eval:evaluate_lm_eval",
    "evaluate_tasks": "jobs.evaluate:evaluate_tasks",
    "export_adapter": "jobs.export.folder:export_adapter",
    "make_algorithm": "algorithms.registry:make_algorithm",
    "make_plan": "jobs.plan:make_plan",
    "merge": "jobs.export.merge:merge",
    "merge_evaluations": "jobs.evaluate:merge_evaluations",
    "open_chat": "jobs.export.chat:open_chat",
    "parse_recipe": "recipe.settings:parse_recipe",
    "partition": "data.partition:partition",
    "plan_on_paper": "jobs.plan:plan_on_paper",
    "read_recipe": "recipe.settings:read_recipe",
    "read_results": "evaluate.finished:read_results",
    "read_table": "data.formats:read_table",
    "resume": "jobs.train:resume",
    "rewrite": "jobs.distill:distill",
    "rewrite_file": "jobs.distill:distill_file",
    "run": "jobs.train:train",
    "score": "jobs.evaluate:evaluate",
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
