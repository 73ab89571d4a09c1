"""Rewriting a file, without any federation: a rewritten file and an audit out.

from fedsdr.standalone import distill_file
distill_file(fedsdr.build_recipe({"model": {"path": "models/mine"}}), "data/all.jsonl", "out")
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from fedsdr.assembly import Watch, open_base, rewriting_settings
from fedsdr.cohort.in_process import Advance
from fedsdr.config import Recipe
from fedsdr.data.formats import read_table
from fedsdr.distill.audit import AuditSummary, summarise, write_audit
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.engine import BuiltIn
from fedsdr.distill.file import write_rewritten
from fedsdr.distill.rewrite import Tell, remote_engine, rewrite_by
from fedsdr.distill.selection import parse_selection
from fedsdr.errors import RunError
from fedsdr.machine import cores
from fedsdr.runs.files import make_private, unwritable, write_json_atomic
from fedsdr.runs.lock import run_lock
from fedsdr.runs.places import work_folder


def distill_file(
    recipe: Recipe,
    file: str | Path,
    out: str | Path,
    watch: Watch | None = None,
    selection: str = "none",
) -> AuditSummary:
    """Write `out/rewritten.jsonl` (or .csv …, as the file is), `audit.jsonl` and `summary.json`.
    The recipe says how and by which model; its clients and training play no part.

    Stopped and started again, it goes on: drafts are kept in `out/drafts`. The model is loaded only
    where it is needed: not for an endpoint with chat.
    """
    watch, path, folder = watch or Watch(), Path(file).expanduser(), work_folder(Path(out))
    to = folder / f"rewritten{path.suffix.lower()}"
    if to.resolve() == path.resolve():
        raise RunError(f"{path} is what would be written over; choose another --out")
    shape = None if recipe.data.shape == "auto" else recipe.data.shape
    table = read_table(path, shape, dict(recipe.data.columns) or None)
    rule, how = parse_selection(selection), rewriting_settings(recipe)
    torch.set_num_threads(recipe.run.threads or cores())
    private_folder(folder)
    with run_lock(folder):
        remote = how.endpoint
        base = None if remote and remote.protocol == "chat" else open_base(recipe)
        engine = (
            BuiltIn(base, how.sampling, how.batch)
            if base is not None and remote is None
            else remote_engine(how, base, watch.note)
        )
        rewritten, audit = rewrite_by(
            engine,
            path.stem,
            table.examples,
            rule,
            how,
            Drafts(folder / "drafts", "rows"),
            tally(watch.advance, len(table.examples)),
            recipe.run.include_texts,
        )
        write_rewritten(table, [example.response for example in rewritten], to)
        summary = summarise(audit)
        write_audit(folder / "audit.jsonl", audit)
        write_json_atomic(folder / "summary.json", asdict(summary))
    return summary


def private_folder(path: Path) -> None:
    try:
        make_private(path)
    except OSError as error:
        raise unwritable(path, error) from error


def tally(advance: Advance, expected: int) -> Tell:
    """Drafts made, of how many: more than rows where some are drawn again."""
    made, asked = 0, expected

    def tell(more_made: int, more_asked: int) -> None:
        nonlocal made, asked
        made, asked = made + more_made, asked + more_asked
        advance("rewriting rows", made, asked)

    return tell
