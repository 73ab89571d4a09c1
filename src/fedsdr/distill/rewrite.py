"""Self-distillation of one client's answers: prompts, drafts from the cache or an engine,
selection, audit.

A draft's address is the digest of all that decides it: the engine (base, teacher's adapter, dtype;
or an endpoint's model), template, sampling, seed, example and draw number. Its randomness derives
from all of that but the teacher, so the same example is rewritten the same way whoever asks: FedSD
and FedSDR of one seed share their rewrites, and neither batch nor K matters.

A file with its responses replaced: the same format, shape and columns.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from fedsdr.data.files import open_parquet, read_rows, too_large
from fedsdr.data.formats import TURN_KEYS, Table
from fedsdr.data.text import LARGEST_FILE, parse_json, read_text
from fedsdr.distill.audit import AuditRow, audit_row
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.engine import Asked, BuiltIn, Engine, Less, Teacher, as_many, worn_teacher
from fedsdr.distill.generate import Sampling
from fedsdr.distill.prompts import Template, choose_template, render, template_digest
from fedsdr.distill.remote import Remote, completion_prompt
from fedsdr.distill.selection import Draft, Reasons, choose, judge
from fedsdr.errors import DataError, RecipeError
from fedsdr.model.base import BaseModel
from fedsdr.model.lora import StackedLora
from fedsdr.parts.views import Selection
from fedsdr.recipe.settings import Endpoint
from fedsdr.runs.files import replacing, write_text_atomic
from fedsdr.tensors import derive_seed
from fedsdr.types import Example, Note, note_nothing

# So many drafts more are there, and so many more than one a row are asked for.
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Rewriting:
    """How answers are rewritten; by the base itself where there is no endpoint."""

    sampling: Sampling = field(default_factory=Sampling)
    template: str = "auto"
    seed: int = 0
    batch: int = 128
    endpoint: Endpoint | None = None


def tell_nobody(made: int, asked: int) -> None:
    """Nobody watches."""


def once(note: Note) -> Note:
    """The same, but of each text only the first time."""
    noted = set[str]()

    def first(text: str) -> None:
        if text not in noted:
            noted.add(text)
            note(text)

    return first


def rewrite(
    lora: StackedLora,
    client_id: str,
    examples: Sequence[Example],
    selection: Selection,
    how: Rewriting,
    cache: Path,
    teacher: Teacher | None = None,
    tell: Tell = tell_nobody,
    include_texts: bool = False,
    note: Note = note_nothing,
    less: Less = as_many,
) -> tuple[list[Example], list[AuditRow]]:
    """The examples with their responses rewritten (or kept, where selection says so), and one audit
    row each."""
    teacher = teacher or Teacher()
    if how.endpoint is not None and teacher.flats:
        raise RecipeError(
            "rewriting.engine: an endpoint rewrites with the model that it serves and cannot wear "
            "the global adapter; with teacher: global, take rewriting.engine: builtin"
        )
    if how.endpoint is not None:
        engine = remote_engine(how, lora.base, note)
    else:
        worn = worn_teacher(lora, teacher)
        engine = BuiltIn(lora.base, how.sampling, how.batch, teacher.digest, worn, less)
    drafts = Drafts(cache, client_id)
    for place in drafts.changed():
        note(f"{place}, is not the draft that was written; it is made anew")
    return rewrite_by(
        engine,
        client_id,
        examples=examples,
        selection=selection,
        how=how,
        drafts=drafts,
        tell=tell,
        include_texts=include_texts,
    )


def remote_engine(how: Rewriting, base: BaseModel | None, note: Note = note_nothing) -> Remote:
    """`base` lends its chat template to the protocol that has none."""
    assert how.endpoint is not None
    if how.endpoint.protocol == "chat":
        return Remote(how.endpoint, how.sampling, note=note)
    if base is None:
        raise RecipeError(
            "rewriting.engine.protocol: completions needs a model folder, whose chat template "
            "makes the text; name it, or take protocol: chat"
        )
    return Remote(how.endpoint, how.sampling, completion_prompt(base), base.template, note)


def rewrite_by(
    engine: Engine,
    client_id: str,
    examples: Sequence[Example],
    selection: Selection,
    how: Rewriting,
    drafts: Drafts,
    tell: Tell = tell_nobody,
    include_texts: bool = False,
) -> tuple[list[Example], list[AuditRow]]:
    """The same by any engine."""
    templates = [choose_template(e, how.template) for e in examples]
    written: list[list[Draft]] = [[] for _ in examples]
    judged: list[list[Reasons]] = [[] for _ in examples]
    open_ones = list(range(len(examples)))
    address, seeding = engine.address, engine.seeding
    for draw in range(selection.draws):
        asked = [
            Asked(
                _key(address, how, examples[i], templates[i], draw),
                derive_seed(_key(seeding, how, examples[i], templates[i], draw)),
                examples[i],
                render(templates[i], examples[i]),
            )
            for i in open_ones
        ]
        tell(sum(request.key in drafts for request in asked), len(asked) if draw else 0)
        engine.write(asked, drafts, lambda made: tell(made, 0))
        made = drafts.get([request.key for request in asked])
        drawn = [(request.example, made[request.key]) for request in asked]
        # All of a draw together, whatever is known already: a resume judges the same batches.
        verdicts = judge(selection, drawn)
        for i, (_, draft), reasons in zip(open_ones, drawn, verdicts, strict=True):
            written[i].append(draft)
            judged[i].append(reasons)
        open_ones = [i for i in open_ones if judged[i][-1]]
    rewritten, audit = list[Example](), list[AuditRow]()
    for example, template, candidates, draw_reasons in zip(
        examples, templates, written, judged, strict=True
    ):
        choice = choose(example, candidates, draw_reasons)
        rewritten.append(replace(example, response=choice.text))
        audit.append(
            audit_row(example, client_id, template, choice, candidates, include_texts=include_texts)
        )
    return rewritten, audit


def _key(
    address: Sequence[str], how: Rewriting, example: Example, template: Template, draw: int
) -> str:
    conversation = [example.system, [[m.role, m.content] for m in example.history], example.prompt]
    decides = [
        *address,
        template_digest(template),
        asdict(how.sampling),
        how.seed,
        [*conversation, example.response],
        draw,
    ]
    text = json.dumps(decides, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_rewritten(table: Table, responses: Sequence[str], to: Path) -> None:
    """`table`'s file once more, with these responses in place of its own."""
    column = table.fields["turns" if table.shape in TURN_KEYS else "response"]
    rows = read_rows(table.path, {column})
    if len(rows) != len(responses):
        raise DataError(f"{table.path}: changed while it was rewritten; start again")
    values = [
        _replaced(row.values, table, column, text)
        for row, text in zip(rows, responses, strict=True)
    ]
    suffix = table.path.suffix.lower()
    if suffix == ".parquet":
        _write_parquet(table.path, column, [row[column] for row in values], to)
    elif suffix == ".csv":
        write_text_atomic(to, _csv(values))
    elif suffix == ".json":
        write_text_atomic(to, _json(table.path, values))
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in values)
        write_text_atomic(to, "".join(lines))


def _replaced(
    row: Mapping[str, object], table: Table, column: str, text: str
) -> Mapping[str, object]:
    if table.shape not in TURN_KEYS:
        return {**row, column: text}
    *earlier, last = cast("list[dict[str, object]]", row[column])
    return {**row, column: [*earlier, {**last, TURN_KEYS[table.shape][1]: text}]}


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return out.getvalue()


def _json(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """A list, or in whatever object it stood."""
    content = parse_json(read_text(path), path)
    if isinstance(content, dict):
        held = cast("dict[str, object]", content)
        whole: object = {k: rows if isinstance(v, list) else v for k, v in held.items()}
    else:
        whole = rows
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def _write_parquet(path: Path, column: str, values: Sequence[object], to: Path) -> None:
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    with open_parquet(path) as file:
        groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > LARGEST_FILE:
            raise too_large(path)
        table = file.read(use_threads=False)
        place = table.column_names.index(column)
        kind = table.schema.field(place)
        made = table.set_column(place, kind, arrow.array(values, type=kind.type))
    with replacing(to) as beside:
        parquet.write_table(made, beside)
