"""Answers kept, a kill in the middle, scoring again, what was forgotten, the results file."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark_files import FILES, Scripted, all_right, mmlu, write
from fedsdr.errors import CorruptArtifact, DataError, FedsdrError, ModelError, RunError
from fedsdr.evaluate.benchmarks.answerer import Answerer
from fedsdr.evaluate.benchmarks.results import Results, merge_files, read_results_file
from fedsdr.evaluate.benchmarks.run import Setting, evaluate_benchmarks
from fedsdr.evaluate.benchmarks.session import limited
from fedsdr.evaluate.benchmarks.tasks import BENCHMARKS, Candidate, chosen_benchmarks

MODEL, OTHER, ADAPTER = "a" * 64, "b" * 64, "c" * 64
EVERY = tuple(BENCHMARKS)
pytestmark = pytest.mark.usefixtures("no_fsync")


def nobody(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    data = write(tmp_path / "eval")
    return Setting(
        folder=tmp_path / "out",
        data=data,
        base=MODEL,
        dtype="float32",
        seed=1,
        batch=2,
        limit=None,
        runner=None,
        advance=nobody,
    )


def on(script: Scripted) -> Callable[[], AbstractContextManager[Answerer]]:
    return lambda: nullcontext(script)


def base(script: Scripted | None) -> Candidate:
    return Candidate("base", "", None, on(script) if script else None)


def adapted(script: Scripted | None, mix: str = "global", digest: str = ADAPTER) -> Candidate:
    return Candidate(mix, digest, 3, on(script) if script else None)


def run(setting: Setting, tasks: str, *candidates: Candidate) -> Results:
    return evaluate_benchmarks(setting, chosen_benchmarks(tasks.split(",")), candidates)


def scores(results: Results) -> dict[tuple[str, str], float | None]:
    return {(e.task, e.mix): e.score for e in results.entries}


def right(setting: Setting, task: str) -> Scripted:
    return all_right(BENCHMARKS[task].read(setting.data))


def test_all_tasks_with_one_that_says_nothing(setting: Setting) -> None:
    found = run(setting, ",".join(EVERY), base(Scripted(lambda prompt: "")))
    assert scores(found) == {
        (task, "base"): {"fpb": 0.5, "humaneval": None}.get(task, 0.0) for task in EVERY
    }
    assert all(e.measures["empty"] == 1.0 for e in found.entries)
    (note,) = next(e for e in found.entries if e.task == "humaneval").notes
    assert "--run-code" in note


def test_what_is_kept_is_private_and_says_what_it_is(setting: Setting) -> None:
    run(setting, "mmlu", base(right(setting, "mmlu")))
    file, results = setting.folder / "base" / "mmlu.jsonl", setting.folder / "results.json"
    assert {stat.S_IMODE(p.stat().st_mode) for p in (file, results)} == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {row["id"] for row in rows} == {row["id"] for row in FILES["mmlu.jsonl"]}
    assert {(row["answer"], row["score"]) for row in rows} == {("A", 1.0), ("B", 1.0)}
    (entry,) = read_results_file(results).entries
    assert (entry.task, entry.n, entry.score, entry.adapter, entry.round) == (
        "mmlu",
        3,
        1,
        "",
        None,
    )
    assert entry.settings["max_new_tokens"] == 2
    assert entry.settings["shots"] == 5
    assert {"fedsdr", "torch", "transformers", "python"} <= entry.versions.keys()
    assert "Question" not in results.read_text()


def test_each_item_is_asked_once_in_a_life(setting: Setting) -> None:
    run(setting, "mmlu", base(right(setting, "mmlu")))
    again = Scripted(lambda prompt: "zzz")
    assert scores(run(setting, "mmlu", base(again))) == {("mmlu", "base"): 1.0}
    assert again.asked == []


def test_a_kill_in_the_middle_goes_on_where_it_stopped(setting: Setting, tmp_path: Path) -> None:
    undisturbed = replace(setting, folder=tmp_path / "undisturbed")
    run(undisturbed, "bbh", base(right(setting, "bbh")))
    dying = right(setting, "bbh")
    dying.dies_after = 2
    with pytest.raises(KeyboardInterrupt):
        run(setting, "bbh", base(dying))
    assert len(dying.asked) == 4
    going_on = right(setting, "bbh")
    run(setting, "bbh", base(going_on))
    assert len(going_on.asked) == 1
    whole = (undisturbed.folder / "base" / "bbh.jsonl").read_bytes()
    assert (setting.folder / "base" / "bbh.jsonl").read_bytes() == whole


def test_a_torn_line_costs_its_batch_and_changes_nothing(setting: Setting) -> None:
    """Batches of two: with the fourth of five answers torn, the third is there already, but is
    asked again beside it, so that the batch is the same."""
    run(setting, "bbh", base(right(setting, "bbh")))
    file = setting.folder / "base" / "bbh.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:30])
    going_on = right(setting, "bbh")
    run(setting, "bbh", base(going_on))
    assert len(going_on.asked) == 3
    assert file.read_bytes() == whole


def test_another_adapter_is_another_model(setting: Setting) -> None:
    run(setting, "fpb", base(right(setting, "fpb")), adapted(right(setting, "fpb")))
    other = Scripted(lambda prompt: "")
    found = run(setting, "fpb", base(None), adapted(other, digest=OTHER))
    assert len(other.asked) == 4
    assert scores(found) == {("fpb", "base"): 1.0, ("fpb", "global"): 0.5}


def test_seeds_belong_to_the_item(setting: Setting) -> None:
    """Whatever else is asked; and greedy answers do not depend on the run's seed at all."""
    rows = [{**FILES["humaneval.jsonl"][0], "task_id": f"HumanEval/{n}"} for n in range(3)]
    write(setting.data, {"humaneval.jsonl": rows})
    every, one = Scripted(lambda p: ""), Scripted(lambda p: "")
    run(setting, "humaneval", base(every))
    run(replace(setting, folder=setting.folder / "b", limit=1), "humaneval", base(one))
    assert len(set(every.seeds)) == 3
    assert set(one.seeds) < set(every.seeds)
    other = Scripted(lambda p: "")
    run(replace(setting, seed=2), "humaneval", base(other))
    assert not set(other.seeds) & set(every.seeds)
    run(setting, "mmlu", base(right(setting, "mmlu")))
    greedy = right(setting, "mmlu")
    run(replace(setting, seed=2), "mmlu", base(greedy))
    assert greedy.asked == []


def test_rescoring_asks_nobody(setting: Setting) -> None:
    run(setting, "mmlu,fpb", base(Scripted(lambda p: "A positive")))
    file = setting.folder / "base" / "mmlu.jsonl"
    before = file.read_text()
    file.write_text(before.replace('"score": 0.0', '"score": 1.0'))  # an older way of scoring
    again = run(setting, "mmlu,fpb", base(None))
    assert scores(again) == {("mmlu", "base"): pytest.approx(2 / 3), ("fpb", "base"): 0.25}
    assert file.read_text() == before


def test_rescoring_says_what_is_not_there(setting: Setting) -> None:
    with pytest.raises(RunError, match="3 of 3 answers to mmlu are not kept; leave out --rescore"):
        run(setting, "mmlu", base(None))
    run(setting, "mmlu", base(right(setting, "mmlu")))
    with pytest.raises(RunError, match="the answers there are another model's"):
        run(setting, "mmlu", Candidate("base", OTHER, None, None))
    write(setting.data, {"mmlu.jsonl": [mmlu(1, "virology", "A"), *FILES["mmlu.jsonl"][1:]]})
    with pytest.raises(RunError, match="1 of 3 answers to mmlu are not kept"):
        run(setting, "mmlu", base(None))


def test_code_is_run_later_from_what_was_kept(setting: Setting) -> None:
    ran: list[tuple[str, str]] = []

    def runner(code: str, tests: str) -> bool:
        ran.append((code, tests))
        return "2 * x" in code

    run(setting, "humaneval", base(Scripted(lambda p: "\n    return 2 * x\n\ndef more(): ...")))
    assert scores(run(setting, "humaneval", base(None))) == {("humaneval", "base"): None}
    found = run(replace(setting, runner=runner), "humaneval", base(None))
    assert scores(found) == {("humaneval", "base"): 1.0}
    ((code, tests),) = ran
    assert code.endswith("    return 2 * x\n")
    assert tests.endswith(FILES["humaneval.jsonl"][0]["test"] + "\ncheck(twice)")
    # From then on the score is kept with the answer.
    assert scores(run(setting, "humaneval", base(None))) == {("humaneval", "base"): 1.0}


def test_what_was_forgotten_is_said(setting: Setting) -> None:
    rows = [mmlu(n, "virology", "A") for n in range(20)]
    write(setting.data, {"mmlu.jsonl": rows})
    knows, knows_nothing = Scripted(lambda p: " A"), Scripted(lambda p: " B")
    found = run(setting, "mmlu", base(knows), adapted(knows_nothing), adapted(knows, "twin", OTHER))
    lost, same = found.forgetting
    assert (lost.mix, lost.n, lost.difference, lost.interval) == ("global", 20, -1.0, (-1.0, -1.0))
    assert lost.words == "mmlu: base 1.000, global 0.000: forgotten, -1.000 [-1.000, -1.000]."
    assert same.words == "mmlu: base 1.000, twin 1.000: the same on each of 20 items."


def test_a_small_difference_does_not_hold_up(setting: Setting) -> None:
    rows = [mmlu(n, "virology", "A") for n in range(20)]
    write(setting.data, {"mmlu.jsonl": rows})
    knows = Scripted(lambda p: " A")
    lapse = Scripted(lambda p: " B" if "Question 7?" in p else " A")
    (forgot,) = run(setting, "mmlu", base(knows), adapted(lapse)).forgetting
    assert forgot.difference == pytest.approx(-0.05)
    assert "no difference that holds up, -0.050 [-0.150, +0.000]" in forgot.words


def test_bbh_is_held_against_the_base_config_by_config(setting: Setting) -> None:
    """Four items of one config, one of the other: right on the small one only is ½, not ⅕."""
    small = all_right(BENCHMARKS["bbh"].read(setting.data), lambda g: g if g == "1" else "zzz")
    (forgot,) = run(setting, "bbh", base(right(setting, "bbh")), adapted(small)).forgetting
    assert (forgot.base, forgot.score, forgot.difference) == (1.0, 0.5, -0.5)


def test_a_limit_takes_from_every_group_in_turn(setting: Setting) -> None:
    found = BENCHMARKS["bbh"].read(setting.data)
    assert [q.id for q in limited(found, 2).items] == ["bbh-big-4", "bbh-small-9"]
    assert [q.id for q in limited(found, 3).items] == ["bbh-big-4", "bbh-big-5", "bbh-small-9"]
    assert limited(found, 99).items == found.items
    (entry,) = run(replace(setting, limit=2), "bbh", base(right(setting, "bbh"))).entries
    assert (entry.n, entry.settings["limit"]) == (2, 2)


def test_where_a_model_is_small_it_is_said(setting: Setting) -> None:
    small = right(setting, "mmlu")
    small.positions = 50
    (entry,) = run(setting, "mmlu", base(small)).entries
    assert entry.notes == [
        "3 of 3 prompts lost shots: a prompt may have 48 tokens, as the model has 50 positions"
    ]
    tiny = right(setting, "mmlu")
    tiny.positions = 2
    with pytest.raises(ModelError, match="mmlu needs 2 tokens for an answer; the model has 2"):
        run(replace(setting, folder=setting.folder / "tiny"), "mmlu", base(tiny))


def test_nothing_left_to_ask(setting: Setting) -> None:
    write(setting.data, {"drop.jsonl": FILES["drop.jsonl"][:1]})
    with pytest.raises(DataError, match=r"drop.jsonl: all of its items are among the shots"):
        run(setting, "drop", base(right(setting, "mmlu")))


def test_results_of_several_calls_stand_side_by_side(setting: Setting) -> None:
    run(setting, "mmlu", base(right(setting, "mmlu")), adapted(right(setting, "mmlu")))
    run(setting, "fpb", base(right(setting, "fpb")), adapted(right(setting, "fpb")))
    kept = read_results_file(setting.folder / "results.json")
    assert [(e.task, e.mix) for e in kept.entries] == [
        *(("fpb", "base"), ("fpb", "global")),
        *(("mmlu", "base"), ("mmlu", "global")),
    ]
    assert len(kept.forgetting) == 2
    # A newer adapter: the older one's figures go, the base's stay.
    run(setting, "fpb", base(None), adapted(right(setting, "fpb"), digest=OTHER))
    kept = read_results_file(setting.folder / "results.json")
    assert ("mmlu", "base") in scores(kept)
    assert ("mmlu", "global") not in scores(kept)
    assert [f.task for f in kept.forgetting] == ["fpb"]


def test_files_of_the_same_models_are_merged(setting: Setting, tmp_path: Path) -> None:
    elsewhere = replace(setting, folder=tmp_path / "elsewhere")
    run(setting, "mmlu", base(right(setting, "mmlu")), adapted(right(setting, "mmlu")))
    run(elsewhere, "mmlu,fpb", base(Scripted(lambda p: "A")))
    run(elsewhere, "fpb", base(None), adapted(right(setting, "fpb")))
    file = elsewhere.folder / "results.json"
    changed = json.loads(file.read_text())
    changed["entries"] = [e for e in changed["entries"] if e["task"] == "fpb"]
    file.write_text(json.dumps(changed))
    merged = merge_files(setting.folder, MODEL, [file])
    assert scores(merged).keys() == {(t, m) for t in ("mmlu", "fpb") for m in ("base", "global")}
    assert merge_files(setting.folder, MODEL, [file]) == merged
    assert read_results_file(setting.folder / "results.json") == merged


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"base": OTHER}, RunError, "figures of another base model"),
        ({"format": 2}, CorruptArtifact, "no results file of format 1: format"),
        ({"more": 1}, CorruptArtifact, "more: Extra inputs"),
        ({"entries": [{}]}, CorruptArtifact, r"entries\.0\.task: Field required"),
        ({"adapter": OTHER}, RunError, "its 'global' is another adapter"),
        ({"score": 0.5}, RunError, "mmlu of 'global' is there with other figures"),
        ({"score": float("nan")}, CorruptArtifact, "score"),
    ],
)
def test_what_does_not_belong_is_refused(
    setting: Setting, tmp_path: Path, change: dict[str, object], error: type[FedsdrError], said: str
) -> None:
    run(setting, "mmlu", base(right(setting, "mmlu")), adapted(right(setting, "mmlu")))
    own = setting.folder / "results.json"
    values = json.loads(own.read_text())
    into = values["entries"][1] if change.keys() & {"adapter", "score"} else values
    into.update(change)
    (tmp_path / "other.json").write_text(json.dumps(values))
    before = own.read_bytes()
    with pytest.raises(error, match=said) as raised:
        merge_files(setting.folder, MODEL, [tmp_path / "other.json"])
    assert str(tmp_path / "other.json") in str(raised.value)
    assert own.read_bytes() == before


def test_a_file_that_contradicts_itself_is_refused(setting: Setting, tmp_path: Path) -> None:
    run(setting, "mmlu", base(right(setting, "mmlu")), adapted(right(setting, "mmlu")))
    own, other = setting.folder / "results.json", tmp_path / "other.json"
    values = json.loads(own.read_text())
    other.write_text(json.dumps({**values, "entries": [*values["entries"], values["entries"][0]]}))
    merge_files(tmp_path / "fresh", MODEL, [other])  # twice the same is the same
    twin = {**values["entries"][0], "score": 0.5}
    other.write_text(json.dumps({**values, "entries": [*values["entries"], twin]}))
    with pytest.raises(RunError, match=r"other\.json: mmlu of 'base' is there with other figures"):
        merge_files(tmp_path / "fresh", MODEL, [other])
    settings = {**values["entries"][0]["settings"], "dtype": "float16"}
    twin = {**values["entries"][0], "settings": settings}
    other.write_text(json.dumps({**values, "entries": [twin]}))
    with pytest.raises(RunError, match=r"other figures, items or settings"):
        merge_files(setting.folder, MODEL, [other])
    forgot = {**values["forgetting"][0], "task": "bbh"}
    other.write_text(json.dumps({**values, "forgetting": [forgot]}))
    with pytest.raises(RunError, match=r"what 'global' forgot on bbh, of which there are no fig"):
        merge_files(setting.folder, MODEL, [other])
    own.write_text(json.dumps({**values, "base": OTHER}))
    with pytest.raises(RunError, match=r"out/results\.json holds figures of another base.*away"):
        merge_files(setting.folder, MODEL, [other])


def test_a_results_file_of_another_model_stops_before_anything_is_asked(setting: Setting) -> None:
    run(setting, "mmlu", base(right(setting, "mmlu")))
    idle = right(setting, "mmlu")
    with pytest.raises(RunError, match="of another base model"):
        run(replace(setting, base=OTHER), "mmlu", base(idle))
    assert idle.asked == []


def test_no_results_file_and_a_damaged_line(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        merge_files(setting.folder, MODEL, [tmp_path / "none.json"])
    run(setting, "fpb", base(right(setting, "fpb")))
    file = setting.folder / "base" / "fpb.jsonl"
    file.write_text(file.read_text().replace('"shots": 0', '"shots": "0"'))
    with pytest.raises(CorruptArtifact, match=r"fpb.jsonl, line 1: 'shots' is missing or of the"):
        run(setting, "fpb", base(right(setting, "fpb")))
