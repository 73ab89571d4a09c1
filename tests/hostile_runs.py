"""Run directories in which every text that can reach a page is one of those given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from made_runs import rows, write_diagnosis, write_run
from payloads import Payload
from rewritten import rewrite_row, write_rows

REFUSALS = ("client '{0}' lost: {0}", "update of client '{0}' refused, {0}", "{0}")
MEASURE = "{}_worst"  # of these, a page shows every one


def write_hostile(path: Path, payloads: Sequence[Payload], finished: bool = True) -> Path:
    """One run whose clients, models, measures, phases, data, rewrites … each bear one of these."""
    texts = [payload.text for payload in payloads]
    every = " ".join(texts)
    run = write_run(
        path, method=in_yaml(every), clients=texts, rounds=3, finished=finished,
        options={text: text for text in map(in_yaml, texts)},
        refused={at: [form.format(text) for text in texts] for at, form in enumerate(REFUSALS, 1)},
    )  # fmt: skip
    write_diagnosis(run, texts)
    rows(run / "timings.jsonl", [{"round": r, "phase": t, "seconds": 1.0} for r in (0, 1, 2)
                                 for t in texts])  # fmt: skip
    _facts(run / "run.json", every)
    _profile(run / "profile.json", texts)
    if finished:
        _scores(run / "results.json", texts)
    audited = dict.fromkeys(("numbers_lost", "names_invented"), 1)
    rows(run / "rewriting_audit.jsonl", (
        {"client_id": text, "example_id": text, "kept": False, "reasons": [text, f"leak:{text}"],
         "length_ratio": 2.5, **audited} for text in texts
    ))  # fmt: skip
    counts = {text: {"examples": 1, "kept": 0.5, "changed": 0.5} for text in texts}
    (run / "rewriting.json").write_text(json.dumps({"clients": counts}))
    for payload in payloads:
        folder = payload.text if payload.is_folder_name else f"p{payload.number}"
        _private(run / "clients" / folder, payload.text)
    return run


def in_yaml(text: str) -> str:
    """What a recipe can hold: no half characters; and of a megabyte the beginning."""
    return text[:5000].encode(errors="replace").decode()


def write_cell(sweep: Path, payload: Payload, failed: bool = False) -> Path:
    """One cell of a sweep, named as far as the file system takes it."""
    text = payload.text
    name = text if payload.is_folder_name else f"p{payload.number}"
    file = sweep / "cells" / name / name / f"{payload.number}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    scores = {text: {"recall": 0.5, MEASURE.format(text): 0.25}}
    cell = {
        "setting": text, "label": text, "seed": payload.number, "changes": {f"a.{text}": text},
        "fedsdr": text, "torch": text, "recipe_sha256": text, "seconds": {text: 1.0},
        "world": "w", "lr": 0.1, "rounds": 2, "scores": scores, "clients": {},
        **({"failed": text} if failed else {}),
    }  # fmt: skip
    file.write_text(json.dumps(cell))
    return file


def _facts(file: Path, every: str) -> None:
    facts = json.loads(file.read_text())
    texts = ("run", "world", "base_digest", "fedsdr", "torch", "python", "machine", "dtype")
    file.write_text(json.dumps(facts | dict.fromkeys(texts, every)))


def _profile(file: Path, texts: Sequence[str]) -> None:
    found = json.loads(file.read_text())
    for text, client in zip(texts, found["clients"].values(), strict=True):
        client["domains"] = {text: 3, "medicine": 7}
        client["origins"] = {text: 5}
    file.write_text(json.dumps(found))


def _scores(file: Path, texts: Sequence[str]) -> None:
    found = json.loads(file.read_text())
    measures = {MEASURE.format(text): 0.5 for text in texts}
    for text in texts:
        found["scores"][text] = {"recall": 0.5, **measures}
        found["chosen_rounds"][text] = 1
    found["unseen"] = {texts[0]: {"recall": 0.25}}
    file.write_text(json.dumps(found))


def _private(folder: Path, text: str) -> None:
    some = {f"{of}_{how}": [text] for of in ("numbers", "names") for how in ("lost", "invented")}
    given: dict[str, Any] = {
        "prompt": text, "raw": text, "domain": text, "judged": text, "reasons": [text],
        "length_ratio": 1.5,
    }  # fmt: skip
    same = rewrite_row(text, written=text, kept=False, **given, **some)
    other = rewrite_row(
        f"other {text}", written=f"{text} {text}", trained=f"x {text}", kept=True, **given, **some
    )
    write_rows(folder / "rewrites.jsonl", [same, other])
    answers = {"base": text, text: text, "global": f"{text} more"}
    asked = {"id": text, "prompt": text, "reference": text, "answers": answers}
    write_rows(folder / "answers.jsonl", [asked | {"judged": dict.fromkeys(answers, text)}])
