"""The lm-eval bridge: agrees with lm-eval's own model for Hugging Face, scores what is deployed and
nothing else, and stays on this machine."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra fedsdr[lm-eval]")

import datasets  # noqa: E402
import huggingface_hub  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from fedsdr.errors import AdapterError, MissingExtra, RunError, TaskError  # noqa: E402
from fedsdr.evaluate.lm_eval import Asked, logit_change, score_tasks  # noqa: E402
from fedsdr.evaluate.lm_eval_model import WornLM  # noqa: E402
from fedsdr.evaluate.lm_eval_process import no_hub  # noqa: E402
from fedsdr.jobs import train as experiment  # noqa: E402
from fedsdr.jobs.lm_eval import evaluate_lm_eval  # noqa: E402
from fedsdr.model.base import BaseModel  # noqa: E402
from fedsdr.model.loading import keep_norms_wide, load_base  # noqa: E402
from fedsdr.model.lora import BranchSpec, StackedLora  # noqa: E402
from toy import TEXTS, clients, recipe  # noqa: E402

CLIENTS = list(clients((2, 4, 3)).values())
QUESTIONS = [
    {"question": TEXTS[i], "choices": ["40 mg", "12", "Velo"], "answer": i % 3, "word": "Velo"}
    for i in range(6)
]
CHOICE = {
    "task": "mini_choice",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "shots",
    "num_fewshot": 1,
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "metadata": {"version": 3.0},
}
WORDS = {
    "task": "mini_words",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{question}}\nAnswer:",
    "doc_to_target": "{{word}}",
    "generation_kwargs": {"until": ["\n", "ed"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
}
STREAM = {
    "task": "mini_stream",
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
NAMES = ["mini_choice", "mini_words", "mini_stream"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("somebody tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_task(folder: Path, like: Mapping[str, Any], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in QUESTIONS)
    (folder / "questions.jsonl").write_text(lines)
    (folder / "shots.jsonl").write_text(lines)
    files = {"test": str(folder / "questions.jsonl"), "shots": str(folder / "shots.jsonl")}
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    whole = {**source, **like, **changes}
    (folder / f"{whole['task']}.yaml").write_text(yaml.safe_dump(whole))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task in (CHOICE, WORDS, STREAM):
        write_task(tmp_path / "tasks", task)
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def run(tiny_folder: Path, base64: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clients, FedSDR: a global and three personal models."""
    out = tmp_path_factory.mktemp("lm-eval") / "run"
    chosen = recipe(tiny_folder, algorithm={"name": "fedsdr"}, training={"rounds": 2, "lr": 0.1})
    experiment.train(chosen, out, base=base64, clients=CLIENTS)
    return out


def theirs(net: Any, base: BaseModel) -> Any:
    return HFLM(pretrained=net, tokenizer=base.tokenizer, batch_size=2)


def merged(folder: Path, base: BaseModel) -> Any:
    net = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float64)
    keep_norms_wide(net)
    return PeftModel.from_pretrained(net, str(folder)).merge_and_unload().eval()


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


LONG = " ".join(TEXTS * 20)  # far more tokens than the model has positions
PAIRS = [
    *((text, f" {letter}") for text in TEXTS[:3] for letter in "ABCD"),
    (TEXTS[0], " 40 mg and"),
    (TEXTS[0] + "  ", "12"),  # white space moves to the continuation
    ("", TEXTS[1]),
    (LONG, " Velo on 3 May"),
    ("a", " b"),
]


def test_loglikelihoods_are_those_of_lm_evals_own_model(base64: BaseModel) -> None:
    ours = WornLM(base64, batch=5).loglikelihood(asked("loglikelihood", *PAIRS))
    wanted = theirs(base64.net, base64).loglikelihood(asked("loglikelihood", *PAIRS))
    assert [score for score, _ in ours] == pytest.approx([s for s, _ in wanted], abs=1e-6)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in wanted]


def test_what_the_model_would_say_itself_is_greedy(base64: BaseModel) -> None:
    (answer,) = WornLM(base64, 2).generate_until(
        asked("generate_until", ("the dose of", {"max_gen_toks": 3}))
    )
    pairs = (("the dose of", answer), ("the dose of", " crowns crowns"))
    (_, own), (_, other) = WornLM(base64, 2).loglikelihood(asked("loglikelihood", *pairs))
    assert own
    assert not other


def test_rolling_windows_are_those_of_lm_evals_own_model(base64: BaseModel) -> None:
    texts = [(TEXTS[0],), (LONG,), ("a",)]
    ours = WornLM(base64, batch=2).loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
    wanted = theirs(base64.net, base64).loglikelihood_rolling(
        asked("loglikelihood_rolling", *texts)
    )
    assert ours == pytest.approx(wanted, abs=1e-5)
    assert len(base64.encode(LONG)) > base64.max_length


def test_answers_are_those_of_lm_evals_own_model(base64: BaseModel) -> None:
    settings = [{"until": until, "max_gen_toks": 12} for until in ([], ["e"], [" the", "\n"])]
    prompts = [(text, given) for text in (*TEXTS[:3], LONG) for given in settings]
    ours = WornLM(base64, batch=3).generate_until(asked("generate_until", *prompts))
    wanted = theirs(base64.net, base64).generate_until(asked("generate_until", *prompts))
    assert ours == wanted
    assert len({len(answer) for answer in ours}) > 2  # cut at different places


def test_a_tokenizer_that_begins_texts_itself(base64: BaseModel, tiny_folder: Path) -> None:
    """Llama's adds its begin token, and a prompt that has it already gets no second one."""
    from tokenizers.processors import TemplateProcessing

    base = load_base(tiny_folder, "float64")
    base.tokenizer.bos_token = "<|system|>"
    begin = base.tokenizer.bos_token_id
    base.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", begin)]
    )
    ours, own = WornLM(base, 4), theirs(base.net, base)
    assert ours.tok_encode("the dose").count(begin) == 1
    assert ours.tok_encode("<|system|>the dose").count(begin) == 1
    pairs = [*PAIRS[:3], ("", TEXTS[0]), ("<|system|>the dose", " of")]
    wanted = own.loglikelihood(asked("loglikelihood", *pairs))
    found = ours.loglikelihood(asked("loglikelihood", *pairs))
    assert [s for s, _ in found] == pytest.approx([s for s, _ in wanted], abs=1e-6)


def test_a_task_scores_as_under_lm_evals_own_evaluation(
    base64: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes seconds
    manager = TaskManager(include_path=folder, include_defaults=False)
    with no_hub():  # on its own it would count a download at Hugging Face
        wanted = lm_eval.simple_evaluate(
            theirs(base64.net, base64), tasks=NAMES, task_manager=manager, log_samples=False
        )["results"]
    found = score_tasks(base64, Asked(NAMES, folder))
    for name, metric in (
        ("mini_choice", "acc"),
        ("mini_choice", "acc_stderr"),
        ("mini_choice", "acc_norm"),
        ("mini_words", "exact_match"),
        ("mini_stream", "word_perplexity"),
        ("mini_stream", "bits_per_byte"),
    ):
        assert found[name]["scores"][metric] == pytest.approx(wanted[name][f"{metric},none"])
    assert found["mini_choice"] | {"scores": {}} == {
        "n": 6,
        "version": 3.0,
        "shots": 1,
        "scores": {},
    }


def test_every_deployed_mix_is_scored_as_it_is_deployed(
    run: Path, base64: BaseModel, folder: Path
) -> None:
    """The figures are those of lm-eval's own model over PEFT's merge of the adapters on disk."""
    told = evaluate_lm_eval(
        run,
        ["mini_stream"],
        folder,
        mixes=("base", "global", "personal"),
        base=base64,
        clients=CLIENTS,
    )
    assert list(told["models"]) == ["base", "global", *(f"personal/c{i}" for i in range(3))]
    assert "largest_logit_change" not in told["models"]["base"]
    seen = set[float]()
    for name, found in told["models"].items():
        net = base64.net if name == "base" else merged(run / "adapters" / name, base64)
        texts = [(row["question"],) for row in QUESTIONS]
        scores = theirs(net, base64).loglikelihood_rolling(asked("loglikelihood_rolling", *texts))
        spoken = sum(len(text.encode()) for (text,) in texts)
        wanted = -sum(scores) / spoken / np.log(2)
        measured = found["tasks"]["mini_stream"]["scores"]["bits_per_byte"]
        assert measured == pytest.approx(wanted, abs=1e-4)
        seen.add(round(measured, 6))
        if name != "base":
            assert found["largest_logit_change"] > 1e-3
    assert len(seen) == 5  # five models, none of them another


def test_loglikelihoods_of_a_worn_mix_are_those_of_the_merged_model(
    run: Path, base64: BaseModel
) -> None:
    from fedsdr.model.adapters import load_adapter

    lora = StackedLora(base64, "all-linear", {"R": BranchSpec(5, 5.0)})
    try:
        flat = load_adapter(run / "adapters" / "personal" / "c1", lora, "R")[None]
        with lora.wear({"R": flat}, ["R"]):
            ours = WornLM(base64, 4).loglikelihood(asked("loglikelihood", *PAIRS))
    finally:
        lora.remove()
    net = merged(run / "adapters" / "personal" / "c1", base64)
    wanted = theirs(net, base64).loglikelihood(asked("loglikelihood", *PAIRS))
    assert [s for s, _ in ours] == pytest.approx([s for s, _ in wanted], abs=1e-4)


def test_one_clients_model_and_a_limit(run: Path, base64: BaseModel, folder: Path) -> None:
    told = evaluate_lm_eval(
        run,
        ["mini_choice", "mini_words"],
        folder,
        limit=2,
        mixes=("personal",),
        client="c2",
        base=base64,
        clients=CLIENTS,
    )
    assert list(told["models"]) == ["personal/c2"]
    tasks = told["models"]["personal/c2"]["tasks"]
    assert {name: task["n"] for name, task in tasks.items()} == {"mini_choice": 2, "mini_words": 2}
    assert told["rounds"].keys() == {"personal"}
    assert told["tool"].startswith("lm-eval 0.")
    assert not any(text in json.dumps(told) for text in TEXTS)


def test_an_adapter_that_is_not_loaded_stops_the_scoring(
    run: Path, base64: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def nothing(*_: Any) -> Generator[None]:
        yield

    monkeypatch.setattr(StackedLora, "wear", nothing)
    monkeypatch.setattr("fedsdr.evaluate.lm_eval.score_tasks", lambda *_: pytest.fail("scored"))
    with pytest.raises(AdapterError, match="changes no logit"):
        evaluate_lm_eval(run, NAMES, folder, mixes=("global",), base=base64, clients=CLIENTS)


def test_an_untrained_and_a_broken_adapter_are_refused(base64: BaseModel) -> None:
    lora = StackedLora(base64, "all-linear", {"R": BranchSpec(2, 4.0)})
    try:
        fresh = lora.fresh("R", 1)[None]
        with pytest.raises(AdapterError, match="changes no logit"):
            logit_change(base64, lora.wear({"R": fresh}, ["R"]))
        with pytest.raises(AdapterError, match="no finite numbers"):
            logit_change(base64, lora.wear({"R": fresh * torch.nan}, ["R"]))
    finally:
        lora.remove()


def test_nothing_in_the_process_stays_changed(base64: BaseModel, folder: Path) -> None:
    def state() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            huggingface_hub.constants.HF_HUB_OFFLINE,
            datasets.config.HF_HUB_OFFLINE,
            {name: value for name, value in os.environ.items() if name.startswith("HF_")},
        ]

    before = state()
    score_tasks(base64, Asked(["mini_choice"], folder, limit=2))
    assert state() == before
    write_task(folder, CHOICE, task="broken", dataset_kwargs={"data_files": {"test": "nowhere"}})
    with pytest.raises(TaskError):
        score_tasks(base64, Asked(["broken"], folder))
    assert state() == before


def test_no_hub_is_asked(base64: BaseModel, tmp_path: Path) -> None:
    hub = {"dataset_path": "some-user/some-data", "dataset_kwargs": {}}
    folder = write_task(tmp_path / "tasks", CHOICE, **hub)
    with pytest.raises(TaskError, match=r"mini_choice: cannot be loaded.*No hub is asked"):
        score_tasks(base64, Asked(["mini_choice"], folder))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (CHOICE, {"unsafe_code": True}, "runs code that the model wrote"),
        (CHOICE, {"doc_to_text": "{{qestion}}"}, "'qestion' is undefined"),
        (CHOICE, {"output_type": "oracle"}, "cannot be loaded"),
        (WORDS, {"generation_kwargs": {"do_sample": True, "temperature": 0.7}}, "greedy"),
        (WORDS, {"generation_kwargs": {"num_beams": 4}}, "greedy"),
        (WORDS, {"generation_kwargs": {"max_gen_toks": 5000}}, "1024 positions"),
    ],
)
def test_a_task_that_cannot_be_done_is_named(
    base64: BaseModel,
    tmp_path: Path,
    task: Mapping[str, Any],
    changes: Mapping[str, Any],
    message: str,
) -> None:
    folder = write_task(tmp_path / "tasks", task, **changes)
    with pytest.raises(TaskError, match=message) as error:
        score_tasks(base64, Asked([task["task"]], folder))
    assert task["task"] in str(error.value)
    assert TEXTS[0] not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": []}, "no task is named"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"include_path": "nowhere"}, "nowhere is no folder"),
        ({"mixes": ["globl"]}, "Did you mean 'global'"),
        ({"mixes": ["personal"], "client": "c9"}, "no client 'c9'"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(
    run: Path, base64: BaseModel, folder: Path, arguments: Mapping[str, Any], message: str
) -> None:
    chosen = {"tasks": ["mini_choice"], "include_path": folder} | arguments
    with pytest.raises(TaskError, match=message):
        evaluate_lm_eval(run, base=base64, clients=CLIENTS, **chosen)


def test_another_round_is_scored_if_it_is_kept(run: Path, base64: BaseModel, folder: Path) -> None:
    def at(round: int) -> Mapping[str, Any]:
        return evaluate_lm_eval(
            run,
            ["mini_stream"],
            folder,
            None,
            ["global"],
            round=round,
            base=base64,
            clients=CLIENTS,
        )

    first, second = at(1), at(2)
    assert (first["rounds"], second["rounds"]) == ({"global": 1}, {"global": 2})
    assert first["models"] != second["models"]
    with pytest.raises(RunError, match="keeps no checkpoint of round 9; there are 1, 2"):
        at(9)


def test_a_base_that_is_not_the_runs_own_is_refused(
    run: Path, base32: BaseModel, folder: Path
) -> None:
    from dataclasses import replace

    other = replace(base32, digest="0" * 64)
    with pytest.raises(RunError, match=r"base model, .* is not the one this run began with"):
        evaluate_lm_eval(run, NAMES, folder, base=other, clients=CLIENTS)


def test_without_the_extra_the_error_names_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsdr.jobs.lm_eval.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'fedsdr\[lm-eval\]'"):
        evaluate_lm_eval(run, ["x"])


def test_an_unknown_task_is_refused_with_the_nearest_name(
    base64: BaseModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_task(folder / "lm-evals", CHOICE, task="mini_choices")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", str(own / "manager.py"))
    with pytest.raises(TaskError, match=r"no task 'mini_choise' .* Did you mean 'mini_choice'"):
        score_tasks(base64, Asked(["mini_choise"], folder))
    assert score_tasks(base64, Asked(["mini_choices"], limit=1))["mini_choices"]["n"] == 1


def test_chat_prompts_are_the_models_own(base64: BaseModel) -> None:
    model = WornLM(base64, 2, chat=True)
    question: Sequence[dict[str, str]] = [{"role": "user", "content": "dose?<|end|>"}]
    opened = model.apply_chat_template(list(question))
    assert model.tok_encode(opened) == base64.encode(base64.chat(question, opened=True))
    assert model.tok_encode(opened).count(base64.eos) == 1  # the turn's, not the question's own
    begun = [*question, {"role": "assistant", "content": "It is"}]
    assert model.apply_chat_template(begun, add_generation_prompt=False) == opened + "It is"


def test_a_task_in_the_chat_template(base64: BaseModel, folder: Path) -> None:
    plain = score_tasks(base64, Asked(["mini_choice", "mini_words"], folder))
    chat = score_tasks(base64, Asked(["mini_choice", "mini_words"], folder, shots=2, chat=True))
    assert (plain["mini_choice"]["shots"], chat["mini_choice"]["shots"]) == (1, 2)
    assert chat["mini_words"]["shots"] == 2
