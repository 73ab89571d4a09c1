"""fedsdr: federated fine-tuning of language models on data that look nothing alike.

    import fedsdr
    recipe = fedsdr.parse_recipe("algorithm: {name: fedsdr}")
    results = fedsdr.run(recipe, "runs/first")

Names are loaded when first used, so that `import fedsdr` alone (and `fedsdr --help`) stays quick.
`__init__.pyi` lists them. `run`, `score` and `rewrite` do what the verbs train, evaluate and
distill do; they are called otherwise because fedsdr.evaluate and fedsdr.distill are rooms.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.2.0"

_LIST = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
# Name -> module and name there.
_HOMES = {
    alias.asname or alias.name: (str(line.module), alias.name)
    for line in _LIST
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsdr' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
