"""Recomputed activations change nothing but memory."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsdr.errors import ModelError
from fedsdr.model.base import BaseModel
from fedsdr.model.checkpointing import with_checkpointing
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from fedsdr.parts.injection import Disturbance

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
LENGTHS, CHOSEN = torch.tensor([4, 3]), torch.tensor([[True] * 3, [True, True, False]])


@pytest.fixture
def own_base(tiny_folder: Path):
    return load_base(tiny_folder, "float64")


def gradient(base: BaseModel, lora: StackedLora, injected: bool = False) -> torch.Tensor:
    """Of two clients' branches, taken after the layers have taken them off again."""
    flats = torch.stack([lora.fresh("R", k) for k in range(2)]).double()
    flats += 0.01 * torch.randn(
        flats.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    leaf, noise = flats.requires_grad_(), [torch.Generator().manual_seed(k) for k in range(2)]
    drawn = Disturbance(rho_attention=1.0, warmup=0.0)
    at_work = drawn.draw(noise, LENGTHS, [0.5, 0.5]) if injected else None
    with lora.wear({"R": leaf}, ["R"], injected=at_work):
        outputs, _ = base.predictions(IDS, LENGTHS, CHOSEN)
        loss = outputs.logits().square().sum()
    (found,) = torch.autograd.grad(loss, leaf)
    return found


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("injected", [False, True])
def test_gradients_are_the_same(own_base: BaseModel, packing: bool, injected: bool):
    plain = replace(own_base, packing=packing)
    lora = StackedLora(plain, "all-linear", {"R": BranchSpec(2, 4.0)})
    wanted = gradient(plain, lora, injected)
    assert wanted.abs().max() > 0
    found = gradient(with_checkpointing(plain), lora, injected)
    assert torch.equal(found, wanted)


def test_what_enters_the_layers_is_all_that_is_kept(own_base: BaseModel):
    lora = StackedLora(own_base, "all-linear", {"R": BranchSpec(2, 4.0)})

    def saved(base: BaseModel) -> int:
        sizes = dict[int, int]()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        leaf = lora.fresh("R", 1)[None].double().requires_grad_()
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
            lora.wear({"R": leaf}, ["R"]),
        ):
            base.predictions(IDS, LENGTHS, CHOSEN)
        return sum(sizes.values())

    before = saved(own_base)
    assert saved(with_checkpointing(own_base)) < before / 3


def test_generation_keeps_its_cache(own_base: BaseModel):
    base = with_checkpointing(own_base)
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        _, cache = base.generation(IDS, mask, mask.cumsum(1) - 1, None)
    assert cache.get_seq_length() == 4


def test_a_model_without_such_layers_is_refused(own_base: BaseModel):
    own = own_base.net.model.layers
    own_base.net.model.layers = torch.nn.ModuleList()
    try:
        with pytest.raises(ModelError, match="checkpointing: false"):
            with_checkpointing(own_base)
    finally:
        own_base.net.model.layers = own
