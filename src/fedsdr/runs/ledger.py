"""The ledger: what passed between server and clients, tensor by tensor, without the values."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.files import JSON
from fedsdr.tensors import tensor_bytes
from fedsdr.types import Tensors

LEDGER = "ledger.jsonl"
Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Ledger:
    run: RunDirectory

    def record(
        self, round: int, client_id: str, direction: Direction, tensors: Tensors, what: str
    ) -> None:
        """One row for one message. `what` says in a word or two what the tensors are."""
        entries: list[dict[str, JSON]] = []
        total = 0
        for name in sorted(tensors):
            data = tensor_bytes(tensors[name])
            total += len(data)
            entries.append(
                {
                    "name": name,
                    "shape": list(tensors[name].shape),
                    "dtype": str(tensors[name].dtype).removeprefix("torch."),
                    "bytes": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
        message: dict[str, JSON] = {
            "round": round,
            "client": client_id,
            "direction": direction,
            "what": what,
            "bytes": total,
            "tensors": entries,
        }
        self.run.append_row(LEDGER, message)

    def bytes_by_round(self) -> dict[int, dict[Direction, int]]:
        """Tensor bytes per round and direction, over all clients."""
        totals: defaultdict[int, dict[Direction, int]] = defaultdict(lambda: {"up": 0, "down": 0})
        for row in self.run.rows(LEDGER):
            totals[row["round"]][row["direction"]] += row["bytes"]
        return dict(totals)
