"""Self-distillation of one client's answers: prompts, drafts from the cache or the model,
selection, audit.

A draft's address is the digest of all that decides it: base, teacher's adapter, dtype, template,
sampling, seed, example and draw number. Its randomness derives from all of that but the teacher, so
the same example is rewritten the same way whoever asks: FedSD and FedSDR of one seed share their
rewrites, and neither batch nor K matters.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fedsdr.data.render import render_prompt
from fedsdr.distill.audit import AuditRow, audit_row
from fedsdr.distill.generate import Progress, Sampling, generate, no_progress
from fedsdr.distill.prompts import Template, choose_template, render, template_digest
from fedsdr.distill.selection import Draft, Selection, passes, select
from fedsdr.errors import RunError
from fedsdr.model.lora import StackedLora
from fedsdr.tensors import derive_seed
from fedsdr.types import Example


@dataclass(frozen=True, slots=True)
class Rewriting:
    """How answers are rewritten."""

    sampling: Sampling = field(default_factory=Sampling)
    template: str = "auto"
    seed: int = 0
    batch: int = 128


@dataclass(frozen=True, slots=True)
class Teacher:
    """Who rewrites: the base, or the base wearing the global branches (`flats[branch]` is [1,
    P])."""

    digest: str = "base"
    flats: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())


def rewrite(
    lora: StackedLora,
    client_id: str,
    examples: Sequence[Example],
    selection: Selection,
    how: Rewriting,
    cache: Path,
    teacher: Teacher | None = None,
    progress: Progress = no_progress,
    include_texts: bool = False,
) -> tuple[list[Example], list[AuditRow]]:
    """The examples with their responses rewritten (or kept, where selection says so), and one audit
    row each."""
    teacher = teacher or Teacher()
    drafts = _Drafts(lora, how, teacher, _Cache(cache / f"{client_id}.jsonl"))
    templates = [choose_template(e, how.template) for e in examples]
    found: list[list[Draft]] = [[] for _ in examples]
    open_ones = list(range(len(examples)))
    for draw in range(selection.draws):
        made = drafts.get([(examples[i], templates[i]) for i in open_ones], draw, progress)
        for i, draft in zip(open_ones, made, strict=True):
            found[i].append(draft)
        open_ones = [i for i in open_ones if passes(selection, examples[i], found[i][-1])]
        if not open_ones:
            break
    rewritten, audit = list[Example](), list[AuditRow]()
    for example, template, own in zip(examples, templates, found, strict=True):
        choice = select(selection, example, own)
        rewritten.append(replace(example, response=choice.text))
        audit.append(
            audit_row(example, client_id, template, choice, own, include_texts=include_texts)
        )
    return rewritten, audit


@dataclass(frozen=True, slots=True)
class _Drafts:
    lora: StackedLora
    how: Rewriting
    teacher: Teacher
    cache: _Cache

    def get(
        self, asked: Sequence[tuple[Example, Template]], draw: int, progress: Progress
    ) -> list[Draft]:
        keys = [self._key(example, template, draw) for example, template in asked]
        known = {key for key in keys if key in self.cache.found}
        progress(sum(key in known for key in keys))
        if len(known) < len(set(keys)):
            self._make(asked, keys, draw, progress)
        return [self.cache.found[key] for key in keys]

    def _make(
        self,
        asked: Sequence[tuple[Example, Template]],
        keys: Sequence[str],
        draw: int,
        progress: Progress,
    ) -> None:
        """Draw what is missing, batch by batch. The batches depend on what is asked, never on what
        is known already: a run that was killed here draws from the same logits, to the last bit."""
        base = self.lora.base
        prompts = [render_prompt(base, render(template, example)) for example, template in asked]
        by_length = sorted(range(len(asked)), key=lambda i: (len(prompts[i]), i))
        for start in range(0, len(asked), self.how.batch):
            chunk = by_length[start : start + self.how.batch]
            missing = [i for i in chunk if keys[i] not in self.cache.found]
            if not missing:
                continue
            with self._worn(), torch.no_grad():
                made = generate(
                    base,
                    [prompts[i] for i in chunk],
                    self.how.sampling,
                    [self._seed(*asked[i], draw) for i in chunk],
                    self.how.batch,
                )
            drafts = {keys[i]: Draft(g.text, g.hit_limit) for i, g in zip(chunk, made, strict=True)}
            self.cache.add({keys[i]: drafts[keys[i]] for i in missing})
            progress(len(missing))

    def _worn(self) -> AbstractContextManager[None]:
        flats = self.teacher.flats
        return self.lora.wear(flats, tuple(flats)) if flats else nullcontext()

    def _seed(self, example: Example, template: Template, draw: int) -> int:
        """Of everything but the teacher: two that differ by rounding (K = 1 and K = 8, say) rewrite
        alike."""
        return derive_seed(self._key(example, template, draw, Teacher().digest))

    def _key(
        self, example: Example, template: Template, draw: int, teacher: str | None = None
    ) -> str:
        asked = [example.system, [[m.role, m.content] for m in example.history], example.prompt]
        decides = [
            self.lora.base.digest,
            teacher or self.teacher.digest,
            str(self.lora.base.dtype),
            template_digest(template),
            asdict(self.how.sampling),
            self.how.seed,
            [*asked, example.response],
            draw,
        ]
        text = json.dumps(decides, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Cache:
    """Drafts of one client on disk, a JSON line each; a torn last line is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = dict[str, Draft]()
        if path.is_file():
            # Bytes: a kill may tear a letter, and texts hold what str.splitlines() splits at.
            for line in path.read_bytes().split(b"\n"):
                try:
                    row = json.loads(line)
                    self.found[row["key"]] = Draft(row["text"], row["hit_limit"])
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill: that draft is drawn again, the same

    def add(self, drafts: Mapping[str, Draft]) -> None:
        rows = [{"key": k, "text": d.text, "hit_limit": d.hit_limit} for k, d in drafts.items()]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a", encoding="utf-8", errors="surrogatepass") as file:
                file.write("\n" + text if torn else text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: rewrites cannot be stored: {error.strerror}") from error
        self.found.update(drafts)
