"""The import rules of docs/architecture.md, read off the source: arrows point downward only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import fedsdr

SRC = Path(__file__).parents[2] / "src" / "fedsdr"
# A room knows its own level and those below it. Where this differs from DESIGN.md's list, and why:
# docs/decisions/0015.
LEVELS = (
    {"cli"},
    {"report"},
    {"testing"},
    {"jobs"},
    {"coordinator"},
    {"cohort"},
    {"site"},
    {"atlas"},
    {"evaluate"},
    {"training"},
    {"algorithms"},
    {"distill"},
    {"model"},
    {"data", "recipe"},
    {"parts"},
    {"runs", "sandbox", "text"},
    {"types", "tensors", "errors"},
)
# What stands below a room and is out of its reach all the same: a run's server asks, and never
# sees what a client has.
NEVER = {"coordinator": {"site", "cohort", "training"}}
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
ONLY_IN = {
    "transformers": ("model/",),
    "tokenizers": ("model/",),
    "peft": ("model/",),
    "flwr": ("cohort/flower.py", "site/network.py"),
    **dict.fromkeys(("lm_eval", "datasets", "evaluate"), ("evaluate/lm_eval",)),
    **dict.fromkeys(("tensorboard", "torch.utils.tensorboard", "wandb"), ("jobs/trackers.py",)),
    **dict.fromkeys(("matplotlib", "plotly", "altair", "bokeh", "seaborn"), ("report/",)),
    **dict.fromkeys(("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), ()),
}
FILES = sorted(path for path in SRC.rglob("*.py") if path.name != "__main__.py")


def room(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import anywhere in a file; the name is empty for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that rooms can be told apart"
            yield from ((node.module or "", alias.name) for alias in node.names)


def broken_rules(file: Path, tree: ast.AST) -> Iterator[str]:
    inside = file.relative_to(SRC).as_posix()
    for module, name in imports(tree):
        top, _, rest = module.partition(".")
        if top == "fedsdr":
            known = rest.partition(".")[0] or name
            # What `import fedsdr` itself offers is gathered at the top; the version is nobody's.
            target = len(LEVELS) if known == "__version__" else LEVEL.get(known, 0)
            if room(file) != "__init__" and target < LEVEL.get(room(file), len(LEVELS)):
                yield f"imports {module}.{name}, which stands above {room(file)}"
            if known in NEVER.get(room(file), ()) or (
                room(file) == "coordinator" and name == "ClientData"
            ):
                yield f"imports {module}.{name}, which {room(file)} may not know"
        for other, places in ONLY_IN.items():
            if f"{module}.".startswith(f"{other}.") and not inside.startswith(
                places or ("nowhere",)
            ):
                yield f"imports {module}, which only {' and '.join(places) or 'nobody'} may"
        # Its state may be kept and given back: around lm-eval, whose tasks draw from it.
        if top == "random" and name not in ("Random", "getstate", "setstate"):
            yield "uses the random module's global generator; take random.Random with a seed"
        if top == "torch" and name in ("load", "manual_seed"):
            yield f"imports torch.{name} by name, where its use cannot be checked"
    forked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and "fork_rng" in ast.unparse(node.items[0])
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called in ("torch.load", "np.load", "numpy.load"):
            yield f"calls {called}; only safetensors are read"
        if called.endswith("random.seed") or (
            called == "torch.manual_seed" and id(node) not in forked
        ):
            yield f"calls {called}, which changes the global random state"
        if called == "__import__" or (
            called.endswith("import_module")
            and "fedsdr" in ast.unparse(node)
            and room(file) != "__init__"
        ):
            yield f"calls {called}, which no import rule sees"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SRC).as_posix())
def test_file_keeps_the_rules(file: Path) -> None:
    assert list(broken_rules(file, ast.parse(file.read_text(encoding="utf-8")))) == []


def test_every_room_has_its_place() -> None:
    assert {room(file) for file in FILES} - {"__init__"} <= LEVEL.keys()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data/x.py", "from fedsdr.model.base import BaseModel"),
        ("coordinator/loop.py", "def f():\n    from fedsdr.jobs import train"),
        ("training/stage.py", "import fedsdr.coordinator.admit"),
        ("coordinator/x.py", "from fedsdr.site.score import score"),
        ("coordinator/x.py", "from fedsdr import cohort"),
        ("coordinator/x.py", "from fedsdr.training.stage import train_stage"),
        ("coordinator/x.py", "from fedsdr.types import ClientData"),
        ("site/x.py", "from fedsdr.coordinator.loop import run_rounds"),
        ("parts/x.py", "from fedsdr.model.lora import StackedLora"),
        ("runs/x.py", "from fedsdr.parts.mix import is_part"),
        ("distill/x.py", "from transformers.utils import logging"),
        ("cohort/in_process.py", "import flwr"),
        ("evaluate/x.py", "import matplotlib.pyplot as plt"),
        ("evaluate/x.py", "from lm_eval.tasks import TaskManager"),
        ("jobs/train.py", "from torch.utils.tensorboard import SummaryWriter"),
        ("model/x.py", "import pickle"),
        ("model/x.py", "import torch\ntorch.load('x')"),
        ("model/x.py", "import torch\ntorch.manual_seed(1)"),
        ("atlas/x.py", "import random"),
        ("atlas/x.py", "from random import choice"),
        ("data/x.py", "from importlib import import_module\nimport_module('fedsdr.cli')"),
    ],
)
def test_a_broken_rule_is_seen(file: str, text: str) -> None:
    assert list(broken_rules(SRC / file, ast.parse(text)))


def test_an_algorithm_is_light() -> None:
    """Torch, `parts` and `types`: no transformers, no room that reads or writes."""
    script = (
        "import sys, fedsdr.algorithms.fedavg\n"
        "print(*sorted(m for m in sys.modules if m.startswith(('fedsdr', 'transformers'))))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = told.stdout.split()
    assert len(loaded) <= 15, loaded
    rooms = {m.split(".")[1] for m in loaded if "." in m}
    assert rooms == {"algorithms", "errors", "parts", "types"}


def test_what_is_allowed_is_let_through() -> None:
    fine = (
        "import torch\nfrom random import Random\nfrom fedsdr.model.lora import StackedLora\n"
        "with torch.random.fork_rng():\n    torch.manual_seed(1)\ntorch.Generator().manual_seed(2)"
    )
    assert list(broken_rules(SRC / "model/x.py", ast.parse(fine))) == []


def test_every_public_name_is_where_the_list_says() -> None:
    assert all(getattr(fedsdr, name) is not None for name in fedsdr.__all__)
    assert {"run", "resume", "score", "rewrite", "Algorithm", "Example"} <= {*fedsdr.__all__}


def test_a_public_name_never_turns_into_the_room_of_that_name() -> None:
    """`fedsdr.run` is a function, also once every module was imported."""
    for file in FILES:
        if room(file) not in ("__init__", "cli", "atlas"):
            parts = file.relative_to(SRC).with_suffix("").parts
            importlib.import_module(".".join(("fedsdr", *parts)).removesuffix(".__init__"))
    rooms = [n for n in fedsdr.__all__ if isinstance(getattr(fedsdr, n), ModuleType)]
    assert rooms == []
