"""The recipes for real models: counted on paper at the true dimensions, and planned for real on a
stand-in of the same architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from families import add_tokens, family_folder, published_folder
from fedsdr.cli.app import app
from fedsdr.errors import ModelError, RecipeError
from fedsdr.jobs.plan import Plan, make_plan, plan_on_paper
from fedsdr.model.base import count_parameters, linear_layers
from fedsdr.model.loading import load_base
from fedsdr.model.outline import outline_base
from fedsdr.recipe.settings import Recipe, read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")  # of Llama 3's template
ROW = {"instruction": "Name the capital of the country.", "input": "France", "output": "Paris."}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a recipe without any of our code."""

    model: str
    stand_in: str
    parameters: int
    lora: int  # numbers of R: rank * (in + out) of every adapted layer
    clients: int
    sampled: int
    rounds: int
    steps: int  # of one client in one round


# q and v of 32 layers, 4096 -> 4096, rank 32.
LLAMA_2 = 32 * 2 * 32 * (4096 + 4096)
# q and o, k and v (8 of 32 heads), gate and up, down; rank 16, 32 layers.
LLAMA_3 = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
# The same of width 896, keys of 2 heads of 64, rank 8, 24 layers.
QWEN = 24 * 8 * (2 * (896 + 896) + 2 * (896 + 128) + 3 * (896 + 4864))
KNOWN: Mapping[str, Known] = {
    "fedsdr-paper": Known("Llama-2-7b", "llama, wide", 6738415616, LLAMA_2, 5, 5, 100, 20),
    "openfedllm": Known("Llama-2-7b", "llama, wide", 6738415616, LLAMA_2, 20, 2, 200, 10),
    "gpu-24gb-4bit": Known("Llama-3.1-8B", "llama, wide", 8030261248, LLAMA_3, 4, 4, 20, 40),
    "laptop-0.5b": Known("Qwen2.5-0.5B", "qwen2", 494032768, QWEN, 4, 4, 5, 20),
}
MEMORY = {"fedsdr-paper": 80, "gpu-24gb-4bit": 24, "laptop-0.5b": 8}  # GB, where run.stack is auto


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the recipes name, at the place that they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in KNOWN:
        chosen = read_recipe(RECIPES / f"{name}.yaml").data
        for path in [chosen.file] if chosen.file else (chosen.files or {}).values():
            rows = [{**ROW, "domain": f"d{i % 4}"} for i in range(400)]
            Path(str(path)).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def wanted(name: str, folder: Path, *changes: str) -> Recipe:
    changed = (f"model.path={json.dumps(str(folder))}", "run.threads=1", *changes)
    return read_recipe(RECIPES / f"{name}.yaml", changed)


def published(data: Path, model: str) -> Path:
    folder = published_folder(data / "model", model)
    add_tokens(folder, TOKENS)
    return folder


def on_paper(name: str, data: Path, *changes: str, tflops: float | None = None) -> Plan:
    folder = published(data, KNOWN[name].model)
    memory = round(MEMORY[name] * 1e9) if name in MEMORY else None
    return plan_on_paper(wanted(name, folder, *changes), memory, tflops)


@pytest.mark.parametrize("name", KNOWN)
def test_counts_on_paper_at_true_dimensions(name: str, data: Path) -> None:
    known, plan = KNOWN[name], on_paper(name, data)
    assert plan.problems == ()
    assert plan.model.parameters == known.parameters
    assert plan.model.trainable["R"] == known.lora
    assert (len(plan.clients), plan.sampled, plan.rounds) == (
        known.clients,
        known.sampled,
        known.rounds,
    )
    assert plan.total_steps == known.steps * known.sampled * known.rounds
    one = 4 * known.lora
    assert (plan.traffic.up_client, plan.traffic.down_client) == (one, one)
    assert plan.traffic.up_round == known.sampled * one
    assert plan.traffic.total == 2 * known.sampled * known.rounds * one
    branches = len(plan.model.trainable)
    assert plan.memory.branches == plan.stack * 4 * (6 * branches + 4) * known.lora
    assert plan.duration is None


def test_bytes_of_an_eight_bit_base(data: Path) -> None:
    """A byte a weight and an fp32 scale an output; embedding, head and norms in bfloat16; two
    buffers of 64 rotary frequencies in fp32."""
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    scales = 4 * 32 * (4 * 4096 + 2 * 11008 + 4096)
    rest = 2 * (2 * 32000 * 4096 + 65 * 4096) + 2 * 64 * 4
    assert on_paper("openfedllm", data).memory.base == weights + scales + rest


def test_bytes_of_a_four_bit_base(data: Path) -> None:
    """Half a byte a weight, a byte for 64 of them, four for 256 of these; and for each of the 7
    layers of a block what the 16 and the 256 codes mean, and a mean."""
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rest = 2 * (2 * 128256 * 4096 + 65 * 4096) + 2 * 64 * 4
    plan = on_paper("gpu-24gb-4bit", data)
    constants = weights // 64 + weights // (64 * 256) * 4 + 32 * 7 * 4 * (16 + 256 + 1)
    assert plan.memory.base == weights // 2 + constants + rest
    assert plan.memory.total < 24e9


def test_a_tied_head_counts_once(data: Path) -> None:
    assert on_paper("laptop-0.5b", data).memory.base == 4 * 494032768 + 2 * 32 * 4


@pytest.mark.parametrize("checkpointing", [True, False])
def test_time_on_paper(checkpointing: bool, data: Path) -> None:
    """Two operations a weight forward, two for the gradient through it (and two where the layers
    are computed again), two for the own one of a trained weight; of the head, none again."""
    changes = f"model.checkpointing={str(checkpointing).lower()}"
    plan = on_paper("openfedllm", data, changes, tflops=50.0)
    client = plan.clients[0]
    tokens = 16 * (client.prompt.longest + client.response.longest)  # all rows are alike
    trained = 16 * client.trained_tokens / client.train
    frozen = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    # Two clients side by side: every token meets the branches of both.
    step = tokens * ((6 if checkpointing else 4) * (frozen + 2 * LLAMA_2) + 2 * 2 * LLAMA_2)
    step += trained * 4 * 32000 * 4096
    assert client.train >= 16
    assert plan.duration is not None
    assert plan.duration.training == pytest.approx(200 * 2 * 10 * step / 50e12)
    assert plan.duration.step == (pytest.approx(2 * step / 50e12),)
    assert plan.duration.rewriting is None


def test_memory_decides_how_many_stand_side_by_side(data: Path) -> None:
    folder = published(data, "Llama-3.1-8B")
    chosen = wanted("gpu-24gb-4bit", folder)
    stacks = [plan_on_paper(chosen, gb * 10**9).stack for gb in (10, 24, 80)]
    assert stacks == sorted(stacks)
    assert stacks[0] == 1 < stacks[-1]
    cramped = plan_on_paper(chosen, 6 * 10**9)
    assert "a step takes 1 of its 8 rows at a time, to fit" in cramped.notes
    (problem,) = cramped.problems
    assert "base and branches alone need" in problem
    with pytest.raises(RecipeError, match=r"--memory GB, or set run\.stack"):
        plan_on_paper(chosen)


def stand_in(name: str, path: Path) -> Path:
    """With as many positions as the recipes' rewriting prompts need."""
    folder = family_folder(path, KNOWN[name].stand_in)
    add_tokens(folder, TOKENS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


@pytest.mark.parametrize("name", KNOWN)
def test_plans_on_a_stand_in(name: str, data: Path) -> None:
    if read_recipe(RECIPES / f"{name}.yaml").model.quantize is not None:
        pytest.importorskip("bitsandbytes")
    known = KNOWN[name]
    smaller = ("model.device=cpu", "training.batch=2", "rewriting.batch=4")
    plan = make_plan(wanted(name, stand_in(name, data / "model"), *smaller))
    assert plan.problems == ()
    assert plan.duration is not None
    assert plan.total_steps == known.steps * known.sampled * known.rounds


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_paper_says_what_the_weights_say(family: str, data: Path) -> None:
    folder = family_folder(data / "model", family)
    changes = ("rewriting.max_new_tokens=8", "model.max_length=256", "run.stack=2")
    chosen = wanted("laptop-0.5b", folder, *changes)
    tried, counted = make_plan(chosen), plan_on_paper(chosen)
    assert tried.problems == ()
    digest, notes = tried.model.digest, tried.notes
    assert replace(tried, duration=None, model=replace(tried.model, digest=""), notes=()) == (
        replace(counted, notes=())
    )
    assert digest
    assert set(notes) < set(counted.notes)


@pytest.mark.parametrize("algorithm", ["fedper", "flora", "scaffold", "fdsp", "central"])
def test_other_algorithms_on_paper(algorithm: str, data: Path) -> None:
    """They begin branches their own way, and none of it needs a number."""
    folder = family_folder(data / "model", "llama")
    changes = (
        f"algorithm={{name: {algorithm}}}",
        "training.optimizer=sgd",
        "model.max_length=256",
        "run.stack=2",
    )
    chosen = wanted("laptop-0.5b", folder, *changes)
    tried, counted = make_plan(chosen), plan_on_paper(chosen)
    assert (counted.problems, counted.traffic) == (tried.problems, tried.traffic)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantised_base_takes_what_paper_says(quantize: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = family_folder(tmp_path / "model", "llama, wide")
    base, paper = (load(folder, quantize=quantize) for load in (load_base, outline_base))
    assert count_parameters(base.net) == count_parameters(paper.net)
    head = base.net.get_output_embeddings()
    layers: dict[str, Any] = linear_layers(base.net)
    for name, layer in layers.items():
        if layer is head:
            continue
        weight: Any = layer.get_parameter("weight")
        if quantize == "4bit":
            state = weight.quant_state
            kept = (state.absmax, state.code, state.offset)
            kept += (state.state2.absmax, state.state2.code)
            size = weight.nbytes + sum(tensor.nbytes for tensor in kept)
        else:
            size = weight.nbytes + layer.state.SCB.nbytes
        assert paper.net.get_parameter(f"{name}.weight").nbytes == size


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_command(data: Path) -> None:
    folder = published_folder(data / "model", "Qwen2.5-0.5B")
    recipe = str(RECIPES / "laptop-0.5b.yaml")
    given = (
        recipe,
        "--on-paper",
        "--memory",
        "8",
        "--tflops",
        "0.2",
        "--set",
        f"model.path={folder}",
    )
    shown = cli(*given)
    assert shown.exit_code == 0, shown.output
    assert "494,032,768 in float32 on cpu" in shown.output
    assert "no weights were read" in shown.output
    assert "of training" in shown.output
    plan = json.loads(cli(*given, "--json").stdout)
    assert plan["traffic"]["total"] == 2 * 4 * 5 * 4 * QWEN
    refused = cli(recipe, "--memory", "8", "--set", f"model.path={folder}")
    assert refused.exit_code == 2
    assert "add --on-paper" in refused.output


def test_a_folder_that_is_no_model(data: Path) -> None:
    folder = published_folder(data / "model", "Qwen2.5-0.5B")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(ModelError, match="tokens up to 300, the model's embedding 100 rows"):
        plan_on_paper(wanted("laptop-0.5b", folder, "run.stack=1"))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        plan_on_paper(wanted("laptop-0.5b", folder, "run.stack=1"))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        plan_on_paper(wanted("laptop-0.5b", folder, "run.stack=1"))
    with pytest.raises(ModelError, match="does not exist"):
        plan_on_paper(wanted("laptop-0.5b", data / "nothing", "run.stack=1"))
