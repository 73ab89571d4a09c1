"""A plan says beforehand what the run then does, and refuses what cannot work."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from families import family_folder
from fedsdr.algorithms.fedsdr import fedsdr
from fedsdr.data.render import render, render_prompt
from fedsdr.errors import DataError, FedsdrError, ModelError, RecipeError
from fedsdr.jobs.assembly import ATLAS_BASE, assemble, local_settings
from fedsdr.jobs.plan import Plan, estimate, make_plan, plan_json
from fedsdr.jobs.plan import make as making
from fedsdr.jobs.plan.estimate import estimate_memory
from fedsdr.jobs.plan.questions import Faults, read_client
from fedsdr.jobs.sources import load_federation
from fedsdr.jobs.train import train
from fedsdr.model.base import BaseModel, held_bytes
from fedsdr.model.fresh import train_tokenizer
from fedsdr.model.loading import load_base
from fedsdr.model.lora import StackedLinear
from fedsdr.model.outline import outline_base
from fedsdr.parts.algorithm import Algorithm, Fade, Stage, Term, When
from fedsdr.parts.views import Raw, Rewritten
from fedsdr.recipe.settings import Recipe, build_recipe
from fedsdr.training.stage import StageJob, StageResult, train_stage
from fedsdr.types import ClientData, Example

TINY: Mapping[str, Any] = {
    "data": {"atlas": {"clients": 3, "examples": 10, "public": 0}},
    "lora": {"R": {"rank": 2}, "S": {"rank": 3}},
    "training": {"rounds": 2, "local_epochs": 1.0, "batch": 4},
    "rewriting": {"max_new_tokens": 8},
    "run": {"threads": 1, "stack": 2},
}
SECRET = "Zanzibarquelle"
REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception(messages[0].content) }}{% endif %}"
)
FORGETS = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(ATLAS_BASE)


def recipe(changes: Mapping[str, Any] | None = None) -> Recipe:
    """TINY with `section.key` changes on top."""
    tree = json.loads(json.dumps(TINY))
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return build_recipe(tree)


def client(name: str = "a", responses: Sequence[str] = ("Blue.",), **given: Any) -> ClientData:
    rows = tuple(Example(f"{name}-{i}", "Which colour?", r) for i, r in enumerate(responses))
    return ClientData(name, rows, **given)


def told(problems: Sequence[str], *words: str) -> bool:
    return any(all(word in problem for word in words) for problem in problems)


def is_plain(net: nn.Module) -> bool:
    return not any(isinstance(module, StackedLinear) for module in net.modules())


# --- what it counts ---


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm.name": "fedsdr", "training.participation": 0.5, "training.rounds": 3},
        {
            "algorithm.name": "fedsdr",
            "algorithm.options": {"schedule": "warmup"},
            "lora.S": {"rank": 5},
        },
        {"algorithm.name": "fedsdr", "algorithm.options": {"schedule": "joint"}},
        {
            "algorithm.name": "fedsd",
            "algorithm.options": {"teacher": "global", "redistill_every": 2},
            "training.rounds": 4,
            "training.participation": 2,
        },
        {"algorithm.name": "central"},
        {"algorithm.name": "local", "training.local_steps": 3},
    ],
    ids=["fedsdr", "warmup", "joint", "global-teacher", "central", "local"],
)
def test_the_run_does_what_the_plan_says(
    changes: Mapping[str, Any], base: BaseModel, tmp_path: Path
) -> None:
    wanted, sizes = recipe(changes), {"a": 9, "b": 2, "c": 5}
    data = [client(name, [f"It is {i}." for i in range(size)]) for name, size in sizes.items()]
    plan = make_plan(wanted, base, clients=data)
    assert plan.problems == ()
    results = train(wanted, tmp_path / "run", base=base, clients=data)
    assert plan.total_steps == results["steps"]
    assert plan.traffic.total == results["bytes_up"] + results["bytes_down"]
    cached = [
        line
        for file in (tmp_path / "run" / "rewrites").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert plan.rewriting.drafts == len(cached)


def test_the_clients_as_they_are(base: BaseModel) -> None:
    wanted = recipe()
    plan = make_plan(wanted, base)
    for row, data in zip(plan.clients, load_federation(wanted).clients, strict=True):
        rendered = [render(base, e, 1024) for e in data.train]
        assert (row.client_id, row.train, row.validation, row.test) == (
            data.client_id,
            len(data.train),
            len(data.validation),
            len(data.test),
        )
        assert sum(row.domains.values()) == row.train
        assert row.trained_tokens == sum(r.trained for r in rendered)
        assert row.response.longest == max(r.trained for r in rendered)
        assert row.prompt.longest == max(len(r.ids) - r.trained for r in rendered)
        assert row.truncated == 0


def test_the_model_and_the_algorithm_as_they_are(base: BaseModel) -> None:
    plan = make_plan(recipe(), base)
    model = plan.model
    assert model.digest == base.digest
    assert model.parameters == base.net.num_parameters()
    assert (model.dtype, model.template) == ("float32", "the tokenizer's own")
    assert len(model.layers) == 7 * 4
    assert model.trainable["S"] * 2 == model.trainable["R"] * 3  # ranks 2 and 3
    assert plan.traffic.up_client == 4 * model.trainable["R"]
    assert plan.traffic.up_round == 3 * plan.traffic.up_client
    smooth, rectify = plan.algorithm.stages
    assert "train S on the answers as the base rewrites them" in smooth
    assert "through W0+R+S" in smooth
    assert "train R on the raw answers through W0+R+S" in rectify
    assert plan.algorithm.shared.startswith("R:")
    assert plan.algorithm.stays.startswith("S ")
    assert plan.algorithm.deploys == {"global": "W0+R", "personal": "W0+R+S"}
    assert plan.duration is not None
    assert min(plan.duration.training, plan.duration.rewriting, *plan.duration.step) > 0
    assert any("embedded world" in note for note in plan.notes)


def test_files_are_told_with_shape_and_columns(base: BaseModel, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Say {i}", "output": f"{i}!"} for i in range(12)]
    file.write_text("\n".join(map(json.dumps, rows)))
    plan = make_plan(recipe({"data": {"files": {"clinic": str(file)}}}), base)
    assert plan.problems == ()
    (note,) = (n for n in plan.notes if str(file) in n)
    assert "12 rows" in note
    assert "alpaca" in note
    assert "'instruction'" in note


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "atlas"])
def test_what_autograd_keeps_lies_within_the_estimate(
    name: str, base: BaseModel, tmp_path: Path
) -> None:
    used = base if name == "atlas" else load_base(folder(tmp_path, name))
    wanted = recipe({"algorithm.name": "fedavg"})
    experiment = assemble(wanted, used)
    try:
        group = experiment.federation.clients[:2]
        read = {c.client_id: read_client(experiment, c, Faults())[1] for c in group}
        rows = {c: [max(own, key=lambda r: len(r.ids))] * 4 for c, own in read.items()}
        kept = dict[int, torch.Tensor]()

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        local = replace(local_settings(wanted), steps=1)
        flats, _ = experiment.branches.enter(experiment.branches.first(), [{}, {}])
        jobs = [StageJob(c, (own,), 1) for c, own in rows.items()]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            train_stage(experiment.lora, experiment.algorithm.stages[0], flats, jobs, local, 1e-3)
        frozen = {p.untyped_storage().data_ptr() for p in used.net.parameters()}
        measured = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in frozen)
        estimated = estimate_memory(experiment, rows).activations
    finally:
        experiment.close()
    assert measured <= estimated <= 2.5 * measured, estimated / measured


def test_memory_grows_with_what_is_stacked(base: BaseModel) -> None:
    one, two = (make_plan(recipe({"run.stack": k}), base).memory for k in (1, 2))
    assert one.base == two.base
    assert 2 * one.branches == two.branches
    assert 2 * one.activations == two.activations
    assert one.total == one.base + one.branches + one.activations


def test_time_grows_with_the_rounds(base: BaseModel) -> None:
    plan = make_plan(recipe({"algorithm.name": "fedavg", "training.rounds": 50}), base)
    assert plan.duration is not None
    (step,) = plan.duration.step
    assert plan.total_steps == 50 * sum(map(sum, plan.steps.values()))
    assert plan.duration.training == pytest.approx(step / 2 * plan.total_steps)
    assert plan.duration.rewriting == 0
    assert plan.rewriting.drafts == 0


# --- what it leaves alone, and keeps to itself ---


def test_nothing_is_written_and_the_base_is_given_back(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    threads, before = torch.get_num_threads(), torch.random.get_rng_state()
    changes = {"rewriting.cache": "cache", "run.threads": threads + 1}
    make_plan(recipe(changes), base)
    assert torch.get_num_threads() == threads
    with pytest.raises(ModelError):
        make_plan(recipe({**changes, "lora.targets": "no_such_layer"}), base)
    assert list(tmp_path.iterdir()) == []
    assert is_plain(base.net)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_base_is_given_back_when_planning_fails(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "estimate_duration", fail)
    with pytest.raises(KeyboardInterrupt):
        make_plan(recipe(), base)
    assert is_plain(base.net)


def test_the_example_shows_what_is_trained(base: BaseModel) -> None:
    data = [client("a", [f"{SECRET} naïve 東京."])]
    plan = make_plan(recipe(), base, clients=data)
    trained = "".join(text for text, yes in plan.example if yes)
    read = "".join(text for text, yes in plan.example if not yes)
    assert f"{SECRET} naïve 東京." in trained
    assert "Which colour?" in read
    assert "Which colour?" not in trained
    assert len(plan.example) == len(render(base, data[0].train[0], 1024).ids)


def test_no_record_text_in_json_repr_or_problems(base: BaseModel) -> None:
    data = [
        client(
            "a", [f"{SECRET} {i}" for i in range(4)], validation=(Example("v", SECRET, SECRET),)
        ),
        ClientData("b", (Example("long", SECRET * 400, SECRET), Example("ok", "Hm?", SECRET))),
    ]
    plan = make_plan(recipe(), base, clients=data)
    assert plan.problems
    text = json.dumps(plan_json(plan)) + repr(plan)
    assert SECRET not in text
    assert json.loads(json.dumps(plan_json(plan)))["clients"][0]["train"] == 4
    assert "example" not in plan_json(plan)
    assert "example=" not in repr(plan)


# --- what it refuses ---


def refusals(wanted: Recipe, base: BaseModel) -> Sequence[str]:
    """Some of it is refused as early as where the recipe's parts are put together."""
    try:
        plan = make_plan(wanted, base)
    except FedsdrError as error:
        return (str(error),)
    assert plan.duration is None
    return plan.problems


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training.min_lr": 1.0}, ["training.min_lr", "training.lr"]),
        ({"training.micro_batch": 5}, ["training.micro_batch (5)", "(4)"]),
        ({"training.participation": 4}, ["participation", "4 clients of 3"]),
        ({"training.participation": 1.5}, ["participation 1.5"]),
        ({"training.participation": 0.5, "training.quorum": 3}, ["quorum (3)", "2 of 3"]),
        ({"algorithm.name": "central", "training.quorum": 2}, ["quorum (2)", "pooled"]),
        ({"algorithm.selection": "facts"}, ["boosted: true", "options.selection"]),
        ({"algorithm.name": "fedavg", "algorithm.selection": "fact"}, ["selection 'fact'"]),
        ({"algorithm.name": "fedsd", "algorithm.boosted": True}, ["boosted changes nothing"]),
        ({"algorithm.options": {"redistill_every": 2}}, ["redistill_every", "teacher: global"]),
        (
            {"algorithm.options": {"schedule": "warmup", "warmup_rounds": 2}},
            ["stage 2 never runs", "training.rounds is 2"],
        ),
        (
            {"algorithm.options": {"schedule": "warmup", "warmup_rounds": 2}},
            ["shares R", "no stage trains"],
        ),
        (
            {"algorithm.options": {"schedule": "warmup", "s_state": "reset"}},
            ["s_state reset", "round 2"],
        ),
        (
            {"algorithm.options": {"smooth_epochs": 1.0}, "training.local_steps": 5},
            ["local_steps", "a stage of fedsdr"],
        ),
        ({"model.max_length": 10}, ["client 'c0', example 'c0-", "client 'c1'", "max_length (10"]),
        ({"model.max_length": 10}, ["client 'c0' has 0 tokens to train on"]),
        ({"rewriting.max_new_tokens": 1000}, ["client 'c0', example 'c0-", "max_new_tokens"]),
        (
            {
                "training.lr": 1000.0,
                "training.optimizer": "sgd",
                "training.clip": 1e9,
                "training.weight_decay": 1000.0,
                "lora.R.alpha": 1e9,
                "lora.S.alpha": 1e9,
            },
            ["no finite number", "float32"],
        ),
    ],
    ids=lambda value: "",
)
def test_refuses(changes: Mapping[str, Any], words: Sequence[str], base: BaseModel) -> None:
    problems = refusals(recipe(changes), base)
    assert told(problems, *words), problems


def test_all_problems_at_once(base: BaseModel) -> None:
    changes = {"training.min_lr": 1.0, "training.quorum": 9, "training.micro_batch": 9}
    wanted = recipe({**changes, "algorithm.selection": "facts", "model.max_length": 12})
    problems = make_plan(wanted, base).problems
    for words in (["min_lr"], ["quorum"], ["micro_batch"], ["booster"], ["the prompt alone"]):
        assert told(problems, *words), problems
    assert len(set(problems)) == len(problems)


def test_patience_needs_validation_rows(base: BaseModel) -> None:
    wanted = recipe({"evaluation.patience": 2})
    assert told(make_plan(wanted, base, clients=[client()]).problems, "evaluation.patience")
    with_rows = [client("a", validation=client("v").train)]
    assert make_plan(wanted, base, clients=with_rows).problems == ()


def raw(forward: str, train: str, **given: Any) -> Stage:
    return Stage((Term(Raw(), forward=forward, train=train, **given),))


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        (Algorithm("x", ()), ["shares R", "no stage trains"]),
        (Algorithm("x", (Stage(()),)), ["stage 1 trains nothing"]),
        (Algorithm("x", (raw("R", ""),)), ["stage 1 trains nothing"]),
        (Algorithm("x", (raw("R", "R", weight=0.0),)), ["stage 1 trains nothing"]),
        (Algorithm("x", (raw("S", "R"),)), ["trains R", "runs through S", "no gradient"]),
        (Algorithm("x", (raw("R", "R.C"),)), ["'R.C'", "R.A and R.B"]),
        (Algorithm("x", (raw("R.B", "R"),)), ["'R.B'", "whole branches"]),
        (Algorithm("x", (raw("R", "R", fade=Fade("S")),)), ["fades S"]),
        (Algorithm("x", (raw("R+S", "R"),), share="R+S"), ["shares S", "no stage trains"]),
        (Algorithm("x", (raw("R", "R.A"),), share="R.B"), ["shares R.B"]),
        (Algorithm("x", (replace(raw("R", "R"), epochs=0.0),)), ["stage 1", "0 epochs"]),
        (
            Algorithm("x", (replace(raw("R", "R"), epochs=1.0, part=0.5),)),
            ["stage 1", "match_compute"],
        ),
        (
            Algorithm("x", (raw("R", "R"), replace(raw("R+S", "S"), when=When(last=0)))),
            ["stage 2 never runs"],
        ),
        (Algorithm("x", (raw("R", "R"),), deploys={}), ["deploys nothing"]),
        (Algorithm("x", (raw("R", "R"),), deploys={"p": "R+S"}), ["deploys R+S", "trains S"]),
        (replace(fedsdr(), pool=True), ["pools all data", "S"]),
        (
            Algorithm("x", (replace(raw("R", "R"), when=When(first=2)),)),
            ["no stage runs in 1 rounds", "round 1"],
        ),
        (
            Algorithm(
                "x",
                (Stage((Term(Rewritten(teacher="global"), forward="R", train="R"),)),),
                share="",
            ),
            ["teacher global", "shares nothing"],
        ),
        (
            Algorithm(
                "x",
                (
                    Stage((Term(Rewritten(), forward="R", train="R"),)),
                    Stage((Term(Rewritten(teacher="global"), forward="R", train="R"),)),
                ),
            ),
            ["several teachers"],
        ),
    ],
    ids=lambda value: "",
)
def test_refuses_algorithms_without_a_meaning(
    algorithm: Algorithm, words: Sequence[str], base: BaseModel
) -> None:
    problems = make_plan(recipe(), base, algorithm).problems
    assert told(problems, *words), problems


@pytest.mark.parametrize("name", ["local", "central", "fedavg", "fedprox", "fedsd", "fedsdr"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_the_built_in_algorithms_pass(name: str, rounds: int, base: BaseModel) -> None:
    changes = {"algorithm.name": name, "training.rounds": rounds}
    assert make_plan(recipe(changes), base).problems == ()


@pytest.mark.parametrize(
    "ablation", ["without_s", "without_r", "share_both", "share_s", "r_on_rewritten", "s_on_raw"]
)
def test_the_ablations_pass(ablation: Any, base: BaseModel) -> None:
    wanted = recipe({"algorithm.options": {"ablation": ablation}})
    assert make_plan(wanted, base).problems == ()


@pytest.mark.parametrize(("share", "trains"), [("R.B", "R.B"), ("R.B", "R"), ("R", "R.B")])
def test_halves_of_a_branch_pass(share: str, trains: str, base: BaseModel) -> None:
    plan = make_plan(recipe(), base, Algorithm("half", (raw("R", trains),), share=share))
    assert plan.problems == ()
    whole = plan.traffic.up_client == 4 * plan.model.trainable["R"]
    assert whole == (share == trains == "R")  # what is not trained is not sent


def test_names_a_client_without_rows(base: BaseModel) -> None:
    problems = make_plan(recipe(), base, clients=[client(), client("empty", ())]).problems
    assert problems == ("client 'empty' has no training rows; leave it out",)


def test_names_a_client_whose_responses_are_all_cut(base: BaseModel) -> None:
    data = [client("short"), client("long", ["Blue and green and red. " * 30] * 2)]
    plan = make_plan(recipe({"model.max_length": 40}), base, clients=data)
    (problem,) = plan.problems
    assert "client 'long': every response is cut" in problem
    assert plan.clients[1].truncated == 2
    cut = [render(base, e, 40) for e in data[1].train]
    assert plan.clients[1].trained_tokens == sum(r.trained for r in cut)
    assert plan.clients[1].response.longest > cut[0].trained
    assert plan.clients[0].truncated == 0


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_names_the_example_whose_prompt_is_too_long(part: str, base: BaseModel) -> None:
    rows = {"train": client().train, "validation": (), "test": ()}
    rows[part] = (
        *rows[part],
        Example("huge", "why " * 300, "So."),
        Example("h2", "y " * 300, "So."),
    )
    wanted = recipe({"model.max_length": 64, "algorithm.name": "fedavg"})
    (problem,) = make_plan(wanted, base, clients=[ClientData("a", **rows)]).problems
    assert problem.startswith("client 'a', example 'huge' and 1 more: the prompt alone fills")


@pytest.mark.parametrize("room", [0, 1])
def test_draws_the_line_where_training_does(room: int, base: BaseModel) -> None:
    example = client().train[0]
    limit = len(render_prompt(base, example)) + room
    wanted = recipe({"model.max_length": limit, "algorithm.name": "fedavg"})
    too_long = told(make_plan(wanted, base, clients=[client()]).problems, "the prompt alone")
    try:
        render(base, example, limit)
    except DataError:
        assert too_long
    else:
        assert not too_long
    assert too_long == (room == 0)


def test_many_clients_with_one_problem_make_one_line(base: BaseModel) -> None:
    data = [ClientData(f"k{i:02}", (Example("e", "why " * 300, "So."),)) for i in range(20)]
    wanted = recipe({"model.max_length": 64, "algorithm.name": "fedavg"})
    problems = make_plan(wanted, base, clients=data).problems
    assert "and 12 more clients: the prompt alone" in problems[0]


@pytest.mark.parametrize(
    ("template", "name", "words"),
    [
        (FORGETS, "fedavg", ["client 'a', example 'a-0'", "renders earlier turns differently"]),
        (REFUSES_SYSTEM, "fedsd", ["client 'a', example 'a-0'", "refuses the conversation"]),
    ],
)
def test_names_a_template_that_does_not_fit(
    template: str, name: str, words: Sequence[str], base: BaseModel
) -> None:
    data = [ClientData("a", (Example("a-0", "Why?", "So."),))]
    wanted = recipe({"algorithm.name": name})
    problems = make_plan(wanted, replace(base, template=template), clients=data).problems
    assert told(problems, *words), problems
    assert "reference" not in " ".join(problems)  # what the template was given


def test_a_template_without_system_line_is_fine_where_none_is_written(base: BaseModel) -> None:
    speaks = REFUSES_SYSTEM + base.template
    wanted = recipe({"algorithm.name": "fedavg"})
    assert make_plan(wanted, replace(base, template=speaks), clients=[client()]).problems == ()


def test_memory_that_is_not_there(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "memory_there", lambda experiment: 1000)
    plan = make_plan(recipe(), base)
    assert told(plan.problems, "base and branches alone", "1,000")
    monkeypatch.setattr(
        making, "memory_there", lambda experiment: plan.memory.base + plan.memory.branches
    )
    tight = make_plan(recipe(), base)
    assert tight.problems == ()
    assert told(tight.notes, "bytes of memory are needed")


def test_few_steps_are_tried(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()

    def watched(*given: Any, **named: Any) -> StageResult:
        result = train_stage(*given, **named)
        tried.extend(result.steps)
        return result

    monkeypatch.setattr(estimate, "train_stage", watched)
    changes = {"training.local_steps": 500, "algorithm.options": {"match_compute": True}}
    make_plan(recipe(changes), base)
    assert tried == [1, 1, 2, 2] * 2  # two clients side by side, warmed up and timed, both stages


def test_a_trial_step_that_runs_out_of_memory(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(making, "estimate_duration", exhausted)
    assert told(make_plan(recipe(), base).problems, "ran out of memory", "run.stack")


def test_what_may_not_be_meant_is_only_noted(base: BaseModel) -> None:
    changes = {
        "run.threads": (os.cpu_count() or 1) + 1,
        "model.max_length": 5000,
        "training.min_lr": 1e-4,
        "training.participation": 1 / 3,
        "training.rounds": 1,
        "algorithm.name": "fedavg",
    }
    data = [client("a"), client("b"), client("c")]
    plan = make_plan(recipe(changes), base, clients=data)
    assert plan.problems == ()
    for words in (
        ["run.threads"],
        ["1024"],
        ["min_lr"],
        ["never asked"],
        ["no client has validation"],
    ):
        assert told(plan.notes, *words), plan.notes


@pytest.mark.parametrize("selection", ["best", "resample(0)"])
def test_a_selection_that_does_not_parse_is_an_error(selection: str, base: BaseModel) -> None:
    with pytest.raises(FedsdrError, match="selection"):
        make_plan(recipe({"algorithm.options": {"selection": selection}}), base)
    assert is_plain(base.net)


def test_what_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FedsdrError, match="does not exist"):
        make_plan(recipe({"model.path": str(tmp_path / "none")}))
    with pytest.raises(FedsdrError, match="no such file"):
        make_plan(recipe({"data": {"files": {"a": str(tmp_path / "a.jsonl")}}}))


# --- any causal language model ---


def nets(name: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    size = len(tokenizer) + 8
    if name == "qwen2":
        config = Qwen2Config(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
        return Qwen2ForCausalLM(config)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    )


def folder(tmp_path: Path, name: str) -> Path:
    """A small model with random weights, as Hugging Face saves it."""
    clients = load_federation(recipe()).clients
    tokenizer = train_tokenizer([f"{e.prompt} {e.response}" for c in clients for e in c.train], 400)
    if name == "gpt2":
        tokenizer.chat_template = None
    with torch.random.fork_rng():
        torch.manual_seed(7)
        nets(name, tokenizer).save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    return tmp_path / name


@pytest.fixture(params=["qwen2", "gpt2"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    return folder(tmp_path, request.param)


def test_plans_for_any_model(other: Path) -> None:
    changes = {"model.path": str(other), "rewriting.max_new_tokens": 4}
    plan = make_plan(recipe({**changes, "training.rounds": 1}), clients=[client(), client("b")])
    assert plan.problems == ()
    assert plan.duration is not None
    assert sum(plan.model.trainable.values()) > 0
    wants = "the tokenizer's own" if other.name == "qwen2" else "fedsdr's plain one"
    assert plan.model.template.startswith(wants)
    assert told(plan.notes, "256")  # of the recipe's 1024 positions
    kinds = {layer.rsplit(".", 1)[-1] for layer in plan.model.layers}
    assert kinds & {"q_proj", "c_attn"}
    assert not kinds & {"lm_head"}


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantised_bases_constants_are_counted(quantize: Any, tmp_path: Path) -> None:
    """By hand, of the seven linear layers of a block: half a byte (a whole one) a weight, and what
    it takes to read them. The head, the embedding and the norms stay as they are."""
    made = family_folder(tmp_path / "wide", "llama, wide")
    base = load_base(made, quantize=quantize)
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    packed = 0
    for wide, out in shapes:
        blocks = wide * out // 64
        tables = 16 * 4 + 256 * 4 + 4  # NF4's 16 values, the constants' 256, their mean
        four = wide * out // 2 + blocks + 4 * -(-blocks // 256) + tables
        packed += 2 * (four if quantize == "4bit" else wide * out + 4 * out)
    rows = base.net.get_input_embeddings().get_parameter("weight").shape[0]
    rest = 4 * (2 * rows * 64 + 5 * 64)
    buffers = sum(b.nbytes for b in base.net.buffers())
    assert held_bytes(base.net) == packed + rest + buffers
    assert held_bytes(outline_base(made, quantize=quantize).net) == held_bytes(base.net)


def test_refuses_rewriting_beyond_the_positions(other: Path) -> None:
    plan = make_plan(recipe({"model.path": str(other), "rewriting.max_new_tokens": 250}))
    assert told(plan.problems, "max_new_tokens (250)", "256 positions")
    data = [client("wide", ["Blue. " * 300])]
    short = make_plan(recipe({"model.path": str(other)}), clients=data)
    assert told(
        short.problems, "client 'wide', example 'wide-0'", "fills the model's 256 positions"
    )


def test_training_refuses_them_too_before_anything_is_written(other: Path, tmp_path: Path) -> None:
    changes = {"model.path": str(other), "rewriting.max_new_tokens": 4}
    for data, named in (
        ([client("wide", ["Blue. " * 300])], "example 'wide-0': the rewriting prompt fills"),
        ([replace(client(), test=client("late", ["x"]).train)], "the prompt alone fills"),
    ):
        if "alone" in named:
            (row, *_) = data[0].test
            data = [replace(data[0], test=(replace(row, prompt="Blue. " * 300),))]
        with pytest.raises(DataError, match=named):
            train(recipe(changes), tmp_path / "out", clients=data)
        assert not (tmp_path / "out").exists()
    engine = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    served = recipe({**changes, "rewriting.engine": engine})
    long = [client("wide", ["Blue. " * 300])]
    # How much an endpoint's model can take is not known here.
    assert not told(make_plan(served, clients=long).problems, "the rewriting prompt")


def test_refuses_atlas_rows_that_could_not_be_answered(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base.net.config, "max_position_embeddings", 80)
    plan = make_plan(recipe({"algorithm.name": "fedavg"}), base)
    assert told(plan.problems, "client 'c0'", "72 tokens", "80 positions")


def test_a_plan_is_the_same_twice_but_for_its_times(base: BaseModel) -> None:
    one, two = (make_plan(recipe(), base) for _ in range(2))
    assert isinstance(one, Plan)
    assert replace(one, duration=None) == replace(two, duration=None)
    assert is_plain(base.net)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"server.filters": ["krum(1)"]}, "needs 2f + 3 = 5 clients in a round, 3 are asked"),
        ({"server.combine": "trimmed_mean(0.2)"}, "of 3 clients drops nobody; 0.334 is the least"),
        (
            {"algorithm.name": "fedper", "algorithm.options": {"blocks": 4}},
            "the model has no more: nothing would be shared",
        ),
        (
            {"algorithm.name": "fedsa_lora", "data.unseen": 1},
            "data.unseen: fedsa_lora deploys no model that a new client could take",
        ),
        ({"algorithm.name": "fedex_lora", "algorithm.boosted": True}, None),
        ({"server.combine": "mean"}, None),
        (
            {
                "algorithm.name": "feddpa",
                "algorithm.options": {"variant": "F", "federated_rounds": 1},
                "training.participation": 2,
            },
            "starts L from R in round 2 alone, and only 2 of 3 clients are asked then",
        ),
    ],
)
def test_rules_without_a_meaning_are_told(
    changes: Mapping[str, Any], told: str | None, base: BaseModel
) -> None:
    data = [client(name) for name in ("a", "b", "c", "d")]
    if "data.unseen" not in changes:
        data = data[:3]
    wanted = recipe({"algorithm.name": "fedavg", **changes})
    problems = make_plan(wanted, base, clients=data).problems
    if told is None:
        assert problems == ()
    else:
        assert any(told in problem for problem in problems)
        with pytest.raises(RecipeError, match=re.escape(told)):
            train(wanted, "never-written", base=base, clients=data)
        assert not Path("never-written").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"algorithm.name": "flora", "server.combine": "median"}, "the server's rule that makes"),
        ({"algorithm.name": "local", "server.filters": ["clip"]}, "local"),
        ({"server.combine": "medain"}, "median"),
        ({"lora.R.ranks": [1, 2]}, "needs the same rank on all clients"),
        ({"algorithm.name": "flexlora", "lora.R.ranks": [4, 99]}, "99 is above lora.R.rank"),
        ({"algorithm.name": "flexlora", "lora.R.ranks": {"a": 1}}, "'b' has no rank there"),
        ({"data.unseen": 3}, "leaves none to train"),
        ({"algorithm.name": "scaffold", "server.filters": ["clip"]}, "keep the control variates"),
        ({"algorithm.objectives": {"selfaugh": 0.5}}, "selfaug"),
    ],
)
def test_choices_that_contradict_the_algorithm_are_refused(
    changes: Mapping[str, Any], told: str, base: BaseModel
) -> None:
    data = [client(name) for name in ("a", "b", "c")]
    with pytest.raises(RecipeError, match=re.escape(told)):
        make_plan(recipe({"algorithm.name": "fedavg", **changes}), base, clients=data)


@pytest.mark.parametrize(
    ("free", "stack", "micro"),
    [(None, 8, 4), (1 << 40, 8, 4), ("half", 4, 4), ("one row", 1, 1), (0, 1, 1)],
)
def test_auto_takes_as_many_clients_as_fit(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, free: Any, stack: int, micro: int
) -> None:
    """`half`: a byte short of what 8 clients need; `one row`: of what one client's 2 rows need."""
    wanted = recipe({"run.stack": "auto", "training.batch": 4, "data.atlas.clients": 8})
    experiment = assemble(wanted, base)
    try:
        experiment.raw = {
            c.client_id: [render(base, e, experiment.max_length) for e in c.train]
            for c in experiment.trained
        }
        if isinstance(free, str):
            experiment.stack, rows = (8, 4) if free == "half" else (1, 2)
            experiment.local = replace(experiment.local, micro_batch=rows)
            need = estimate_memory(experiment, experiment.raw)
            free = math.floor((need.branches + need.activations - 1) / estimate.ROOM)
        monkeypatch.setattr(estimate, "memory_free", lambda _: free)
        estimate.fit(experiment, experiment.raw)
        assert (experiment.stack, experiment.local.micro_batch) == (stack, micro)
    finally:
        experiment.close()


def test_free_memory_is_below_what_the_machine_has(base: BaseModel) -> None:
    experiment = assemble(recipe(), base)
    try:
        free, there = estimate.memory_free(experiment), estimate.memory_there(experiment)
    finally:
        experiment.close()
    assert free is not None
    assert there is not None
    assert 0 < free < there
