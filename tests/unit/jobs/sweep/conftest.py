"""A recipe for the tiny Llama and two clients of a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toy import examples


@pytest.fixture(autouse=True)
def _quick(no_fsync: None) -> None:
    """Nothing here is about power cuts."""


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    for owner, count in (("c0", 6), ("c1", 5)):
        lines = [{"prompt": e.prompt, "response": e.response} for e in examples(owner, count)]
        (folder / f"{owner}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return {owner: str(folder / f"{owner}.jsonl") for owner in ("c0", "c1")}


@pytest.fixture
def tree(tiny_folder: Path, rows: dict[str, str]) -> dict[str, Any]:
    """Test rows that are the same for every seed, or there could be no tuning."""
    return {
        "model": {"path": str(tiny_folder), "max_length": 256},
        "data": {"files": rows, "test_files": rows, "validation": 0.2},
        "lora": {"R": {"rank": 2, "alpha": 4.0}},
        "training": {"rounds": 2, "local_epochs": 1.0, "batch": 3, "lr": 0.01},
        "rewriting": {"max_new_tokens": 4},
        "run": {"threads": 1},
    }
