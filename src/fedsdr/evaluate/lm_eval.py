"""lm-eval over a base and what it wears: its own tasks, scored through its Python API.

Stricter than there: nothing is scored before the adapter was seen to change the logits, nothing is
fetched from a hub, and no task may run what the model wrote. Importing this module needs the extra
`fedsdr[lm-eval]`; `fedsdr.jobs.lm_eval` says so where it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import torch
from jinja2 import TemplateError
from lm_eval.tasks import TaskManager

from fedsdr.errors import AdapterError, TaskError, nearest
from fedsdr.evaluate.lm_eval_model import WornLM
from fedsdr.evaluate.lm_eval_process import FEWSHOT_SEED, no_hub, seeded
from fedsdr.model.base import BaseModel

PROBE = "Question: 12 + 30 = ?\nAnswer:"

Scores = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to score; `include` is a folder of own task files beside lm-eval's."""

    tasks: Sequence[str]
    include: Path | None = None
    limit: int | None = None
    shots: int | None = None  # as each task has it where not given
    chat: bool = False
    batch: int = 16


def score_tasks(base: BaseModel, asked: Asked, index: Tasks | None = None) -> Scores:
    """Task -> n, version, shots and scores, by the base with whatever it wears. An `index` made
    once (`Tasks.for_names`) serves any number of models."""
    index = index or Tasks.for_names(asked.tasks, asked.include)
    with no_hub(), seeded():
        try:
            loaded = index.load(list(asked.tasks))
            for task in loaded["tasks"].values():
                _set_shots(task, asked.shots)
            output: Any = lm_eval.evaluate(
                WornLM(base, asked.batch, asked.chat),
                loaded,
                limit=asked.limit,
                log_samples=False,
                apply_chat_template=asked.chat,
                fewshot_as_multiturn=asked.chat,
            )
        except TemplateError as error:
            # jinja2 names the column that is missing; it never quotes a row.
            raise TaskError(f"a template of {', '.join(asked.tasks)} fails: {error}") from None
    return {name: _figures(output, name) for name in output["results"]}


def logit_change(base: BaseModel, worn: AbstractContextManager[None]) -> float:
    """The largest change of a prompt's next-token logits through what is worn; none at all means
    that the adapter was not loaded (or never trained), and its scores would be the base's."""
    prompt = base.encode(PROBE) or [base.eos]
    ids = torch.tensor([prompt], device=base.net.device)
    with torch.no_grad():
        bare = base.logits(ids)
        with worn:
            change = float((base.logits(ids) - bare).abs().max())
    if not 0.0 < change < float("inf"):
        what = "changes no logit" if change == 0.0 else "makes logits that are no finite numbers"
        raise AdapterError(
            f"the adapter {what}: nothing was scored. An untrained adapter (round 0) and one that "
            "is not loaded look like this; score the mix `base` for the base's own figures"
        )
    return change


class Tasks(TaskManager):
    """lm-eval's task loader; what a user can do wrong with it is a TaskError."""

    @classmethod
    def for_names(cls, names: Sequence[str], include: Path | None) -> Tasks:
        """With lm-eval's own 14,000 tasks only where they are needed: indexing takes seconds."""
        if not names:
            raise TaskError("no task is named")
        if include is not None:
            if not include.is_dir():
                raise TaskError(f"{include} is no folder; it should hold the tasks' YAML files")
            included = cls(include_path=include, include_defaults=False)
            if set(names) <= set(included.all_subtasks):
                return included
        every = cls(include_path=include)
        for name in names:
            if name not in every.task_index:
                where = f"lm-eval and {include}" if include else "lm-eval (own tasks: include_path)"
                alike = [known for known in every.task_index if known[:1] == name[:1]]
                raise TaskError(f"no task {name!r} in {where}.{nearest(name, alike)}")
        return every

    def load(self, task_list: Any) -> Any:
        asked = ", ".join(task_list)
        try:
            loaded = super().load(task_list)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            # Only the kind of error: a reader of data files may quote a row.
            raise TaskError(
                f"{asked}: cannot be loaded ({type(error).__name__}): its YAML is wrong, its data "
                "are not on this machine, or it needs another package. No hub is asked: name local "
                "files in the task's YAML (dataset_path: json, dataset_kwargs: {data_files: ...})"
            ) from error
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise TaskError(
                    f"{name}: runs code that the model wrote, outside any sandbox; refused. "
                    "fedsdr's own humaneval runs it in one"
                )
            if getattr(task, "MULTIMODAL", False):
                raise TaskError(f"{name}: shows images, which this model cannot read")
        return loaded


def _set_shots(task: Any, shots: int | None) -> None:
    """As lm-eval's command line does it: a task that fixes itself at no shots keeps none."""
    fixed = task.get_config("num_fewshot")
    if shots is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _figures(output: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Figures of one task or group, under lm-eval's own names ("acc", "acc_norm,flexible"); what
    is no number (a standard error that does not exist) is left out."""
    scores = {
        key.removesuffix(",none"): value
        for key, value in output["results"][name].items()
        if "," in key and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        "n": output["n-samples"].get(name, {}).get("effective"),
        "version": output["versions"].get(name),
        "shots": output["n-shot"].get(name),
        "scores": {key: float(value) for key, value in scores.items()},
    }
