"""Adapter files: PEFT reads ours, we read PEFT's, and nothing else gets in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fedsdr.errors import AdapterError
from fedsdr.model.adapters import (
    BASE_DIGEST,
    adapter_notes,
    base_name,
    load_adapter,
    save_adapter,
    write_tensors,
)
from fedsdr.model.base import BaseModel
from fedsdr.model.fresh import fresh_llama, save_folder
from fedsdr.model.loading import load_base
from fedsdr.model.lora import BranchSpec, StackedLora
from toy import SPECS

# PEFT asks transformers in a way that transformers means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
IDS = torch.tensor([[5, 40, 41, 42, 7], [9, 80, 81, 6, 6]])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MAGNITUDE = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"  # DoRA's
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def lora(base32: BaseModel) -> Iterator[StackedLora]:
    made = StackedLora(base32, "all-linear", SPECS)
    yield made
    made.remove()


@pytest.fixture
def flats(lora: StackedLora) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {b: 0.2 * torch.randn(lora.layouts[b].size, generator=random) for b in ("R", "S")}


@pytest.fixture
def saved(lora: StackedLora, flats: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_adapter(tmp_path / "r", lora, flats, ["R"])
    return tmp_path / "r"


@pytest.mark.parametrize("mix", [["R"], ["S"], ["R", "S"]])
def test_peft_loads_what_we_save(
    mix: list[str],
    lora: StackedLora,
    flats: dict[str, torch.Tensor],
    base32: BaseModel,
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    save_adapter(tmp_path / "adapter", lora, flats, mix)
    net = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(net, tmp_path / "adapter").eval()
    with torch.no_grad():
        with lora.wear({b: flats[b][None] for b in mix}, mix):
            ours = base32.logits(IDS)
        plain = base32.logits(IDS)
        difference = float((ours - theirs(IDS).logits).abs().max())
    assert difference <= 1e-5
    assert float((ours - plain).abs().max()) > 0.01
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["r"] == sum(SPECS[b].rank for b in mix)


def test_round_trip(lora: StackedLora, flats: dict[str, torch.Tensor], saved: Path) -> None:
    assert torch.equal(load_adapter(saved, lora, "R").float(), flats["R"])


def test_the_folder_is_private_and_names_no_path_of_this_machine(saved: Path) -> None:
    assert saved.stat().st_mode & 0o077 == 0
    assert json.loads((saved / CONFIG).read_text())["base_model_name_or_path"] == "tiny"


def test_warm_start_from_an_adapter_that_peft_saved(
    lora: StackedLora, base32: BaseModel, tiny_folder: Path, tmp_path: Path
) -> None:
    """With another α than ours: it is folded into B, and the function is the same."""
    net = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    config = LoraConfig(
        r=2,
        lora_alpha=10,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = get_peft_model(net, config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    flat = load_adapter(tmp_path / "theirs", lora, "R")
    with torch.no_grad(), lora.wear({"R": flat[None].float()}, ["R"]):
        ours = base32.logits(IDS)
    with torch.no_grad():
        assert float((ours - theirs(IDS).logits).abs().max()) <= 1e-5


def config_of(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        config |= changes
        (folder / CONFIG).write_text(json.dumps(config))

    return change


def config_text(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / CONFIG).write_text(text)


def weights_of(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = {n: t.clone() for n, t in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])


def pickle_in_disguise(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / WEIGHTS)


def stored_as(dtype: torch.dtype) -> Callable[[Path], None]:
    return weights_of(lambda t: t.update({KEY: torch.zeros(2, 16).to(dtype)}))


def header_of(raw: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / WEIGHTS).write_bytes(raw)


def enormous_config(folder: Path) -> None:
    with (folder / CONFIG).open("r+b") as file:
        file.truncate(100 << 20)  # sparse, and read only as far as needed


def never_ending_config(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to("/dev/zero")


def never_ending_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pickled, "pickled weights are never loaded"),
        (pickle_in_disguise, "not a readable safetensors file"),
        (truncated, "not a readable safetensors file"),
        (lambda folder: (folder / CONFIG).unlink(), "not a PEFT adapter folder"),
        (config_text("{"), "not valid JSON"),
        (lambda folder: (folder / CONFIG).write_bytes(b"\xff"), "not valid JSON"),
        (config_text("[]"), "not a JSON object"),
        (lambda folder: (folder / CONFIG).write_text("[" * 100_000), "not valid JSON"),
        (
            lambda folder: (folder / CONFIG).write_text('{"r": ' + "9" * 9999 + "}"),
            "not valid JSON",
        ),
        (lambda folder: (folder / CONFIG).write_text("{}"), "peft_type is missing"),
        (enormous_config, "larger than 1 MiB"),
        (never_ending_config, "not a PEFT adapter folder"),
        (config_of(peft_type="IA3"), "peft_type: 'IA3' is not supported"),
        (config_of(task_type="SEQ_CLS"), "task_type: 'SEQ_CLS' is not supported"),
        (config_of(auto_exec="rm"), "key 'auto_exec' is not known to be harmless"),
        (config_of(use_dora=True), "use_dora: True is not supported; it has to be false or null"),
        (config_of(rank_pattern={"q_proj": 4}), "rank_pattern"),
        (config_of(arrow_config={"router": 1}), "arrow_config"),
        (config_of(velora_config={"rank": 1}), "'velora_config' is not known to be harmless"),
        (config_of(modules_to_save="\x1b[2J" * 99_999), "modules_to_save"),
        (config_of(target_modules=["q_proj"]), "target_modules does not name '.*k_proj'"),
        (config_of(target_modules=[1]), "target_modules must be a list of names or one pattern"),
        (config_of(target_modules={"q_proj": 1}), "target_modules must be a list of names"),
        (config_of(use_rslora=True), "use_rslora: True is not supported"),
        (config_of(bias="all"), "bias: 'all' is not supported"),
        (config_of(modules_to_save=["lm_head"]), "modules_to_save"),
        (config_of(alpha_pattern={"q_proj": 3}), "alpha_pattern"),
        (config_of(init_lora_weights="pissa"), "init_lora_weights: 'pissa' is not supported"),
        (config_of(r=4), r"rank is 4, the recipe's 2; set lora.R.rank: 4"),
        (config_of(r="2"), "r must be a whole number"),
        (config_of(r=True), "r must be a whole number"),
        (config_of(r=0), "r must be a whole number above 0"),
        (config_of(r=10**400), "r must be a whole number"),
        (config_of(lora_alpha=None), "lora_alpha must be a number"),
        (config_of(lora_alpha=False), "lora_alpha must be a number"),
        (config_of(lora_alpha=10**400), "lora_alpha must be a number"),
        (config_of(lora_alpha=1e300), "no finite numbers"),
        (config_of(lora_alpha=float("nan")), "lora_alpha must be a number"),
        (config_of(lora_alpha=float("inf")), "lora_alpha must be a number"),
        (weights_of(lambda t: t.pop(KEY)), "is missing; is it an adapter of this base"),
        (weights_of(lambda t: t.update({KEY: torch.ones(2, 8)})), r"has shape \(2, 8\)"),
        (weights_of(lambda t: t.update({KEY: torch.ones(1, 16)})), r"has shape \(1, 16\)"),
        (weights_of(lambda t: t.update(extra=torch.ones(1))), "'extra' belongs to no layer"),
        (weights_of(lambda t: t[KEY].fill_(float("nan"))), "no finite numbers"),
        (weights_of(lambda t: t[KEY].fill_(float("-inf"))), "no finite numbers"),
        (stored_as(torch.int8), "stored as I8; it has to be one of F64, F32, F16, BF16"),
        (stored_as(torch.bool), "stored as BOOL"),
        (stored_as(torch.float8_e4m3fn), "stored as F8_E4M3"),
        (stored_as(torch.complex64), "stored as C64"),
        (weights_of(lambda t: t.update({"../../x": torch.ones(1)})), "'../../x' belongs to no"),
        (weights_of(lambda t: t.update({"x" * 99_999: torch.ones(1)})), "belongs to no layer"),
        (weights_of(lambda t: t.update({MAGNITUDE: torch.ones(16)})), "belongs to no layer"),
        (header_of((1 << 62).to_bytes(8, "little")), "not a readable safetensors file"),
        (header_of(b""), "not a readable safetensors file"),
        (header_of((8).to_bytes(8, "little") + b"\xff" * 8), "not a readable safetensors file"),
        (never_ending_weights, "not a PEFT adapter folder"),
    ],
)
def test_a_spoiled_adapter_is_refused(
    spoil: Callable[[Path], Any], said: str, lora: StackedLora, saved: Path
) -> None:
    spoil(saved)
    with pytest.raises(AdapterError, match=said) as caught:
        load_adapter(saved, lora, "R")
    assert str(saved) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_real_dtype_is_read(dtype: torch.dtype, lora: StackedLora, saved: Path) -> None:
    before = load_adapter(saved, lora, "R")
    weights_of(lambda t: t.update({n: x.to(dtype) for n, x in t.items()}))(saved)
    assert torch.allclose(load_adapter(saved, lora, "R"), before, atol=1e-2)


@pytest.mark.parametrize("targets", ["all-linear", "(a+)+$", None, ["q_proj", "extra"]])
def test_a_pattern_of_layers_is_never_run(targets: Any, lora: StackedLora, saved: Path) -> None:
    """`(a+)+$` takes forever on some names; what is adapted is read off the tensors."""
    if isinstance(targets, list):
        targets = [*targets, *lora.target_modules()]
    config_of(target_modules=targets)(saved)
    load_adapter(saved, lora, "R")


def test_links_to_files_are_followed(lora: StackedLora, saved: Path, tmp_path: Path) -> None:
    """The hub's cache is made of them."""
    (tmp_path / "linked").mkdir()
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "linked" / name).symlink_to(saved / name)
    assert torch.equal(load_adapter(tmp_path / "linked", lora, "R"), load_adapter(saved, lora, "R"))


def test_a_file_larger_than_memory_is_refused_before_it_is_opened(
    lora: StackedLora, saved: Path
) -> None:
    """A terabyte, sparse."""
    with (saved / WEIGHTS).open("r+b") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("no sparse files of a terabyte here")
    with pytest.raises(AdapterError, match="more than an adapter of these layers can have"):
        load_adapter(saved, lora, "R")


def test_equal_adapters_are_equal_bytes(
    lora: StackedLora, flats: dict[str, torch.Tensor], saved: Path
) -> None:
    """safetensors alone would write the metadata in an order that changes between processes."""
    raw = (saved / WEIGHTS).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert json.loads(raw[8 : 8 + size])["__metadata__"] == {
        BASE_DIGEST: lora.base.digest,
        "format": "pt",
    }
    assert raw[8 : 8 + size].index(BASE_DIGEST.encode()) < raw[8 : 8 + size].index(b'"format"')
    again = {name: tensor.clone() for name, tensor in load_file(saved / WEIGHTS).items()}
    for number in range(8):
        write_tensors(saved / f"{number}", again, {BASE_DIGEST: lora.base.digest})
        assert (saved / f"{number}").read_bytes() == raw


def test_no_folder_at_all(lora: StackedLora, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a PEFT adapter folder"):
        load_adapter(tmp_path / "nowhere", lora, "R")


def other_lora(folder: Path, base: BaseModel, width: int, layers: int) -> StackedLora:
    net = fresh_llama(base.tokenizer, width=width, layers=layers, heads=2, seed=7)
    save_folder(folder, net, base.tokenizer)
    return StackedLora(load_base(folder), "all-linear", {"R": BranchSpec(2, 4.0)})


def without_digest(folder: Path) -> None:
    """As others write adapters."""
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(("width", "layers"), [(32, 2), (16, 1), (16, 3)])
def test_an_adapter_of_a_base_of_other_shapes_is_refused(
    width: int, layers: int, saved: Path, base32: BaseModel, tmp_path: Path
) -> None:
    without_digest(saved)
    other = other_lora(tmp_path / "other", base32, width, layers)
    with pytest.raises(AdapterError, match=r"this base|belongs to no layer"):
        load_adapter(saved, other, "R")


def test_our_adapter_knows_its_base_even_among_models_of_the_same_shapes(
    lora: StackedLora, saved: Path, base32: BaseModel, tmp_path: Path
) -> None:
    other = other_lora(tmp_path / "other", base32, 16, 2)
    with pytest.raises(AdapterError, match="an adapter of another base"):
        load_adapter(saved, other, "R")
    assert adapter_notes(saved, lora) == ()


def test_a_foreign_adapter_that_names_another_base_is_noted(
    lora: StackedLora, saved: Path, base32: BaseModel, tmp_path: Path
) -> None:
    without_digest(saved)
    other = other_lora(tmp_path / "other", base32, 16, 2)
    load_adapter(saved, other, "R")  # nothing forbids it
    (note,) = adapter_notes(saved, other)
    assert "names the base 'tiny'" in note
    assert "'other'" in note
    config_of(base_model_name_or_path="somebody/tiny")(saved)
    assert adapter_notes(saved, lora) == ()
    config_of(base_model_name_or_path=None)(saved)
    assert "names no base" in adapter_notes(saved, lora)[0]


def test_a_base_from_the_hub_goes_by_its_name_and_revision() -> None:
    cached = Path("/home/me/hub/models--meta-llama--Llama-2-7b-hf/snapshots/0a1b2c")
    assert base_name(cached) == {
        "base_model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "revision": "0a1b2c",
    }
    assert base_name(Path("/home/me/models/mine")) == {"base_model_name_or_path": "mine"}
