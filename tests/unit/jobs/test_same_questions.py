"""`plan`, `train` and a sweep's cells refuse the same set-ups with the same words, at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from attack import attempt
from families import family_folder
from fedsdr.coordinator.job import Watch
from fedsdr.coordinator.loop import Row
from fedsdr.data.render import draw_steps, render
from fedsdr.errors import DataError, FedsdrError
from fedsdr.jobs.diagnose import Wanted, diagnose, diagnose_run
from fedsdr.jobs.distill import distill
from fedsdr.jobs.plan import make_plan, plan_on_paper
from fedsdr.jobs.plan import questions as asking
from fedsdr.jobs.sweep import Observer, run_sweep
from fedsdr.jobs.sweep.recipe import parse_sweep
from fedsdr.jobs.train import resume, train
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import load_base
from fedsdr.recipe.settings import build_recipe
from fedsdr.training.stage import StageJob
from fedsdr.types import ClientData, Example

SECONDS = 20.0  # of a busy machine; what hangs takes for ever
TREE: Mapping[str, Any] = {
    "model": {"max_length": 128},
    "data": {"file": "d.jsonl", "partition": {"clients": 2}},
    "lora": {"targets": "attention", "R": {"rank": 2}, "S": {"rank": 2}},
    "algorithm": {"name": "fedavg"},
    "training": {"rounds": 1, "local_steps": 1, "batch": 2},
    "rewriting": {"max_new_tokens": 6},
    "evaluation": {"answers": 0},
    "run": {"threads": 1},
}
Change = Mapping[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_folder(tmp_path_factory.mktemp("model") / "model", "llama")


@pytest.fixture(scope="module")
def base(model: Path) -> BaseModel:
    return load_base(model)


def rows(count: int, response: str = "It is {}, as told.", prompt: str = "Number {}?") -> str:
    return "".join(
        json.dumps(
            {"prompt": prompt.replace("{}", str(i)), "response": response.replace("{}", str(i))}
        )
        + "\n"
        for i in range(count)
    )


def tree(changes: Change) -> dict[str, Any]:
    made = json.loads(json.dumps(TREE))
    for path, value in changes.items():
        *parents, last = path.split(".")
        at = made
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return made


def manifest(empty: str) -> Callable[[Path], None]:
    """A split that leaves a client nothing to train on."""

    def write(folder: Path) -> None:
        recipe = build_recipe(tree({"data.file": str(folder / "d.jsonl")}))
        from fedsdr.jobs.sources import load_federation

        load_federation(recipe).write_manifest(folder / "split.json")
        found = json.loads((folder / "split.json").read_text())
        for client in found["clients"]:
            if client["client_id"] == empty:
                client["test"] += client["train"]
                client["train"] = []
        (folder / "split.json").write_text(json.dumps(found))

    return write


BAD: Mapping[str, tuple[Change, str, Callable[[Path], None]]] = {
    "a split without training rows": (
        {"data.manifest": "split.json"},
        "client 'client-1' has no training rows",
        manifest("client-1"),
    ),
    "nothing left to train on": (
        {"data.partition.clients": 30},
        "0 rows leave 0 to train on",
        lambda folder: None,
    ),
    "every answer is cut": (
        {"model.max_length": 24},
        "every response is cut by model.max_length (24)",
        lambda folder: (folder / "d.jsonl").write_text(rows(20, "and again {} " * 20)) and None,
    ),
    "prompts that fill the model": (
        {},
        "alone fills model.max_length",
        lambda folder: (folder / "d.jsonl").write_text(rows(20, prompt="again {} " * 90)) and None,
    ),
    "one prompt that fills the model": (
        {},
        "alone fills model.max_length",
        lambda folder: (
            (folder / "d.jsonl").write_text(rows(20) + rows(1, prompt="again {} " * 90)) and None
        ),
    ),
    "a held-out prompt that fills the model": (
        {"data.partition": None, "data.file": None, "data.files": {"a": "d.jsonl"}}
        | {"data.test_files": {"a": "long.jsonl"}},
        "alone fills model.max_length",
        lambda folder: (
            (folder / "long.jsonl").write_text(rows(1, prompt="again {} " * 90)) and None
        ),
    ),
    "no room to rewrite": (
        {"algorithm.name": "fedsdr", "rewriting.max_new_tokens": 500},
        "positions",
        lambda folder: None,
    ),
    "patience without validation": (
        {"data.validation": 0.0, "evaluation.patience": 1},
        "evaluation.patience needs validation rows",
        lambda folder: None,
    ),
    "a quorum that nobody meets": (
        {"training.quorum": 3},
        "training.quorum (3) can never be met",
        lambda folder: None,
    ),
    "a part above the whole": (
        {"training.micro_batch": 4},
        "training.micro_batch (4)",
        lambda folder: None,
    ),
    "more clients than there are": (
        {"training.participation": 3.0},
        "asks for 3 clients",
        lambda folder: None,
    ),
    "all unseen": ({"data.unseen": 2}, "leaves none to train", lambda folder: None),
    "no classifier": (
        {"algorithm.name": "fedsdr", "algorithm.options": {"selection": "none+nli(0.5, gone)"}},
        "gone",
        lambda folder: None,
    ),
    "no key": (
        {
            "algorithm.name": "fedsdr",
            "rewriting.engine": {
                "url": "http://127.0.0.1:9/v1",
                "model": "m",
                "key_env": "FEDSDR_NO_SUCH_KEY",
            },
        },
        "the variable FEDSDR_NO_SUCH_KEY is not set",
        lambda folder: None,
    ),
    "no rows": (
        {},
        "is empty",
        lambda folder: (folder / "d.jsonl").write_text("\n\n") and None,
    ),
    "both faults": (
        {"training.quorum": 3, "data.manifest": "split.json"},
        "client 'client-0' has no training rows",
        manifest("client-0"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_plan_train_and_a_sweep_refuse_with_the_same_words(
    case: str, tmp_path: Path, model: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, named, prepare = BAD[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(rows(20))
    prepare(tmp_path)
    made = tree({"model.path": str(model), **changes})
    recipe = build_recipe(made)

    def planned() -> list[str]:
        try:
            return list(make_plan(recipe, base).problems)
        except FedsdrError as error:
            return str(error).split("\n")

    plan = attempt(planned, SECONDS)
    trained = attempt(lambda: train(recipe, tmp_path / "run", base=base), SECONDS)
    assert plan.kind == "returned", plan.text
    assert trained.kind == "refused", (trained.kind, trained.text)
    assert named in trained.text
    assert sorted(trained.text.split("\n")) == sorted(plan.value)
    assert not (tmp_path / "run").exists()

    monkeypatch.setattr("fedsdr.jobs.sweep.work.open_base", lambda recipe: base)

    def swept() -> str:
        sweep = parse_sweep(
            {**made, "sweep": {"methods": {recipe.algorithm.name: {}}, "seeds": [1]}}
        )
        result = run_sweep(sweep, tmp_path / "sweep", Observer(lambda text: None))
        return "\n".join(result.failed)

    cells = attempt(swept, SECONDS)
    assert trained.text in (cells.value or cells.text), cells  # some, the sweep sees by itself


def test_memory_that_no_machine_has_is_refused_by_both(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsdr.jobs.plan import make

    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(rows(20))
    for module in (asking, make):
        monkeypatch.setattr(module, "memory_there", lambda _: 1000)
    plan = make_plan(build_recipe(tree({})), base)
    with pytest.raises(FedsdrError) as refused:
        train(build_recipe(tree({})), tmp_path / "run", base=base)
    assert list(plan.problems) == str(refused.value).split("\n")
    assert "bytes of memory, there are 1,000" in plan.problems[0]


def example(number: int) -> Example:
    return Example(f"e{number}", "What?", "That.")


SETS: Mapping[str, tuple[tuple[ClientData, ...], str]] = {
    "without rows": (
        (ClientData("a", (example(1),)), ClientData("b", (), (example(2),))),
        "client 'b' has no training rows; leave it out",
    ),
    "all without": ((ClientData("a", ()),), "client 'a' has no training rows; leave it out"),
    "no client id": ((ClientData("../a", (example(1),)),), "client id '../a'"),
    "alike but for the case": (
        (ClientData("a", (example(1),)), ClientData("A", (example(2),))),
        "two clients would be called",
    ),
}


@pytest.mark.parametrize("case", SETS)
def test_clients_from_python_are_asked_the_same_by_every_verb(
    case: str, tmp_path: Path, base: BaseModel
) -> None:
    clients, named = SETS[case]
    recipe = build_recipe(tree({"data.file": "none.jsonl"}))

    def planned() -> str:
        return "\n".join(make_plan(recipe, base, clients=clients).problems)

    plan = attempt(planned, SECONDS)
    said = plan.value or plan.text
    assert named in said
    texts, model = Wanted(("js",), False), Wanted(("gradient", "transfer"), False)
    for name, verb in {
        "train": lambda: train(recipe, tmp_path / "run", base=base, clients=clients),
        "distill": lambda: distill(recipe, tmp_path / "d", base=base, clients=clients),
        "texts": lambda: diagnose(recipe, tmp_path / "t", texts, base=base, clients=clients),
        "model": lambda: diagnose(recipe, tmp_path / "m", model, base=base, clients=clients),
    }.items():
        outcome = attempt(verb, SECONDS)
        assert (outcome.kind, outcome.text) == ("refused", said), (name, outcome)


def test_a_resume_is_asked_too(tmp_path: Path, base: BaseModel) -> None:
    """A run of an older version may have begun with what is refused now."""
    clients = (ClientData("a", (example(1), example(2))), ClientData("b", ()))
    recipe = build_recipe(tree({"data.file": "none.jsonl"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsdr.jobs.train.refuse_what_cannot_work", lambda *a, **b: None)
        with pytest.raises(
            FedsdrError
        ):  # and it ends, for a client's job refuses to be without rows
            train(recipe, tmp_path / "run", base=base, clients=clients)
    for verb in (resume, diagnose_run):
        outcome = attempt(lambda v=verb: v(tmp_path / "run", base=base, clients=clients), SECONDS)
        assert outcome.kind == "refused"
        assert outcome.text == "client 'b' has no training rows; leave it out"


def test_what_was_read_for_the_questions_is_what_is_trained_on(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedsdr.jobs.assembly import assemble

    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(rows(20) + rows(20, "It is {}, as told again." * 3))
    for name in ("fedavg", "central"):
        experiment = assemble(
            build_recipe(tree({"algorithm.name": name, "model.max_length": 40})), base
        )
        try:
            asking.refuse_what_cannot_work(experiment, custom=False)
            asked = dict(experiment.raw)
            assert asked == {
                c.client_id: [render(base, e, 40) for e in c.train] for c in experiment.trained
            }
            assert any(row.truncated for own in asked.values() for row in own)
        finally:
            experiment.close()


@pytest.mark.parametrize(("examples", "batch"), [(0, 4), (4, 0), (4, -1), (-3, 4)])
def test_drawing_steps_ends_or_refuses(examples: int, batch: int) -> None:
    outcome = attempt(lambda: draw_steps(examples, batch, 3, 1), 5)
    assert (outcome.kind, "there are no steps of" in outcome.text) == ("refused", True), outcome


def test_a_job_without_rows_cannot_be_made() -> None:
    with pytest.raises(DataError, match="client 'a' has no training rows"):
        StageJob("a", ((), ()), 1)


def test_on_paper_no_key_is_asked_for(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(rows(20))
    changes, _, _ = BAD["no key"]
    recipe = build_recipe(tree({"model.path": str(model), **changes}))
    assert plan_on_paper(recipe).problems == ()


def told(row: Row) -> None:
    """Nobody watches."""


def test_a_good_set_up_is_refused_by_none(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text(rows(20))
    recipe = build_recipe(tree({}))
    assert make_plan(recipe, base).problems == ()
    assert train(recipe, tmp_path / "run", Watch(told=told), base)["rounds"] == 1
