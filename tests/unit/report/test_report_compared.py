"""Runs put side by side, and the three sentences that come of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fedsdr.evaluate.comparison import Comparison
from fedsdr.evaluate.statistics import Summary
from fedsdr.evaluate.verdicts import Contrast, Finding
from fedsdr.report.compared import Group, differing, flat, grouped
from fedsdr.report.read import read_records
from fedsdr.report.record import RunRecord
from fedsdr.report.sections.absences import parse_reason
from fedsdr.report.sections.cost import phases, planned_bytes
from fedsdr.report.sections.courses import worst_tenth
from fedsdr.report.sections.personal import Material, gains
from fedsdr.report.sections.scores import contrasts
from fedsdr.report.words import verdict
from made_runs import write_run

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture
def eight(tmp_path: Path) -> list[RunRecord]:
    """Two methods over eight seeds; FedSD is ahead by 0.1, give or take a little."""
    runs = [
        write_run(tmp_path / f"{method}-{seed}", method, seed, recall=base + 0.004 * (seed % 3))
        for seed in range(1, 9)
        for method, base in (("fedavg", 0.4), ("fedsd", 0.5 + 0.002 * (seed % 2)))
    ]
    return read_records(runs)


def test_runs_of_one_method_are_one_row_and_pairs_are_tested(eight: list[RunRecord]) -> None:
    (group,) = grouped(eight)
    assert list(group.runs) == ["fedavg", "fedsd"]
    assert group.seeds == list(range(1, 9))
    assert group.primary == "recall"
    finding = group.finding("fedsd", "global", "recall")
    assert finding is not None
    assert finding.holds_up
    assert finding.difference is not None
    assert finding.difference.mean == pytest.approx(0.101)


def test_the_verdict_on_several_runs(eight: list[RunRecord]) -> None:
    found = verdict(Material(eight))
    assert found.title == "FedAvg and FedSD over 8 seeds"
    assert found.sentences == (
        "FedSD has the highest recall, 0.520 ± 0.003, before FedAvg with 0.420 ± 0.003; against "
        "FedAvg that is +0.1010 [+0.1001, +0.1019], which holds up.",
        "Besides, against FedAvg it is ahead on hallucination (−0.1010, holds up); level on "
        "retention (0.00) and redundancy (0.00).",
        "Over 8 seeds, 2 of 4 contrasts hold up (paired t and sign-flip, Holm-adjusted).",
    )


def test_what_is_tested_can_be_named_beforehand(eight: list[RunRecord]) -> None:
    (group,) = grouped(eight, [Contrast.parse("fedsd:global > fedavg:global on recall")])
    assert group.comparison is not None
    assert [str(f.contrast) for f in group.comparison.findings] == [
        "fedsd:global > fedavg:global on recall"
    ]


def test_the_verdict_on_one_run(tmp_path: Path) -> None:
    (record,) = read_records([write_run(tmp_path / "run")])
    found = verdict(Material([record]))
    assert found.title == "FedSDR on 4 clients, seed 1"
    assert found.tags == ("finished", "4 of 4 rounds", "synthetic data")
    # Clients score .50 … .53 on the global model, .2 more on their own.
    assert found.sentences == (
        "FedSDR, after 4 rounds: its global model (of round 4) reaches recall 0.52, retention 0.90 "
        "and hallucination 0.48; its personal model (of round 4) reaches recall 0.71, retention "
        "0.90 and hallucination 0.29.",
        "On recall, the personal model is ahead of the global one for 4 of 4 clients: by +0.20 on "
        "average, from +0.20 (c0) to +0.20 (c3).",
        "4 MB went up and 4 MB down: 100 % of the 8 MB that all the recipe's rounds come to where "
        "everyone answers; in the last round 25 % of the pairs of clients had R's cosine below 0; "
        "with one seed nobody knows yet whether this holds up.",
    )


def test_a_run_that_is_not_finished_has_no_scores_yet(tmp_path: Path) -> None:
    (record,) = read_records([write_run(tmp_path / "run", finished=False)])
    found = verdict(Material([record]))
    assert found.state == "stopped"
    assert found.sentences[0] == (
        "FedSDR is stopped before its end after 4 rounds, at a mean training loss of 0.500. There "
        f"are no final scores yet: `fedsdr resume {record.path}` goes on."
    )


def test_a_method_with_two_recipes_is_called_by_what_sets_them_apart(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{name}-{seed}", "fedprox", seed, options=options)
        for seed in (1, 2)
        for name, options in (("a", {"mu": 0.1}), ("b", {"mu": 1.0}), ("c", {"mu": 0.1, "x": 2}))
    ]
    (group,) = grouped(read_records(runs))
    assert list(group.runs) == ["fedprox", "fedprox (mu=1.0)", "fedprox (x=2)"]
    assert group.comparison is not None
    assert "fedprox (mu=1.0)" in group.called(group.comparison.findings[0].verdict)


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, "fedavg") for name in ("a", "b")]
    (group,) = grouped(read_records(runs))
    assert [len(of) for of in group.runs.values()] == [1]
    assert group.notes == ("b is left out: a is the same method and recipe with the same seed.",)


def test_other_data_are_another_group(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "fedavg"),
        write_run(tmp_path / "b", "fedsd", synthetic=False),
    ]
    path = runs[1] / "results.json"
    path.write_text(path.read_text().replace("world-1", "world-x"))
    groups = grouped(read_records(runs))
    assert [group.setting for group in groups] == ["data 1 of 2", "data 2 of 2"]


def test_runs_over_other_bases_are_no_pairs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / method, method) for method in ("fedavg", "fedsd")]
    own, other = read_records(runs)
    groups = grouped([own, replace(other, facts={**other.facts, "base_digest": "c" * 64})])
    assert [group.setting for group in groups] == ["base bbbbbbbbbbbb", "base cccccccccccc"]
    assert not any(group.comparison and group.comparison.findings for group in groups)


LEFT = ("fedsd", 2)


def test_seeds_are_those_that_are_pairs(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{method}-{seed}", method, seed, finished=(method, seed) != LEFT)
        for seed in (1, 2)
        for method in ("fedavg", "fedsd")
    ]
    found = verdict(Material(read_records(runs)))
    assert found.state == "stopped"
    assert found.sentences[-1].startswith("With 1 seed and ")
    assert found.sentences[-1].endswith("1 run without final scores is not in it.")


def test_an_interval_that_ends_at_zero_is_shown() -> None:
    difference = Summary(2, -0.1, 0.02, (-0.2, 0.0))
    contrast = Contrast.parse("fedsd:global > fedavg:global on recall")
    finding = Finding(
        contrast=contrast,
        seeds=(1, 2),
        left_out=(),
        difference=difference,
        paired_t_p=0.0496,
        sign_flip_p=0.5,
        paired_t_holm=0.0496,
        sign_flip_holm=0.5,
        lowest_holm=0.5,
        family=1,
    )
    found = Comparison(("recall",), (), (finding,), ())
    cells = contrasts(Group("", {}, found, ("recall",), ()), {"recall": 1}).rows[0]
    assert [cell.main for cell in cells[3:]] == ["−0.10", "0.0496", "0.50", "too few seeds to tell"]
    assert cells[3].sub == "[−0.20, 0.00]"


def test_what_differs_between_recipes(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", "fedavg", 1), write_run(tmp_path / "b", "fedsd", 2)]
    assert differing(read_records(runs)) == ["algorithm.name"]  # a seed is no difference
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": "1", "d": "[1]"}


def test_the_worst_tenth() -> None:
    values = [n / 100 for n in range(25)]
    assert worst_tenth(values, "recall") == pytest.approx((0 + 0.01 + 0.02) / 3)
    assert worst_tenth(values, "loss") == pytest.approx((0.24 + 0.23 + 0.22) / 3)
    assert worst_tenth([0.4], "recall") == 0.4


def test_gains_are_client_by_client(tmp_path: Path) -> None:
    (record,) = read_records([write_run(tmp_path / "run")])
    found = gains(record, "recall")
    assert found["c2"] == (pytest.approx(0.52), pytest.approx(0.72))
    assert gains(record, "unknown") == {}


def test_time_is_not_counted_twice(tmp_path: Path) -> None:
    """4 rounds of 20 s in all, of which 18 are known by phase."""
    (record,) = read_records([write_run(tmp_path / "run")])
    assert phases(record) == {
        "rewriting": 5.0, "training": 12.0, "combining": 2.0, "validation": 4.0,
        "other, within rounds": 2.0, "final scores": 2.0,
    }  # fmt: skip


def test_a_budget_is_what_the_recipe_allows_for(tmp_path: Path) -> None:
    """Round 1 lost one of four: its 1 MB from three would have been 4/3 MB from all."""
    run = write_run(tmp_path / "run", refused={1: ["client 'c3' lost: gone"]})
    (record,) = read_records([run])
    assert planned_bytes(record) == pytest.approx(4 * ((4 / 3 + 1) + 3 * 2) / 4 * 1e6)


@pytest.mark.parametrize(
    ("text", "who", "why"),
    [
        ("client 'c1' lost: it hung up", "c1", "it hung up"),
        ("update of client 'c 3' refused: too large", "c 3", "too large"),
        (
            "update of client \"o'n\" refused, tensor 'R/x.A': holds NaN",
            "o'n",
            "tensor 'R/x.A': holds NaN",
        ),
        ("something else", "unknown", "something else"),
    ],
)
def test_reasons_are_taken_apart(text: str, who: str, why: str) -> None:
    assert parse_reason(text) == (who, why)
