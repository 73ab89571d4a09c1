"""`fedsdr diagnose`: of recipes, runs and pairs of rewrites; figures without text."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

import fedsdr
from fedsdr.cli.app import app
from fedsdr.errors import DataError, RunError
from fedsdr.jobs import diagnose as diagnosis
from fedsdr.runs.lock import run_lock
from fedsdr.types import ClientData
from toy import TEXTS, clients

SECRETS = ("Marudel", "crowns", "Velo")
QUICK = ("--examples", "4", "--steps", "3")


def fedsdr_(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def well(*arguments: object) -> str:
    result = fedsdr_(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = fedsdr_(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def rows(count: int, name: str) -> list[dict[str, str]]:
    return [
        {"id": f"{name}-{i}", "prompt": f"{name} {i}?", "response": TEXTS[(i * 3) % len(TEXTS)]}
        for i in range(count)
    ]


def recipe_file(here: Path, base: Path, sizes: dict[str, int], **more: Any) -> Path:
    for name, count in sizes.items():
        text = "".join(json.dumps(row) + "\n" for row in rows(count, name))
        (here / f"{name}.jsonl").write_text(text)
    tree: dict[str, Any] = {
        "model": {"path": str(base), "max_length": 256},
        "data": {"files": {n: str(here / f"{n}.jsonl") for n in sizes}, "validation": 0.2},
        "lora": {"R": {"rank": 2}, "S": {"rank": 2}},
        "training": {"rounds": 1, "local_steps": 2, "batch": 3},
        "rewriting": {"max_new_tokens": 6},
        "run": {"stack": 2, "threads": 1},
    }
    (here / "recipe.yaml").write_text(yaml.safe_dump(tree | more))
    return here / "recipe.yaml"


@pytest.fixture
def recipe(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, no_fsync: None
) -> Path:
    monkeypatch.chdir(tmp_path)
    return recipe_file(tmp_path, tiny_folder, {"a": 15, "b": 15, "c": 20})


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "diagnosis.json").read_text())


def everything_in(folder: Path) -> str:
    texts = [p.read_bytes().decode("utf-8", "replace") for p in folder.rglob("*") if p.is_file()]
    return "\n".join(texts)


def test_a_recipe_raw_against_rewritten(recipe: Path, tmp_path: Path) -> None:
    said = well("diagnose", recipe, "--out", "out", *QUICK)
    found = read(tmp_path / "out")
    assert (found["format"], found["version"]) == ("fedsdr-diagnosis", 1)
    assert found["clients"] == ["a", "b", "c"]
    assert list(found["views"]) == ["raw", "rewritten"]
    raw, new = found["views"]["raw"], found["views"]["rewritten"]
    both = {
        "js_divergence", "tfidf_cosine", "response_tokens", "gradient_cosine", "loss_transfer",
        "pca", "cka",
    }  # fmt: skip
    assert set(raw) == both | {"js_divergence_prompts"}
    assert set(new) == both
    for view in (raw, new):
        for measure in ("js_divergence", "tfidf_cosine", "gradient_cosine", "cka"):
            matrix = view[measure]["matrix"]
            assert [len(row) for row in matrix] == [3, 3, 3]
            assert [matrix[0][1], matrix[2][0]] == pytest.approx([matrix[1][0], matrix[0][2]])
        assert view["gradient_cosine"]["matrix"][0][0] == pytest.approx(1.0, abs=1e-5)
        assert len(view["pca"]["points"]) == 3 * 4
    # The clients' answers are drawn from one list of turned sentences: all words alike.
    assert raw["js_divergence"]["mean"] < 0.05 < new["js_divergence"]["mean"]
    assert found["audit"]["a"]["rows"] == 11
    assert found["audit"]["a"]["changed_rows"]["numbers_lost"] > 0.5  # a random model keeps none
    assert "Jensen-Shannon" in said
    assert "numbers lost" in said
    assert not [s for s in SECRETS if s in said + (tmp_path / "out/diagnosis.json").read_text()]
    tables = sorted(p.name for p in (tmp_path / "out/diagnosis").iterdir())
    assert tables == ["audit.parquet", "clients.parquet", "pairs.parquet", "points.parquet"]
    assert not [s for s in SECRETS if s in everything_in(tmp_path / "out/diagnosis")]
    pairs = pq.read_table(tmp_path / "out/diagnosis/pairs.parquet").to_pylist()
    (one,) = [
        p for p in pairs
        if (p["view"], p["measure"], p["of"], p["on"]) == ("raw", "loss_transfer", "a", "c")
    ]  # fmt: skip
    assert one["value"] == raw["loss_transfer"]["matrix"][0][2]
    assert len(pairs) == 9 * (6 + 5)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "out/diagnosis/pairs.parquet").stat().st_mode) == 0o600

    again = json.loads(well("diagnose", recipe, "--out", "out", "--json", *QUICK))
    assert again == found  # the drafts are there, and every draw is seeded


def test_text_measures_need_no_model(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fedsdr.jobs.diagnose.opened", never)
    told = well("diagnose", recipe, "--only", "js, tfidf", "--no-rewritten", "--json")
    found = json.loads(told)
    assert set(found["views"]["raw"]) == {"js_divergence", "js_divergence_prompts", "tfidf_cosine"}
    assert "audit" not in found
    assert found["notes"] == ["there are no rewrites: only the raw answers were measured"]
    assert Path("diagnosis/recipe/diagnosis.json").is_file()
    assert "diagnosis/recipe-2" in well("diagnose", recipe, "--only", "js", "--no-rewritten")


def test_a_rule_that_this_machine_cannot_judge_by(recipe: Path) -> None:
    """Before anything is rewritten, also of an algorithm that rewrites nothing itself."""
    rule = "algorithm.selection=none+nli(0.5, nowhere)"
    for name in ("fedavg", "fedsd"):
        change = ("--set", f"algorithm.name={name}", "--set", rule)
        if name == "fedsd":
            change = ("--set", "algorithm.boosted=true", "--set", rule)
        assert "nowhere" in refused(
            "diagnose", recipe, "--rewritten", "--out", f"of-{name}", *change
        )
        assert not Path(f"of-{name}/drafts").exists()


def test_a_call_for_one_measure_keeps_the_others(recipe: Path) -> None:
    out = ("--no-rewritten", "--out", "out")
    first = json.loads(well("diagnose", recipe, "--only", "js,lengths", *out, "--json"))
    second = json.loads(well("diagnose", recipe, "--only", "tfidf", *out, "--json"))
    assert second["settings"]["measures"] == ["tfidf"]
    both = json.loads(Path("out/diagnosis.json").read_text())
    assert both["settings"]["measures"] == ["js", "tfidf", "lengths"]
    assert both["views"]["raw"]["js_divergence"] == first["views"]["raw"]["js_divergence"]
    assert both["views"]["raw"]["tfidf_cosine"] == second["views"]["raw"]["tfidf_cosine"]
    # By other settings, or of something that cannot be read, nothing is kept.
    well("diagnose", recipe, "--only", "tfidf", *out, "--set", "seed=9", "--json")
    assert json.loads(Path("out/diagnosis.json").read_text())["settings"]["measures"] == ["tfidf"]
    Path("out/diagnosis.json").write_text("[1]")
    assert "js_divergence" in well("diagnose", recipe, "--only", "js", *out, "--json")


def test_pairs_stand_for_rewriting(recipe: Path, tmp_path: Path) -> None:
    pairs = [
        {
            "id": r["id"],
            "output_original": r["response"],
            "output_distilled": "so: " + r["response"],
        }
        for r in rows(15, "a")
    ]
    (tmp_path / "a_pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    told = well("diagnose", recipe, "--pairs", "a_pairs.jsonl", "--only", "js,audit", "--json")
    found = json.loads(told)
    assert list(found["audit"]) == ["a"]
    assert found["audit"]["a"]["changed"] == 1.0
    assert found["audit"]["a"]["changed_rows"]["numbers_lost"] == 0.0
    assert "rows without a pair" in found["notes"][0]
    assert found["notes"][0].endswith(": b (11 of 11), c (14 of 14)")
    raw, new = (found["views"][v]["js_divergence"]["matrix"] for v in ("raw", "rewritten"))
    assert new[0][1] > raw[0][1]
    assert new[1][2] == raw[1][2]  # of those without pairs, nothing changed


def test_a_run_is_measured_with_the_rewrites_it_trained_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = recipe.read_text() + "algorithm: {name: fedsdr, options: {selection: sdft}}\n"
    recipe.write_text(changed)
    well("train", recipe, "--out", "run")
    before = (tmp_path / "run/results.json").read_bytes()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a row was rewritten again")

    monkeypatch.setattr("fedsdr.distill.engine.generate", never)
    well("diagnose", "run", *QUICK)
    found = read(tmp_path / "run")
    kept = json.loads((tmp_path / "run/rewriting.json").read_text())["clients"]
    for client, audit in found["audit"].items():
        assert audit["rows"] == kept[client]["examples"]
        assert audit["kept"] == pytest.approx(kept[client]["kept"], abs=1e-6)
        assert audit["all"]["numbers_lost"] == pytest.approx(
            kept[client]["written"]["numbers_lost"], abs=1e-6
        )
    assert (tmp_path / "run/results.json").read_bytes() == before
    assert (tmp_path / "run/diagnosis/pairs.parquet").is_file()
    assert "is for a recipe" in refused("diagnose", "run", "--out", "elsewhere")
    assert "holds a run" in refused("diagnose", recipe, "--out", "run", "--only", "js")
    with run_lock(tmp_path / "run"):
        assert "is in use by" in refused("diagnose", "run", "--only", "js")

    well("purge", "run", "--yes")
    said = refused("diagnose", "run", "--only", "js")
    assert "its private state and rewrites were removed by `fedsdr purge`" in said
    assert "client 'a': 11 of 11 rows have no rewrite" in said
    raw = json.loads(well("diagnose", "run", "--only", "js", "--no-rewritten", "--json"))
    assert list(raw["views"]) == ["raw"]


def test_a_run_whose_rewriting_is_not_finished(recipe: Path, tmp_path: Path) -> None:
    well("train", recipe, "--out", "run")
    (draft,) = (tmp_path / "run/rewrites").glob("b.jsonl")
    draft.write_bytes(b"".join(draft.read_bytes().splitlines(keepends=True)[:-2]))
    said = refused("diagnose", "run", "--only", "js")
    assert "client 'b': 2 of 11 rows have no rewrite" in said
    assert "`fedsdr resume run` goes on" in said
    assert not (tmp_path / "run/diagnosis.json").exists()


def test_a_run_that_rewrites_nothing(recipe: Path) -> None:
    well("train", recipe, "--out", "run", "--set", "algorithm.name=fedavg")
    found = json.loads(well("diagnose", "run", "--only", "js,audit", "--json"))
    assert list(found["views"]) == ["raw"]
    assert "audit" not in found
    assert "fedavg rewrites nothing" in refused("diagnose", "run", "--rewritten")


def test_a_global_teacher_and_pooled_clients(recipe: Path) -> None:
    well(
        *("train", recipe, "--out", "teacher"),
        *("--set", "algorithm.options.teacher=global", "--set", "training.rounds=2"),
        *("--set", "algorithm.options.redistill_every=1"),
    )
    found = json.loads(well("diagnose", "teacher", "--only", "js,audit", "--json"))
    assert found["audit"]["a"]["rows"] == 11
    well(
        *("train", recipe, "--out", "pooled"),
        *("--set", "algorithm.name=central", "--set", "algorithm.boosted=true"),
    )
    found = json.loads(well("diagnose", "pooled", "--only", "js,audit", "--json"))
    assert {c: a["rows"] for c, a in found["audit"].items()} == {"a": 11, "b": 11, "c": 14}


def test_many_clients_are_summed_up(tmp_path: Path, tiny_folder: Path, no_fsync: None) -> None:
    sizes = {f"c{i:02}": 5 for i in range(14)}
    file = recipe_file(tmp_path, tiny_folder, sizes)
    said = well("diagnose", file, "--out", tmp_path / "out", "--no-rewritten", *QUICK)
    assert "the most extreme pairs" in said
    assert "few training rows, so their figures say little: c00 (4)" in said


def test_one_client_alone(tmp_path: Path, tiny_folder: Path, no_fsync: None) -> None:
    file = recipe_file(tmp_path, tiny_folder, {"a": 15})
    told = well("diagnose", file, "--out", tmp_path / "out", "--no-rewritten", "--json", *QUICK)
    found = json.loads(told)
    assert found["views"]["raw"]["js_divergence"] == {"matrix": [[0.0]], "base": 2, "mean": None}
    assert "one client only" in found["notes"][0]


def test_clients_without_rows_to_measure(tiny_folder: Path, tmp_path: Path) -> None:
    chosen = fedsdr.build_recipe({"model": {"path": str(tiny_folder)}, "run": {"threads": 1}})
    (one,) = clients((6,)).values()
    some = [ClientData("a", one.train), ClientData("b", one.train)]
    wanted = diagnosis.Wanted(("transfer", "gradient"), rewritten=False, examples=3, steps=2)
    found = diagnosis.diagnose(chosen, tmp_path / "a", wanted, clients=some)
    assert list(found["views"]["raw"]) == ["gradient_cosine"]
    assert "a has no held-out rows" in found["notes"]
    with pytest.raises(DataError, match="no training rows"):
        diagnosis.diagnose(chosen, tmp_path / "b", wanted, clients=[ClientData("a", ())])


def test_a_run_from_python_wants_its_clients(
    tiny_folder: Path, tmp_path: Path, no_fsync: None
) -> None:
    chosen = fedsdr.build_recipe(
        {
            "model": {"path": str(tiny_folder), "max_length": 256},
            "training": {"rounds": 1, "local_steps": 1},
            "rewriting": {"max_new_tokens": 4},
            "run": {"threads": 1},
        }
    )
    own = list(clients((4, 5)).values())
    fedsdr.run(chosen, tmp_path / "run", clients=own)
    wanted = diagnosis.Wanted(("js", "audit"))
    with pytest.raises(RunError, match="with its own clients: pass them"):
        diagnosis.diagnose_run(tmp_path / "run", wanted)
    found = diagnosis.diagnose_run(tmp_path / "run", wanted, clients=own)
    assert found["audit"]["c1"]["rows"] == 5


def test_without_pyarrow_the_figures_are_there(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = well("diagnose", recipe, "--only", "js", "--no-rewritten", "--out", "out")
    assert "no Parquet tables were written: pip install 'fedsdr[parquet]'" in said
    assert (tmp_path / "out/diagnosis.json").is_file()
    assert not (tmp_path / "out/diagnosis").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "jss"], "'jss' is no measure; there are js, tfidf"),
        (["--pairs", "x.jsonl", "--rewritten"], "--pairs names the rewrites"),
        (["--pairs", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["--nli", "nowhere"], "nowhere: no config.json, so this is not a"),
    ],
)
def test_what_cannot_be(recipe: Path, arguments: list[str], said: str) -> None:
    assert said in refused("diagnose", recipe, "--only", "js", *arguments)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    assert "holds no run" in refused("diagnose", tmp_path)


@pytest.mark.parametrize("unseen", [2, 3, 7, 10_000])
def test_more_unseen_clients_than_there_are_leave_none(
    unseen: int, tiny_folder: Path, tmp_path: Path
) -> None:
    """Texts alone need no model, and are asked the same question; nothing is written."""
    recipe = recipe_file(tmp_path, tiny_folder, {"a": 6, "b": 6})
    out = tmp_path / "out"
    told = refused(
        *("diagnose", recipe, "--set", f"data.unseen={unseen}", "--set", "algorithm.name=fedavg"),
        *("--out", out, "--only", "js"),
    )
    assert f"data.unseen: {unseen} of 2 clients leaves none to train" in told
    assert not out.exists()


def test_unseen_clients_are_no_part_of_a_diagnosis(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, tiny_folder, {"a": 6, "b": 6, "c": 6})
    well(
        *("diagnose", recipe, "--set", "data.unseen=1", "--set", "algorithm.name=fedavg"),
        *("--out", tmp_path / "out", "--only", "js"),
    )
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text())["clients"] == ["a", "b"]
