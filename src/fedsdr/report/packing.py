"""Rewrites into a page: which of them, in which form, and how small."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from fedsdr.report.damage import KINDS, in_words, reasons_of
from fedsdr.report.rewrite_rows import Entry, fetch
from fedsdr.report.safe_text import short, visible

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
