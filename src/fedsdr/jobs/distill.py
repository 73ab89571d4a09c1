"""Rewriting without any federation: every client's rows, or a file's; rewritten rows and an audit
out.

    fedsdr.rewrite(fedsdr.read_recipe("recipe.yaml"), "out")
    fedsdr.rewrite_file(fedsdr.build_recipe({"model": {"path": "models/mine"}}), "all.jsonl", "out")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from fedsdr.coordinator.job import Watch
from fedsdr.data.formats import read_table
from fedsdr.distill.audit import AuditRow, AuditSummary, summarise, write_audit
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.engine import BuiltIn
from fedsdr.distill.rewrite import Tell, once, remote_engine, rewrite_by, write_rewritten
from fedsdr.distill.rewrite import rewrite as rewrite_rows
from fedsdr.distill.selection import refuse_unready
from fedsdr.errors import DataError, RunError
from fedsdr.jobs.assembly import open_base, rewriting_settings
from fedsdr.jobs.machine import cores
from fedsdr.jobs.opened import opened
from fedsdr.jobs.plan.questions import refuse_unwritable
from fedsdr.model.base import BaseModel
from fedsdr.parts.views import parse_selection
from fedsdr.recipe.settings import Recipe
from fedsdr.runs.files import make_private, unwritable, write_json_atomic, write_text_atomic
from fedsdr.runs.lock import run_lock
from fedsdr.runs.places import work_folder
from fedsdr.runs.plain import user_path
from fedsdr.types import Advance, ClientData


def distill(
    recipe: Recipe,
    out: str | Path,
    watch: Watch | None = None,
    selection: str | None = None,
    base: BaseModel | None = None,
    clients: Sequence[ClientData] | None = None,
) -> AuditSummary:
    """Rewrite every client's training rows, without any federation: rows, audit and summary into
    `out` (private).

    Stopped and started again, it goes on: drafts are kept in `out/drafts`.

    Args:
        recipe: What to do, from `read_recipe`, `parse_recipe` or `build_recipe`.
        out: A folder; named again, it goes on there.
        watch: Is told progress, every round's row and notes; nobody by default.
        selection: Which rewrites are kept; by default as the algorithm says.
        base: A model that is open already, in place of the one that the recipe names.
        clients: Clients from Python, in place of the recipe's data; a run begun with
            them needs them again.
    """
    watch, folder = watch or Watch(), work_folder(Path(out))
    with opened(recipe, base, None, clients) as experiment:
        refuse_unwritable(experiment)
        for note in experiment.left_out.notes:
            watch.note(note)
        views = experiment.algorithm.rewritten_views()
        rule = parse_selection(
            selection or (views[0].selection if views else recipe.algorithm.selection)
        )
        refuse_unready(rule)
        private_folder(folder)
        clients = experiment.federation.clients
        tell = tally(watch.advance, sum(len(client.train) for client in clients))
        rows, note, how = list[AuditRow](), once(watch.note), rewriting_settings(recipe)

        def less(batch: int) -> None:
            nonlocal how
            how = replace(how, batch=batch)
            note(f"memory ran out; from now on {batch} rows are rewritten at a time")

        with run_lock(folder):
            for client in clients:
                texts, audit = rewrite_rows(
                    experiment.lora,
                    client.client_id,
                    client.train,
                    rule,
                    how,
                    folder / "drafts",
                    tell=tell,
                    include_texts=recipe.run.include_texts,
                    note=note,
                    less=less,
                )
                lines = [
                    {
                        "id": e.id,
                        "system": e.system,
                        "prompt": e.prompt,
                        "response": e.response,
                        "kept": a.kept,
                    }
                    for e, a in zip(texts, audit, strict=True)
                ]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                write_text_atomic(folder / f"{client.client_id}.jsonl", text)
                rows += audit
            summary = summarise(rows)
            write_audit(folder / "audit.jsonl", rows)
            write_json_atomic(folder / "summary.json", asdict(summary))
        return summary


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

    Args:
        recipe: How, and by which model; its clients and training play no part.
        file: Its rows: JSONL, JSON, CSV or Parquet.
        out: A folder; named again, it goes on there.
        watch: Is told progress, every round's row and notes; nobody by default.
        selection: Which rewrites are kept.
    """
    watch, path, folder = watch or Watch(), user_path(file, DataError), work_folder(Path(out))
    to = folder / f"rewritten{path.suffix.lower()}"
    if to.resolve() == path.resolve():
        raise RunError(f"{path} is what would be written over; choose another --out")
    shape = None if recipe.data.shape == "auto" else recipe.data.shape
    table = read_table(path, shape, dict(recipe.data.columns) or None)
    rule, how = parse_selection(selection), rewriting_settings(recipe)
    torch.set_num_threads(recipe.run.threads or cores())
    refuse_unready(rule)
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
            examples=table.examples,
            selection=rule,
            how=how,
            drafts=Drafts(folder / "drafts", "rows"),
            tell=tally(watch.advance, len(table.examples)),
            include_texts=recipe.run.include_texts,
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


rewrite, rewrite_file = distill, distill_file  # as `fedsdr` has them, where distill is a room
