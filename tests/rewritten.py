"""Rows as a run keeps them under `clients/<id>/`: rewrites and answers, by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def rewrite_row(id: str, **given: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": id,
        "domain": "",
        "prompt": "What colour is it?",
        "raw": "It is amber.",
        "written": "It is amber.",
        "kept": True,
        "reasons": [],
        "numbers_lost": [],
        "numbers_invented": [],
        "names_lost": [],
        "names_invented": [],
        "length_ratio": 1.0,
        "judged": None,
    } | given
    row.setdefault("trained", row["written"] if row["kept"] else row["raw"])
    return row


def answer_row(id: str, prompt: str, reference: str = "r", **answers: str) -> dict[str, Any]:
    return {"id": id, "prompt": prompt, "reference": reference, "answers": answers}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
