"""Run directories as the comparison reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsdr.errors import CorruptArtifact, FedsdrError, RunError
from fedsdr.evaluate.finished import SEAL, default_measures, read_result, read_results, sealed
from fedsdr.runs.identity import write_facts

RESULTS: dict[str, Any] = {
    "method": "fedsd",
    "seed": 3,
    "world": "abc",
    "lr": 0.003,
    "chosen_rounds": {"global": 2},
    "scores": {"global": {"recall": 0.5, "retention": 1}},
}


def finished(folder: Path, text: str | None = None, **changes: Any) -> Path:
    folder.mkdir()
    write_facts(folder, {"base_digest": "ba5e"})
    (folder / "results.json").write_text(text or json.dumps(RESULTS | changes))
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    result = read_result(finished(tmp_path / "run"))
    assert (result.method, result.seed, result.world, result.lr) == ("fedsd", 3, "abc", 0.003)
    assert result.scores == {"global": {"recall": 0.5, "retention": 1}}
    assert (result.path, result.base) == (str(tmp_path / "run"), "ba5e")


def test_results_of_another_run(tmp_path: Path) -> None:
    one, other = finished(tmp_path / "one"), finished(tmp_path / "other", lr=0.01)
    write_facts(one, {SEAL: sealed((one / "results.json").read_bytes())})
    assert read_result(one).lr == 0.003
    (one / "results.json").write_bytes((other / "results.json").read_bytes())
    with pytest.raises(RunError, match=r"results\.json is not what this run wrote.*fedsdr resume"):
        read_result(one)


def test_an_unfinished_run_is_named_with_the_way_on(tmp_path: Path) -> None:
    (finished(tmp_path / "run") / "results.json").unlink()
    with pytest.raises(RunError, match=r"not finished; go on with `fedsdr resume .*run`"):
        read_result(tmp_path / "run")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    finished(tmp_path / "fedsd-seed1")
    with pytest.raises(RunError, match="Did you mean 'fedsd-seed1'"):
        read_result(tmp_path / "fedsd-sed1")


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "results.json"),
        ("[]", "not a JSON object"),
        ("\x00", "results.json"),
        (json.dumps(RESULTS | {"seed": "3"}), "'seed'"),
        (json.dumps(RESULTS | {"seed": True}), "'seed'"),
        (json.dumps({k: v for k, v in RESULTS.items() if k != "world"}), "'world'"),
        (json.dumps(RESULTS | {"lr": None}), "'lr'"),
        (json.dumps(RESULTS | {"scores": []}), "'scores'"),
        (json.dumps(RESULTS | {"scores": {"global": 3}}), "scores.global"),
        (json.dumps(RESULTS | {"scores": {"global": {"recall": "x"}}}), "scores.global.recall"),
        (
            json.dumps(RESULTS | {"scores": {"global": {"recall": float("nan")}}}),
            "scores.global.rec",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, text: str, culprit: str) -> None:
    folder = finished(tmp_path / "run")
    (folder / "results.json").write_text(text)
    with pytest.raises(CorruptArtifact, match=r"results\.json is damaged.*fedsdr resume") as caught:
        read_result(folder)
    assert culprit in str(caught.value)


def test_one_bad_directory_among_good_ones_is_named(tmp_path: Path) -> None:
    good, bad = finished(tmp_path / "good"), finished(tmp_path / "bad", "{")
    with pytest.raises(FedsdrError, match=str(bad)):
        read_results([good, bad])


def test_measures_shown_by_default(tmp_path: Path) -> None:
    atlas = finished(tmp_path / "atlas")
    files = finished(tmp_path / "files", scores={"global": {"loss": 1.0, "perplexity": 2.7}})
    other = finished(tmp_path / "other", scores={"global": {"zeal": 1.0}})
    assert default_measures(read_results([atlas])) == ("recall", "retention")
    assert default_measures(read_results([files])) == ("loss",)
    assert default_measures(read_results([other])) == ("zeal",)
