"""Stacked LoRA computes what PEFT's LoRA computes, and K clients what each alone computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from fedsdr.errors import ModelError
from fedsdr.model import flat as packed
from fedsdr.model.base import BaseModel
from fedsdr.model.flat import make_blocks
from fedsdr.model.fresh import train_tokenizer
from fedsdr.model.loading import keep_norms_wide, load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from toy import SPECS, TEXTS, loud

# PEFT asks transformers in a way that transformers means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[5, 40, 41, 42, 7], [9, 80, 81, 6, 6]])


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transposed layers (Conv1D), tied head, no chat template."""
    folder = tmp_path_factory.mktemp("base") / "gpt2"
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.chat_template = None
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        eos_token_id=1,
        bos_token_id=1,
    )
    loud(GPT2LMHeadModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def stacked(base64: BaseModel) -> Iterator[Callable[..., StackedLora]]:
    made: list[StackedLora] = []

    def make(targets: str = "all-linear", base: BaseModel = base64) -> StackedLora:
        made.append(StackedLora(base, targets, SPECS))
        return made[-1]

    yield make
    for lora in made:
        lora.remove()


def noisy(lora: StackedLora, branch: str, clients: int, seed: int = 1) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    size = lora.layouts[branch].size
    return 0.2 * torch.randn((clients, size), generator=random, dtype=torch.float64)


def with_peft(
    folder: Path, lora: StackedLora, flat: torch.Tensor, spec: BranchSpec
) -> PreTrainedModel:
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    keep_norms_wide(net)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=lora.target_modules(),
        fan_in_fan_out=lora.transposed(),
    )
    model = get_peft_model(net, config, autocast_adapter_dtype=False).eval()
    named, state = lora.layouts["R"].named(flat), {}
    for layer in lora.layers:
        for half in "AB":
            key = f"base_model.model.{layer}.lora_{half}.default.weight"
            state[key] = named[f"{layer}.{half}"]
    _missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert len(state) == sum("lora_" in name for name, _ in model.named_parameters())
    return model


@pytest.mark.parametrize("targets", ["all-linear", "q_proj|v_proj", r"model\.layers\.0\..*"])
def test_logits_are_pefts(
    targets: str, base64: BaseModel, tiny_folder: Path, stacked: Callable[..., StackedLora]
) -> None:
    lora = stacked(targets)
    flat = noisy(lora, "R", 1)
    with torch.no_grad():
        plain = base64.logits(IDS)
        with lora.wear({"R": flat}, ["R"]):
            ours = base64.logits(IDS)
        theirs = with_peft(tiny_folder, lora, flat[0], SPECS["R"])(IDS).logits
    assert float((ours - theirs).abs().max()) <= 1e-9
    assert float((ours - plain).abs().max()) > 1e-3


def test_logits_are_pefts_on_gpt2s_transposed_layers(
    gpt2_folder: Path, stacked: Callable[..., StackedLora]
) -> None:
    base = load_base(gpt2_folder, "float64")
    assert base.notes
    lora = stacked(base=base)
    assert lora.transposed()
    assert {n.rsplit(".", 1)[-1] for n in lora.layers} == {"c_attn", "c_proj", "c_fc"}
    flat = noisy(lora, "R", 1)
    with torch.no_grad(), lora.wear({"R": flat}, ["R"]):
        ours = base.logits(IDS)
    with torch.no_grad():
        theirs = with_peft(gpt2_folder, lora, flat[0], SPECS["R"])(IDS).logits
    assert float((ours - theirs).abs().max()) <= 1e-9


def test_each_clients_rows_meet_its_own_branches(
    base64: BaseModel, stacked: Callable[..., StackedLora]
) -> None:
    lora = stacked()
    flats = {"R": noisy(lora, "R", 3), "S": noisy(lora, "S", 3, seed=2)}
    ids = torch.randint(5, 300, (6, 7), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        with lora.wear(flats, ["R", "S"]):
            together = base64.logits(ids)
        for k in range(3):
            own = {b: flat[k : k + 1] for b, flat in flats.items()}
            with lora.wear(own, ["R", "S"]):
                alone = base64.logits(ids[2 * k : 2 * k + 2])
            assert torch.allclose(together[2 * k : 2 * k + 2], alone, rtol=0, atol=1e-9)


def test_packed_clients_are_the_same_apart_and_side_by_side(
    base64: BaseModel, stacked: Callable[..., StackedLora], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora, lengths = stacked(), torch.tensor([5, 2, 3, 4, 1, 5])  # of two rows per client
    ids = torch.arange(10, 40).view(6, 5)
    chosen = torch.arange(4) < (lengths - 1)[:, None]
    found = list[tuple[torch.Tensor, torch.Tensor]]()
    for many in (1 << 40, 1):
        monkeypatch.setattr(packed, "MANY", many)
        worn = noisy(lora, "R", 3).double().requires_grad_()
        with lora.wear({"R": worn}, ["R"]):
            logits = base64.predictions(ids, lengths, chosen)[0].logits()
        logits.square().sum().backward()
        assert worn.grad is not None
        found.append((logits.detach(), worn.grad))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
    assert not torch.equal(found[0][1][0], found[0][1][1])


def test_clients_with_few_tokens_are_multiplied_side_by_side() -> None:
    """As Atlas's are, whose trajectories are on record."""
    slots = torch.arange(8 * 512)
    rows = packed.Rows((512,) * 8, 512, slots, slots % 512, make_blocks((512,) * 8, 512, slots), {})
    assert rows.tokens(4) == [1024] * 4
    assert rows.many(8)
    assert not rows.many(9)


def test_two_branches_add_up_each_with_its_own_scale(
    base64: BaseModel, stacked: Callable[..., StackedLora]
) -> None:
    """h_out = W0 h + (α/r) B_s A_s h + (α/r) B_r A_r h, written out for one layer."""
    lora = stacked("down_proj")
    name = "model.layers.1.mlp.down_proj"
    layer = lora.layers[name]
    flats = {"R": noisy(lora, "R", 1), "S": noisy(lora, "S", 1, seed=2)}
    h = torch.randn((2, 3, lora.shapes[name][0]), dtype=torch.float64)
    with torch.no_grad(), lora.wear(flats, ["R", "S"]):
        ours = layer(h)
    expected = h @ layer.base.get_parameter("weight").T
    for branch, flat in flats.items():
        own = lora.layouts[branch].named(flat[0])
        expected = expected + SPECS[branch].scale * h @ own[f"{name}.A"].T @ own[f"{name}.B"].T
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    with torch.no_grad(), lora.wear(flats, ["R", "S"], {"S": torch.zeros(1, dtype=torch.float64)}):
        off = layer(h)
    with torch.no_grad(), lora.wear(flats, ["R"]):
        assert torch.allclose(off, layer(h), rtol=0, atol=1e-12)


def test_a_fresh_branch_changes_nothing_and_starts_as_pefts_does(
    base64: BaseModel, stacked: Callable[..., StackedLora]
) -> None:
    lora = stacked()
    flat = lora.fresh("R", 5, "init", "R")
    assert torch.equal(flat, lora.fresh("R", 5, "init", "R"))
    assert not torch.equal(flat, lora.fresh("R", 6, "init", "R"))
    with torch.no_grad():
        plain = base64.logits(IDS)
        with lora.wear({"R": flat[None]}, ["R"]):
            assert torch.equal(base64.logits(IDS), plain)
    for name, tensor in lora.layouts["R"].named(flat).items():
        if name.endswith(".B"):
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            assert 0.5 * bound < float(tensor.abs().max()) <= bound


def test_taken_off_even_after_an_error_and_given_back_as_it_was(base64: BaseModel) -> None:
    kinds = [type(m).__name__ for m in base64.net.modules()]
    lora = StackedLora(base64, "all-linear", SPECS)
    flat = noisy(lora, "R", 1)
    plain = base64.logits(IDS)
    with pytest.raises(ZeroDivisionError), lora.wear({"R": flat}, ["R"]):
        _ = 1 / 0
    assert torch.equal(base64.logits(IDS), plain)
    with pytest.raises(ModelError, match="already wears"):
        StackedLora(base64, "all-linear", SPECS)
    lora.remove()
    assert [type(m).__name__ for m in base64.net.modules()] == kinds


def test_the_head_is_not_adapted(stacked: Callable[..., StackedLora]) -> None:
    assert not any("lm_head" in name for name in stacked().layers)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (
            "q_prj",
            r"matches no linear layer.*its layers are called .*down_proj.*Did you mean 'q_proj'",
        ),
        ("(", "is no regular expression"),
        ("", "matches no linear layer"),
        ("lm_head", "matches no linear layer"),
        ("proj", "matches no linear layer"),
    ],
)
def test_a_pattern_that_cannot_be_used(targets: str, said: str, base64: BaseModel) -> None:
    with pytest.raises(ModelError, match=said):
        StackedLora(base64, targets, SPECS)
    StackedLora(base64, "all-linear", SPECS).remove()


def test_flat_and_named_are_the_same_numbers(stacked: Callable[..., StackedLora]) -> None:
    layout = stacked().layouts["S"]
    flat = torch.arange(layout.size, dtype=torch.float64)
    assert torch.equal(layout.flat(layout.named(flat), torch.float64, torch.device("cpu")), flat)
    a, b = layout.columns("A"), layout.columns("B")
    assert torch.equal(torch.cat([a, b]).sort().values, torch.arange(layout.size))
