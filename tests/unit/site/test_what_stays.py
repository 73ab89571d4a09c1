"""What a run keeps to be looked at: profiles, rewrites and answers, and who may read them."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedsdr.atlas.judge import verdict
from fedsdr.atlas.world import ask_describe, ask_fact, ask_order, public_entities
from fedsdr.data.render import render, render_prompt
from fedsdr.distill.drafts import Drafts
from fedsdr.distill.engine import Asked, BuiltIn
from fedsdr.distill.generate import Progress, Sampling, generate
from fedsdr.distill.selection import Draft
from fedsdr.jobs import train as experiment
from fedsdr.model.base import BaseModel
from fedsdr.recipe.settings import Recipe
from fedsdr.runs.directory import RunDirectory
from fedsdr.runs.purge import purge
from fedsdr.site.profile import histogram
from fedsdr.types import ClientData, Example
from toy import clients, recipe

CLIENTS = tuple(clients((2, 7, 4)).values())
pytestmark = pytest.mark.usefixtures("no_fsync")


def chosen(folder: Path, algorithm: Mapping[str, Any], **sections: Mapping[str, Any]) -> Recipe:
    return recipe(folder, **{"training": {"rounds": 1}, "algorithm": algorithm} | sections)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def profiled(root: Path) -> Mapping[str, Any]:
    return json.loads((root / "profile.json").read_text())["clients"]


# Profiles


def test_a_histogram_by_hand() -> None:
    found = histogram([16, 0, 7, 8, 15, 8191, 8192, 9000, 100, 100])
    assert found["counts"] == [2, 2, 1, 0, 2, 0, 0, 0, 0, 0, 1, 2]
    assert (found["p10"], found["p50"], found["p90"]) == (0, 16, 8192)
    assert found["mean"] == 2562.9
    assert len(found["edges"]) == len(found["counts"])


def test_of_one_length_and_of_none() -> None:
    assert {histogram([5])[name] for name in ("p10", "p50", "p90", "mean")} == {5}
    assert histogram([])["p50"] is histogram([])["mean"] is None
    assert sum(histogram([])["counts"]) == 0


def test_rows_labels_and_lengths(tiny_folder: Path, base64: BaseModel, tmp_path: Path) -> None:
    """70 labels beside a frequent one: 64 are named, and none is longer than 80 characters; one
    that marks fewer than five rows may be a person's, and is not."""
    one = CLIENTS[0].train[0]
    many = tuple(
        replace(one, id=f"m{i}", domain=f"d{i % 70:02}", origin=f"MRN {i % 87}") for i in range(350)
    )
    often = tuple(replace(e, domain="w" * 100, origin="web") for e in CLIENTS[1].train)
    data = (replace(CLIENTS[0], train=many), replace(CLIENTS[1], train=often), CLIENTS[2])
    experiment.train(
        chosen(tiny_folder, {"name": "fedavg"}), tmp_path / "run", base=base64, clients=data
    )
    found = profiled(tmp_path / "run")
    assert found["c1"]["domains"] == {"w" * 80: 7}
    assert found["c1"]["origins"] == {"web": 7}
    assert found["c0"]["domains"] == {f"d{i:02}": 5 for i in range(64)} | {"other": 30}
    assert found["c0"]["origins"] == {f"MRN {i}": 5 for i in (0, 1)} | {"other": 340}
    assert found["c2"]["domains"] == {}
    assert found["c1"]["rows"] == {"train": 7, "validation": 2, "test": 2}
    own = [render(base64, e, 256) for e in CLIENTS[2].train]
    prompts = [len(render_prompt(base64, e)) for e in CLIENTS[2].train]
    responses = [len(r.ids) - n for r, n in zip(own, prompts, strict=True)]
    assert found["c2"]["prompt_tokens"] == histogram(prompts)
    assert found["c2"]["response_tokens"] == {"raw": histogram(responses)}


def test_pooled_rows_are_still_their_clients(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    for name in ("central", "fedavg"):
        one = chosen(tiny_folder, {"name": name, "boosted": True})
        experiment.train(one, tmp_path / name, base=base64, clients=CLIENTS)
    apart, pooled = profiled(tmp_path / "fedavg"), profiled(tmp_path / "central")
    assert "rewritten" in apart["c1"]["response_tokens"]
    assert {c: p["rows"] for c, p in pooled.items()} == {c: p["rows"] for c, p in apart.items()}
    for client, own in pooled.items():
        assert own["prompt_tokens"] == apart[client]["prompt_tokens"]
        assert own["response_tokens"]["raw"] == apart[client]["response_tokens"]["raw"]


# Rewrites

SAYS = {"raw": "Velo sold 12 crowns", "kept": "Velo got 12 crowns", "bad": "Bergen got 13 crowns"}


def swapped(self: BuiltIn, asked: Sequence[Asked], drafts: Drafts, progress: Progress) -> None:
    """An engine that names another town and number in every second row."""
    drafts.add(
        {
            one.key: Draft(SAYS["bad" if int(one.example.id) % 2 else "kept"], False)
            for one in asked
            if one.key not in drafts
        }
    )


@pytest.mark.parametrize("told", [False, True])
def test_both_texts_and_what_got_lost(
    told: bool,
    tiny_folder: Path,
    base64: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BuiltIn, "write", swapped)
    train = tuple(Example(str(i), f"Who? ({i})", SAYS["raw"], domain="towns") for i in range(4))
    data = (replace(CLIENTS[0], train=train), CLIENTS[1])
    data = (data[0], replace(data[1], train=tuple(replace(e, id="8") for e in train[:1])))
    one = chosen(
        tiny_folder,
        {"name": "fedsd", "options": {"selection": "facts"}},
        run={"threads": 1, "include_texts": told},
    )
    root = tmp_path / "run"
    experiment.train(one, root, base=base64, clients=data)
    assert [r["id"] for r in rows(root / "clients/c1/rewrites.jsonl")] == ["8"]
    good, bad, *_ = rows(root / "clients/c0/rewrites.jsonl")
    assert good == {
        "id": "0",
        "domain": "towns",
        "prompt": "Who? (0)",
        "raw": SAYS["raw"],
        "written": SAYS["kept"],
        "trained": SAYS["kept"],
        "kept": True,
        "reasons": [],
        "numbers_lost": [],
        "numbers_invented": [],
        "names_lost": [],
        "names_invented": [],
        "length_ratio": 1.0,
        "judged": None,
    }
    assert (bad["written"], bad["trained"]) == (SAYS["bad"], SAYS["raw"])
    assert (bad["kept"], bad["numbers_lost"], bad["numbers_invented"]) == (False, ["12"], ["13"])
    assert {"lost-number", "invented-number"} <= set(bad["reasons"])
    audit = rows(root / "rewriting_audit.jsonl")
    assert [a["numbers_lost"] for a in audit] == [0, 1, 0, 1, 0]
    assert ["texts" in a for a in audit] == [told] * 5
    for file in root.glob("clients/*/*.jsonl"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    elsewhere = b"".join(
        p.read_bytes() for p in root.iterdir() if p.is_file() and p.name != "recipe.yaml"
    )
    assert (b"crowns" in elsewhere) == told


def test_verdicts_in_the_closed_world() -> None:
    one, other = public_entities()[:2]
    attribute, value = next(iter(one.facts.items()))
    wrong = next(e.facts[attribute] for e in public_entities() if e.facts.get(attribute) != value)
    fact = ask_fact(one, attribute, "What is the {attribute} of {name}?")
    said = f"The {attribute} of {one.name} is"
    assert verdict(fact, f"{said} {value}.") == "faithful"
    assert verdict(fact, f"{said} {wrong}.") == "wrong value"
    assert verdict(fact, f"{said} {value}. {other.name}") == "invented name"
    assert verdict(fact, f"{said} {value} zzyzx.") == "invented value"
    assert verdict(fact, "") == "incomplete"
    assert verdict(ask_describe(one, "Describe {name}."), f"{said} {value}.") == "incomplete"
    order = ask_order((30, 10, 20), "Order {numbers}.")
    assert verdict(order, "10, 20, 30") == "faithful"
    assert verdict(order, "30, 20, 10") == "wrong order"


# Answers


def test_answers_of_base_and_mixes(tiny_folder: Path, base64: BaseModel, tmp_path: Path) -> None:
    """Greedy, as the base says it alone; the others differ, because they were trained."""
    algorithm = {"name": "fedsdr"}
    training = {"rounds": 1, "lr": 0.3, "local_epochs": 3.0}
    one = chosen(tiny_folder, algorithm, evaluation={"answers": 1}, training=training)
    experiment.train(one, tmp_path / "run", base=base64, clients=CLIENTS)
    for client in CLIENTS:
        (row,) = rows(tmp_path / "run" / "clients" / client.client_id / "answers.jsonl")
        asked = next(e for e in client.test if e.id == row["id"])
        assert (row["prompt"], row["reference"]) == (asked.prompt, asked.response)
        assert list(row["answers"]) == ["base", "global", "personal"]
        (alone,) = generate(
            base64, [render_prompt(base64, asked)], Sampling(temperature=0.0, max_new_tokens=6)
        )
        assert row["answers"]["base"] == alone.text
        assert len(set(row["answers"].values())) > 1
        assert "judged" not in row


def test_no_question_is_asked_when_none_is_wanted_and_nothing_else_changes(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    for count in (0, 2):
        one = chosen(tiny_folder, {"name": "fedsdr"}, evaluation={"answers": count})
        experiment.train(one, tmp_path / str(count), base=base64, clients=CLIENTS)
    assert not list((tmp_path / "0").glob("clients/*/answers.jsonl"))
    assert [len(rows(f)) for f in (tmp_path / "2").glob("clients/*/answers.jsonl")] == [2, 2, 2]
    for file in ("rounds.jsonl", "results.json"):
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_a_question_that_leaves_no_room_is_passed_over(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base64.net.config, "max_position_embeddings", 40)
    long = replace(CLIENTS[0].test[0], id="long", prompt="dose of " * 8)
    assert 40 - 6 < len(render_prompt(base64, long)) < 39
    data = [
        replace(CLIENTS[0], test=(long, CLIENTS[0].test[1])),
        replace(CLIENTS[1], test=(replace(long, id="other"),)),
        ClientData("c9", CLIENTS[2].train),
    ]
    experiment.train(
        chosen(tiny_folder, {"name": "fedavg"}), tmp_path / "run", base=base64, clients=data
    )
    (only,) = (tmp_path / "run").glob("clients/*/answers.jsonl")
    assert [row["id"] for row in rows(only)] == [CLIENTS[0].test[1].id]


def test_purge_takes_the_texts(tiny_folder: Path, base64: BaseModel, tmp_path: Path) -> None:
    root = tmp_path / "run"
    one = chosen(tiny_folder, {"name": "fedsd"})
    experiment.train(one, root, base=base64, clients=CLIENTS)
    run = RunDirectory.open(root)
    assert len(list(root.glob("clients/*/answers.jsonl"))) == 3
    purge(run)
    assert not (root / "clients").exists()
    assert (root / "profile.json").is_file()


def test_a_run_of_an_older_version_gets_them_on_resume(
    tiny_folder: Path, base64: BaseModel, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    one = chosen(tiny_folder, {"name": "fedsdr"})
    experiment.train(one, root, base=base64, clients=CLIENTS)
    files = [root / "profile.json", *root.glob("clients/*/*.jsonl")]
    before = {file: file.read_bytes() for file in files}
    assert len(before) == 7
    for file in files:
        file.unlink()
    experiment.resume(root, base=base64, clients=CLIENTS)
    assert {file: file.read_bytes() for file in files} == before
