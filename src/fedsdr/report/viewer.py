"""The rewrite viewer: what rewriting did to the answers, in counts for all, in texts for those who
may read them.

Rewrites into a page: which of them, in which form, and how small.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from fedsdr.report.answer_view import IncludeTexts, how_to_show, readable
from fedsdr.report.damage import (
    KINDS,
    TOLD_BY_CHECKS,
    ClientDamage,
    Damage,
    by_client,
    damage_of,
    in_words,
    reasons_of,
    totals,
)
from fedsdr.report.record import RunRecord
from fedsdr.report.safe_text import short, visible
from fedsdr.report.section import Absent, Section
from fedsdr.report.viewer_rows import Entry, Rewrites, clients_with_rewrites, fetch, read_rewrites
from fedsdr.text.numbers import counted, share

SEED = 0
MOST_CHARACTERS = 20_000  # of one text
MOST_UNPACKED = 24_000_000  # bytes that the page's script takes in
MOST_PACKED = 8_000_000  # bytes of the page
PLAIN_UP_TO = 60_000  # bytes: left readable
_TEXTS = ("prompt", "raw", "written")
_MARKS = ("numbers_lost", "numbers_invented", "names_lost", "names_invented")


@dataclass(frozen=True, slots=True)
class Packed:
    """`payload` is `{"json": …}`, or `{"gzip": base64}` of the same."""

    payload: Mapping[str, Any]
    size: int
    shown: int
    total: int
    cut: int  # texts


def pack(
    entries: Sequence[Entry], most_packed: int = MOST_PACKED, most_unpacked: int = MOST_UNPACKED
) -> Packed:
    """All of them where they fit; else a sample, halved until it does."""
    order = stratified(entries)
    chosen = order[: _fitting((entries[at] for at in order), most_unpacked)]
    while True:
        columns, cut = _columns([entries[at] for at in sorted(chosen)])
        payload, size = _smallest(columns)
        if size <= most_packed or len(chosen) <= 1:
            return Packed(payload, size, len(chosen), len(entries), cut)
        chosen = chosen[: min(len(chosen) - 1, int(len(chosen) * 0.95 * most_packed / size))]


def stratified(entries: Sequence[Entry], seed: int = SEED) -> list[int]:
    """An order of which every beginning is a fair sample: from each client and kind of damage in
    turn one, drawn at random."""
    strata: dict[tuple[str, str, bool], list[int]] = {}
    for at, entry in enumerate(entries):
        damage = entry.damage
        key = (damage.client, damage.kinds[0] if damage.kinds else "", damage.kept)
        strata.setdefault(key, []).append(at)
    draw = Random(seed)
    piles = [strata[key] for key in sorted(strata)]
    for pile in piles:
        draw.shuffle(pile)
    turns = [(turn, number) for number, pile in enumerate(piles) for turn in range(len(pile))]
    return [piles[number][turn] for turn, number in sorted(turns)]


def _fitting(entries: Iterable[Entry], most: int) -> int:
    """How many from the start stay under `most` bytes; at least one."""
    total = count = 0
    for entry in entries:
        total += min(entry.size, len(_TEXTS) * MOST_CHARACTERS)
        if total > most and count:
            break
        count += 1
    return count


def _columns(entries: Sequence[Entry]) -> tuple[Mapping[str, Any], int]:
    """Column by column, which packs best; repeated words as numbers into lists."""
    clients, domains, reasons, verdicts = (_Numbered() for _ in range(4))
    kinds = {kind: number for number, kind in enumerate(KINDS)}
    columns: dict[str, list[Any]] = {}
    cut: dict[int, dict[str, int]] = {}
    for at, (entry, row) in enumerate(zip(entries, fetch(entries), strict=True)):
        damage = entry.damage
        texts = {name: str(row.get(name) or "") for name in (*_TEXTS, "trained")}
        long = {name: len(text) for name, text in texts.items() if len(text) > MOST_CHARACTERS}
        if long:
            cut[at] = long
        add = {
            "id": visible(short(row.get("id", ""))),
            "client": clients.number(visible(damage.client)),
            "domain": domains.number(visible(short(row.get("domain") or ""))),
            "kept": int(damage.kept),
            "kinds": sum(1 << kinds[kind] for kind in damage.kinds),
            "reasons": [reasons.number(visible(short(in_words(r)))) for r in reasons_of(row)],
            "ratio": round(damage.ratio, 3),
            "verdict": verdicts.number(visible(short(damage.verdict))) if damage.verdict else -1,
            **{name: _shown(texts[name]) for name in _TEXTS},
            "trained": _trained(texts, damage.kept),
            **{name: _listed(row.get(name)) for name in _MARKS},
        }
        for name, value in add.items():
            columns.setdefault(name, []).append(value)
    names = {"kinds": list(KINDS.values()), "clients": clients, "domains": domains}
    names |= {"reasons": reasons, "verdicts": verdicts}
    return {"names": names, "rows": columns, "cut": cut}, sum(map(len, cut.values()))


def _trained(texts: Mapping[str, str], kept: bool) -> str | int:
    """1 and 0 where it is the rewrite or the raw answer, as it almost always is."""
    if not texts["trained"] or texts["raw"] == texts["written"] == texts["trained"]:
        return int(kept)
    if texts["trained"] in (texts["written"], texts["raw"]):
        return int(texts["trained"] == texts["written"])
    return _shown(texts["trained"])


def _shown(text: str) -> str:
    return visible(text[:MOST_CHARACTERS])


def _listed(values: object) -> list[str]:
    return [visible(short(v)) for v in values[:100]] if isinstance(values, list) else []


def _smallest(columns: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    unpacked = text.encode()
    if len(unpacked) <= PLAIN_UP_TO:
        return {"json": columns}, len(unpacked)
    packed = base64.b64encode(gzip.compress(unpacked, compresslevel=6, mtime=0)).decode()
    return {"gzip": packed}, len(packed)


class _Numbered(list[str]):
    """Distinct strings by their first appearance."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, int] = {}

    def number(self, word: str) -> int:
        if word not in self._known:
            self._known[word] = len(self)
            self.append(word)
        return self._known[word]


ID, TITLE = "rewrites", "What rewriting did to the answers"


def rewrites_section(record: RunRecord, include_texts: IncludeTexts = False) -> Section | Absent:
    """Without texts, nothing under `clients/` is opened."""
    private = clients_with_rewrites(record.path)
    clients = readable(record, include_texts, private)
    read = read_rewrites(record.path, clients, record.audit)
    measured = [entry.damage for entry in read.entries]
    measured += [
        damage_of(short(row.get("client_id")), row)
        for row in record.audit
        if row.get("client_id") not in clients
    ]
    if not measured:
        return Absent(ID, TITLE, _why_absent(record, bool(private)))
    packed = pack(read.entries) if read.entries else None
    total, rows = totals("all clients", measured), by_client(measured)
    checked, missing = _checked(record), [kind for kind in KINDS if not total.written.get(kind)]
    sought = [kind for kind in missing if checked or kind not in TOLD_BY_CHECKS]
    return Section(
        id=ID,
        title=TITLE,
        template="rewrites.html.j2",
        data={
            "total": total,
            "clients": rows,
            "kinds": [(kind, words) for kind, words in KINDS.items() if total.written.get(kind)],
            "unseen": [KINDS[kind] for kind in sought],
            "unsought": [KINDS[kind] for kind in missing if kind not in sought],
            "sentences": _sentences(total, measured, checked),
            "payload": packed.payload if packed else None,
            "sample": _sample_in_words(packed, read, len(rows) - len(clients)) if packed else "",
            "share": share,
            "command": how_to_show(record),
        },
        scripts=("diff.js", "rewrites.js"),
        style="rewrites.css",
    )


def _why_absent(record: RunRecord, private: bool) -> str:
    if private:
        return (
            f"The rewrites are private, and not counted. `{how_to_show(record)}` shows a client's."
        )
    if record.state == "purged":
        return "The run was purged, and no audit of its rewriting is left."
    if record.state == "running":
        return "Nothing has been rewritten yet, or nothing is to be."
    return "Nothing was rewritten in this run: it trains on the answers as they are."


def _checked(record: RunRecord) -> bool:
    """Whether the recipe lets a rewrite fall back for what it says."""
    chosen = record.recipe.get("algorithm")
    if not isinstance(chosen, Mapping):
        return True
    options = chosen.get("options")
    selection = options.get("selection") if isinstance(options, Mapping) else None
    return (selection or chosen.get("selection") or "none") != "none"


def _sentences(total: ClientDamage, measured: Sequence[Damage], checked: bool) -> list[str]:
    count = total.rewrites
    sentences = [
        f"{total.kept:,} of {counted(count, 'rewrite')} ({share(total.kept / count)}) passed the "
        f"checks and are trained on; {total.fell_back:,} fell back to the raw answer."
        if checked
        else f"{total.kept:,} of {counted(count, 'rewrite')} are trained on, whatever they say: "
        "this run checks nothing (selection: none).",
        f"The median rewrite is {total.ratio:.2f} times as long as its raw answer; "
        f"{total.written.get('too-long', 0):,} are over twice as long.",
    ]
    damaged = [row for row in measured if set(row.kinds) - {"too-long"}]
    sentences.append(
        f"Other damage was found in {len(damaged):,} ({share(len(damaged) / count)}), of which "
        f"{sum(row.kept for row in damaged):,} are trained on all the same."
    )
    if total.judged:
        sentences.append(
            f"By the exact verdict, {total.faithful:,} of {total.judged:,} "
            f"({share(total.faithful / total.judged)}) say what is true and nothing else."
        )
    return sentences


def _sample_in_words(packed: Packed, read: Rewrites, without_texts: int) -> str:
    if packed.shown == packed.total:
        words = f"All {counted(packed.total, 'rewrite')} can be read below."
    else:
        words = (
            f"{packed.shown:,} of {packed.total:,} rewrites can be read below, so that the page "
            "stays small: from each client and kind of damage in turn one, drawn at random "
            f"(seed {SEED}). The counts above are over all {packed.total:,}."
        )
    if packed.cut:
        words += f" {counted(packed.cut, 'text')} too long for a page are cut, and say so."
    if read.unreadable:
        words += f" {counted(read.unreadable, 'line')} of the files could not be read."
    if without_texts > 0:
        words += f" Of {counted(without_texts, 'other client')} this page holds counts only."
    return words
