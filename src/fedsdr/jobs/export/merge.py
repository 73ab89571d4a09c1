"""Base + adapter as one model with full weights, written only if it is proved to be the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain, zip_longest
from pathlib import Path

import torch
from torch import nn

from fedsdr.coordinator.observer import Watch
from fedsdr.errors import ModelError, RunError
from fedsdr.jobs.assembly import given
from fedsdr.jobs.export.chosen import Chosen, Finished
from fedsdr.jobs.export.place import placed, sha256
from fedsdr.jobs.export.proof import Heard, Proof, compare, listen, logits_along
from fedsdr.jobs.sources import load_federation
from fedsdr.model.adapters import WEIGHTS, adapter_spec, load_adapter
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import DTYPES, keep_norms_wide, load_base
from fedsdr.model.lora import StackedLora
from fedsdr.model.merge import merge_into_base, save_merged
from fedsdr.model.source import TRUSTED
from fedsdr.runs.files import write_json_atomic
from fedsdr.types import ClientData, Example

PROOF = "merge_proof.json"


def merge(
    directory: str | Path,
    out: str | Path,
    mix: str = "global",
    client: str | None = None,
    dtype: str | None = None,
    watch: Watch | None = None,
    clients: Sequence[ClientData] | None = None,
) -> Proof:
    """Write a run's deployed model as a Hugging Face folder of full weights (by default in the
    dtype it was trained over; of a quantised base, the full weights), or nothing if it does not say
    what base + adapter say.

    Args:
        directory: The run's folder.
        out: A new folder for the model.
        mix: The deployed mix.
        client: Whose personal model is meant, where each client has one.
        dtype: Of the weights; by default the run's.
        watch: Is told progress, every round's row and notes; nobody by default.
        clients: The clients of a run begun from Python, for the prompts of the proof.
    """
    watch, chosen = watch or Watch(), Finished.open(directory).chosen(mix, client)
    dtype = dtype or chosen.of.recipe.model.dtype
    if dtype not in DTYPES:
        raise ModelError(f"--dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    if how := chosen.of.recipe.model.quantize:
        watch.note(f"the run's base was quantised to {how}: merging into its full weights instead")
    with placed(Path(out)) as folder:
        examples = _prompts(chosen, clients)
        try:
            heard, plain = _merged(chosen, examples, folder, dtype)
            watch.note(f"written in {dtype}; asking it {len(heard.prompts)} held-out prompts")
            trusted = chosen.of.recipe.model.path in TRUSTED.get()
            again = load_base(folder, dtype, chosen.of.device, trusted=trusted)
            proof = compare(again, heard, plain, dtype)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                "the model in full precision does not fit on the GPU; hide it "
                "(CUDA_VISIBLE_DEVICES=) to merge on the CPU"
            ) from error
        if failure := proof.failure():
            raise ModelError(f"the merge failed its proof and nothing was written: {failure}")
        about = {
            "run": chosen.of.facts["run"],
            "mix": mix,
            "round": chosen.round,
            "base_digest": chosen.of.facts["base_digest"],
            "adapter_sha256": sha256(chosen.folder / WEIGHTS),
        }
        write_json_atomic(folder / PROOF, {**asdict(proof), **about})
    return proof


def _merged(
    chosen: Chosen, examples: Sequence[Example], folder: Path, dtype: str
) -> tuple[Heard, list[torch.Tensor]]:
    """Fill the folder; what base + adapter said before, and the base alone."""
    base = _widened(chosen.of.base(quantized=False), dtype)
    name = "adapter"
    lora = StackedLora(base, chosen.of.recipe.lora.targets, {name: adapter_spec(chosen.folder)})
    flat = load_adapter(chosen.folder, lora, name).to(base.net.device)
    with lora.wear({name: flat[None].to(base.dtype)}, [name]):
        heard = listen(base, examples)
    plain = logits_along(base, heard.prompts, heard.rows)
    merge_into_base(lora, name, flat)
    save_merged(base, folder, dtype)
    return heard, plain


def _widened(base: BaseModel, dtype: str) -> BaseModel:
    """The weights that were trained over, computing in fp32 at least: what is compared with must
    not itself be rounded."""
    wide = torch.promote_types(torch.promote_types(base.dtype, DTYPES[dtype]), torch.float32)
    nn.Module.to(base.net, wide)
    if wide == torch.float64:
        keep_norms_wide(base.net)
    return base


def _prompts(chosen: Chosen, clients: Sequence[ClientData] | None) -> list[Example]:
    """Held-out rows of the client whose model it is, or of all clients in turn."""
    run, recipe = chosen.of, chosen.of.recipe
    if run.facts["from_python"].get("clients") and clients is None:
        raise RunError(
            f"{run.run.root} was started from Python with its own clients, of which a merge needs "
            "the held-out rows: pass them to fedsdr.merge"
        )
    federation = given(clients, recipe) or load_federation(recipe)
    asked = [c for c in federation.clients if chosen.client in (None, c.client_id)]
    by_client = [(*c.test, *c.validation) for c in asked]
    examples = [e for e in chain(*zip_longest(*by_client)) if e is not None]
    if not examples:
        raise RunError(
            f"{run.run.root} holds no rows back (data.validation and data.test are 0), so that "
            "nothing can prove a merge"
        )
    return examples
