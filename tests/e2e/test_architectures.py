"""Any Hugging Face causal LM can stand in for atlas-base: on every architecture a FedSDR run,
stopped and resumed, its adapters in PEFT, and merged into the weights with proof.

`architecture_table.py` writes down what the functions here find.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from families import CLIENTS, FAMILIES, ROWS, family_folder, family_recipe
from fedsdr import merge, resume, run
from fedsdr.coordinator.job import Watch
from fedsdr.coordinator.loop import Row
from fedsdr.evaluate.scoring import Worn
from fedsdr.jobs.export.merge import Proof
from fedsdr.model.adapters import adapter_spec, load_adapter
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora

# PEFT asks transformers in a way that transformers means to drop.
pytestmark = [
    pytest.mark.usefixtures("no_fsync"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]
PADDED = (
    *("qwen3, experts", "mixtral", "falcon", "bloom", "cohere", "starcoder2"),
    *("llama4", "deepseek_v3", "qwen3_next", "laguna", "jamba", "zamba2"),
)
MIXES = {"global": None, "personal": "a"}
IDS = torch.arange(7, 47)[None]  # longer than the windows


@dataclass(frozen=True, slots=True)
class Ran:
    """A run of one architecture."""

    name: str
    folder: Path
    run: Path
    results: Any

    def adapter(self, mix: str) -> Path:
        return self.run / "adapters" / mix / (MIXES[mix] or "")


@dataclass(frozen=True, slots=True)
class Gap:
    """Largest difference of logits, and the largest logit."""

    difference: float
    largest: float


class Stopped(BaseException):
    """As by Ctrl-C."""


def train_family(name: str, root: Path) -> Ran:
    folder = family_folder(root / "model", name)
    results = run(family_recipe(folder), root / "run", clients=CLIENTS)
    return Ran(name, folder, root / "run", results)


def losses(ran: Ran) -> list[float]:
    """Of S on the rows it trains on, a round each; that of R also moves with S."""
    rows = map(json.loads, (ran.run / "rounds.jsonl").open())
    return [row["other_losses"]["S on rewritten"]["mean"] for row in rows]


def resumed(ran: Ran, directory: Path) -> bool:
    """Whether the same run, stopped after its first round, ends with the same bytes."""

    def stop(row: Row) -> None:
        if row["round"] == 1:
            raise Stopped

    with pytest.raises(Stopped):
        run(family_recipe(ran.folder), directory, Watch(told=stop), clients=CLIENTS)
    assert not (directory / "results.json").exists()
    resume(directory, clients=CLIENTS)
    return remains(directory) == remains(ran.run)


def remains(directory: Path) -> dict[str, bytes]:
    """All that a result may be read from."""
    files = [directory / name for name in ("rounds.jsonl", "ledger.jsonl", "results.json")]
    files += sorted(p for p in (directory / "adapters").rglob("*") if p.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def plain_logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """What transformers computes, and PEFT, without any of our code."""
    net = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return (net if adapter is None else PeftModel.from_pretrained(net, adapter))(IDS).logits


def worn(ran: Ran, mix: str) -> torch.Tensor:
    """Our logits with an adapter of the run, read back from its PEFT folder."""
    base = load_base(ran.folder)
    lora = StackedLora(base, "all-linear", {"R": adapter_spec(ran.adapter(mix))})
    flat = load_adapter(ran.adapter(mix), lora, "R").float()
    with torch.no_grad(), lora.wear({"R": flat[None]}, ["R"]):
        return base.logits(IDS)


def gap(left: torch.Tensor, right: torch.Tensor) -> Gap:
    return Gap(float((left - right).abs().max()), float(right.abs().max()))


def peft_gap(ran: Ran, mix: str) -> Gap:
    """Ours and PEFT's, wearing the same adapter."""
    return gap(worn(ran, mix), plain_logits(ran.folder, ran.adapter(mix)))


def merged(ran: Ran, mix: str, out: Path) -> tuple[Proof, Gap]:
    """Our own proof; and what plain transformers computes with the merged folder, beside PEFT on
    the base."""
    proof = merge(ran.run, out, mix, MIXES[mix], clients=CLIENTS)
    return proof, gap(plain_logits(out), plain_logits(ran.folder, ran.adapter(mix)))


def packing_gap(ran: Ran) -> float | None:
    """How far the loss of packed rows is from that of padded ones, in fp64 and as a share of it;
    None where rows are always padded."""
    if not load_base(ran.folder).packs:
        return None
    found = list[float]()
    for packing in (True, False):
        base = replace(load_base(ran.folder, "float64"), packing=packing)
        lora = StackedLora(base, "all-linear", {"R": BranchSpec(2, 4.0)})
        flat = lora.fresh("R", 1)[None] + 0.01
        found.append(Worn(lora, {"R": flat}, "R").loss([ROWS])[0][0])
    return abs(found[0] - found[1]) / found[1]


@pytest.fixture(scope="module", params=FAMILIES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return train_family(request.param, tmp_path_factory.mktemp("family"))


def test_it_trains(ran: Ran) -> None:
    assert set(ran.results["scores"]) == set(MIXES)
    first, last = losses(ran)
    assert last < first


def test_stopped_and_resumed_it_ends_with_the_same_bytes(ran: Ran, tmp_path: Path) -> None:
    assert resumed(ran, tmp_path / "run")


@pytest.mark.parametrize("mix", MIXES)
def test_peft_computes_what_we_compute(ran: Ran, mix: str) -> None:
    with_it = plain_logits(ran.folder, ran.adapter(mix))
    found, effect = peft_gap(ran, mix), gap(plain_logits(ran.folder), with_it)
    assert effect.difference > 1e-3, "the adapter changes something"
    assert found.difference <= 2e-5 * found.largest


@pytest.mark.parametrize("mix", MIXES)
def test_merged_it_says_what_base_and_adapter_say(ran: Ran, mix: str, tmp_path: Path) -> None:
    proof, plain = merged(ran, mix, tmp_path / "merged")
    assert proof.equal_answers == proof.prompts >= 8
    assert proof.difference <= proof.tolerance < proof.effect / 100
    assert plain.difference <= 2e-5 * plain.largest


def test_packed_rows_score_as_padded_ones(ran: Ran) -> None:
    found = packing_gap(ran)
    assert (found is None) == (ran.name in PADDED)
    assert found is None or found < 1e-6
