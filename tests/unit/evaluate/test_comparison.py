from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from fedsdr.errors import RecipeError
from fedsdr.evaluate.comparison import (
    DEFAULT_MEASURES,
    RunResult,
    compare,
    default_contrasts,
    render_text,
    table_rows,
)
from fedsdr.evaluate.verdicts import Contrast

RECALL = Contrast("fedsd:global", "fedavg:global", "recall")
FEDAVG = [0.20, 0.22, 0.24, 0.26, 0.21, 0.23, 0.25, 0.27]
AHEAD = [0.11, 0.13, 0.12, 0.14, 0.10, 0.15, 0.12, 0.13]  # mean .125


def run(method: str, seed: int, **measures: float) -> RunResult:
    return RunResult(
        path=f"runs/{method}-{seed}",
        method=method,
        seed=seed,
        world=f"world-{seed}",
        lr=3e-3,
        scores={"global": measures},
    )


def pairs(differences: list[float], measure: str = "recall") -> list[RunResult]:
    """FedAvg and FedSD over as many seeds as there are differences."""
    base = FEDAVG[: len(differences)]
    fedavg = [run("fedavg", s, **{measure: b}) for s, b in enumerate(base)]
    fedsd = [
        run("fedsd", s, **{measure: b + d})
        for s, (b, d) in enumerate(zip(base, differences, strict=True))
    ]
    return fedavg + fedsd


def verdict(results: list[RunResult], *contrasts: Contrast) -> str:
    measures = [contrasts[0].measure]
    return compare(results, contrasts, measures).findings[0].verdict


def test_a_clear_difference_over_eight_seeds_holds_up() -> None:
    comparison = compare(pairs(AHEAD), [RECALL], ["recall"])
    (finding,) = comparison.findings
    assert finding.holds_up
    assert finding.seeds == tuple(range(8))
    assert finding.left_out == ()
    assert finding.difference is not None
    assert finding.difference.mean == pytest.approx(0.125)
    assert finding.sign_flip_p == finding.sign_flip_holm == 2 / 256
    assert finding.paired_t_p == finding.paired_t_holm
    # sd of AHEAD = sqrt(.0018/7) = .016036; t(.975, 7 df) = 2.364624; half width .013406
    assert finding.verdict == (
        "FedSD beats FedAvg on recall by 0.125 [0.112, 0.138]; this holds up "
        "(paired t p < 0.0001, sign-flip p = 0.0078, Holm over 1 contrast)."
    )


def test_the_verdict_is_from_the_left_sides_view_and_knows_what_is_better() -> None:
    behind = [-d for d in AHEAD]
    assert verdict(pairs(behind), RECALL).startswith(
        "FedSD loses to FedAvg on recall by 0.125 [0.112, 0.138]; this holds up"
    )
    hallucination = Contrast("fedsd:global", "fedavg:global", "hallucination")
    assert verdict(pairs(behind, "hallucination"), hallucination).startswith(
        "FedSD beats FedAvg on hallucination (lower is better) by 0.125 [0.112, 0.138]"
    )
    assert verdict(pairs(AHEAD, "hallucination"), hallucination).startswith("FedSD loses to FedAvg")
    length = Contrast("fedsd:global", "fedavg:global", "length")
    assert verdict(pairs(behind, "length"), length).startswith("FedSD is lower than FedAvg on len")
    assert verdict(pairs(AHEAD, "length"), length).startswith("FedSD is higher than FedAvg on len")


def test_a_difference_that_does_not_hold_up_is_not_called_a_win() -> None:
    text = verdict(pairs([0.1, -0.08, 0.05, -0.04, 0.06, -0.05, 0.02, 0.01]), RECALL)
    # sum .07 / 8 = .00875; the interval spans zero
    assert text.startswith("FedSD is ahead of FedAvg on recall by 0.009 [-0.0")
    assert "; the difference does not hold up (paired t p = 0." in text


def test_the_t_test_alone_is_not_enough() -> None:
    # one seed against: t is far below .05; 4 of 64 sums reach .55-.02 (the two full and the two
    # with the -.01 turned), so sign-flip p = 4/64
    (finding,) = compare(
        pairs([0.10, 0.11, 0.12, 0.10, 0.11, -0.01]), [RECALL], ["recall"]
    ).findings
    assert finding.paired_t_p is not None
    assert finding.paired_t_p < 0.05
    assert finding.sign_flip_p == 4 / 64
    assert not finding.holds_up
    assert "is ahead of" in finding.verdict
    assert "does not hold up" in finding.verdict


def test_the_sign_flip_test_alone_is_not_enough() -> None:
    # all six agree, but one seed carries nearly all: sign-flip .031, t above .05
    (finding,) = compare(
        pairs([0.001, 0.001, 0.001, 0.001, 0.001, 0.5]), [RECALL], ["recall"]
    ).findings
    assert finding.sign_flip_p == 2 / 64
    assert finding.paired_t_p is not None
    assert finding.paired_t_p > 0.05
    assert not finding.holds_up


def test_when_every_seed_differs_by_the_same_the_sign_flip_test_decides() -> None:
    (finding,) = compare(pairs([0.1] * 8), [RECALL], ["recall"]).findings
    assert finding.paired_t_p is None
    assert finding.holds_up
    assert "paired t undefined as all seeds differ by the same amount" in finding.verdict


def test_no_difference_at_all() -> None:
    (finding,) = compare(pairs([0.0] * 8), [RECALL], ["recall"]).findings
    assert finding.paired_t_p == finding.sign_flip_p == 1.0
    assert finding.verdict == "FedSD and FedAvg are level on recall over 8 seeds."
    # 0.1 + 0.2 is not 0.3 in the last bit; that is no difference
    results = [run("fedavg", s, recall=0.3) for s in range(6)]
    results += [run("fedsd", s, recall=0.1 + 0.2) for s in range(6)]
    assert compare(results, [RECALL], ["recall"]).findings[0].sign_flip_p == 1.0


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_fewer_than_six_seeds_can_show_nothing(n: int) -> None:
    comparison = compare(pairs(AHEAD[:n]), [RECALL], ["recall"])
    (finding,) = comparison.findings
    assert not finding.holds_up
    assert finding.verdict.endswith("; with fewer than 6 seeds nothing can be significant.")
    assert "is ahead of" in finding.verdict
    assert "run at least 6 seeds." in render_text(comparison)


def test_one_seed_gives_no_interval_and_no_p() -> None:
    comparison = compare(pairs([0.1]), [RECALL], ["recall"])
    (finding,) = comparison.findings
    assert (finding.paired_t_p, finding.sign_flip_p, finding.holds_up) == (None, None, False)
    assert finding.verdict == (
        "FedSD is ahead of FedAvg on recall by 0.100; with fewer than 6 seeds nothing can be "
        "significant."
    )
    assert table_rows(comparison)[0] == ("fedavg", "global", "1", "0.200")


def many(names: int, seeds: int) -> tuple[list[RunResult], list[Contrast]]:
    """FedSD ahead in every seed on each of some measures, by amounts that vary."""
    measures = [f"m{i}" for i in range(names)]
    results = [run("fedavg", s, **dict.fromkeys(measures, 0.2)) for s in range(seeds)]
    results += [run("fedsd", s, **dict.fromkeys(measures, 0.3 + 0.001 * s)) for s in range(seeds)]
    return results, [Contrast("fedsd:global", "fedavg:global", m) for m in measures]


def test_holm_is_over_all_contrasts_named() -> None:
    results, contrasts = many(6, 8)
    findings = compare(results, contrasts, []).findings
    assert {f.sign_flip_holm for f in findings} == {6 * 2 / 256}  # .0469
    assert all(f.holds_up for f in findings)
    assert "Holm over 6 contrasts" in findings[0].verdict


def test_too_many_contrasts_for_the_seeds_is_said_with_the_remedy() -> None:
    # 7 * 2/256 = .0547: however clear, nothing can hold up; 7 * 2/512 = .027 could
    results, contrasts = many(7, 8)
    comparison = compare(results, contrasts, [])
    assert not any(f.holds_up for f in comparison.findings)
    assert comparison.findings[0].verdict.endswith(
        "; with 8 seeds and 7 contrasts nothing can be significant."
    )
    text = render_text(comparison)
    assert "with 8 paired seeds and 7 contrasts" in text
    assert "run at least 9 seeds, or name at most 6 contrasts beforehand." in text

    results, contrasts = many(7, 9)
    comparison = compare(results, contrasts, [])
    assert all(f.holds_up for f in comparison.findings)
    assert "Nothing can be significant" not in render_text(comparison)


def test_seeds_that_only_one_side_has_are_left_out_and_named() -> None:
    results = [r for r in pairs(AHEAD) if (r.method, r.seed) not in {("fedavg", 2), ("fedsd", 5)}]
    (finding,) = compare(results, [RECALL], ["recall"]).findings
    assert finding.seeds == (0, 1, 3, 4, 6, 7)
    assert finding.left_out == (2, 5)
    assert finding.difference is not None
    assert finding.difference.mean == pytest.approx((0.11 + 0.13 + 0.14 + 0.10 + 0.12 + 0.13) / 6)
    assert finding.verdict.endswith(" Without seeds 2, 5, which only one of the two has.")
    results = [r for r in pairs(AHEAD) if (r.method, r.seed) != ("fedsd", 5)]
    assert verdict(results, RECALL).endswith(" Without seed 5, which only one of the two has.")


def test_no_seed_in_common() -> None:
    results = [run("fedavg", 1, recall=0.2), run("fedsd", 2, recall=0.3)]
    comparison = compare(results, [RECALL], ["recall"])
    assert comparison.findings[0].verdict == (
        "FedSD and FedAvg cannot be compared on recall: they have no seed in common. "
        "Without seeds 1, 2, which only one of the two has."
    )
    json.dumps(comparison.to_json(), allow_nan=False)
    assert "0 paired seeds" in render_text(comparison)


def test_the_order_of_the_runs_changes_nothing_in_the_pairing() -> None:
    forward = compare(pairs(AHEAD), [RECALL], ["recall"]).findings
    assert compare(pairs(AHEAD)[::-1], [RECALL], ["recall"]).findings == forward


def test_table_rows() -> None:
    results = pairs([0.1, 0.12])
    results.append(
        RunResult(
            path="x",
            method="fedsdr",
            seed=0,
            world="world-0",
            lr=1e-3,
            scores={"global": {"recall": 0.5}, "personal": {}},
        )
    )
    results.append(
        RunResult(
            path="y",
            method="fedsdr",
            seed=1,
            world="world-1",
            lr=1e-3,
            scores={"global": {"length": 9}, "personal": {}},
        )
    )
    comparison = compare(results, [], ["recall", "length"])
    # fedavg .20, .22: mean .21, sd .014142; fedsd .30, .34: mean .32, sd .028284
    assert table_rows(comparison) == [
        ("fedavg", "global", "2", "0.210 ± 0.014", "—"),
        ("fedsd", "global", "2", "0.320 ± 0.028", "—"),
        ("fedsdr", "global", "2", "0.500 (n=1)", "9.000 (n=1)"),
        ("fedsdr", "personal", "2", "—", "—"),
    ]
    assert render_text(comparison) == ""


def test_personal_models_are_named_as_such() -> None:
    results = [
        RunResult(
            path=f"runs/{s}",
            method="fedsdr",
            seed=s,
            world="w",
            lr=1e-3,
            scores={"global": {"recall": 0.3}, "personal": {"recall": 0.4 + 0.01 * s}},
        )
        for s in range(6)
    ] + [
        RunResult(
            path=f"runs/a{s}",
            method="fedavg",
            seed=s,
            world="w",
            lr=1e-3,
            scores={"global": {"recall": 0.2}},
        )
        for s in range(6)
    ]
    against_global = Contrast("fedsdr:personal", "fedsdr:global", "recall")
    assert verdict(results, against_global).startswith("FedSDR (personal) beats FedSDR (global) on")
    against_fedavg = Contrast("fedsdr:personal", "fedavg:global", "recall")
    assert verdict(results, against_fedavg).startswith("FedSDR (personal) beats FedAvg on recall")


def full(method: str, seed: int, personal: bool = False) -> RunResult:
    scores = dict.fromkeys([*DEFAULT_MEASURES, "length"], 0.5)
    mixes = {"global": scores, "personal": scores} if personal else {"global": scores}
    return RunResult(
        path=f"runs/{method}", method=method, seed=seed, world="w", lr=1e-3, scores=mixes
    )


def test_default_contrasts() -> None:
    results = [full("fedsd", 0), full("fedsdr", 0, True), full("fedavg", 0), full("mine", 0, True)]
    assert [str(c) for c in default_contrasts(results)] == [
        f"{left} > fedavg:global on {measure}"
        for left in ("fedsd:global", "fedsdr:global", "fedsdr:personal", "mine:global")
        for measure in ("recall", "retention", "hallucination", "redundancy")
    ]
    without = [full("fedsd", 0), full("fedsdr", 0, True)]
    assert [str(c) for c in default_contrasts(without)][0::4] == [
        "fedsdr:global > fedsd:global on recall",
        "fedsdr:personal > fedsd:global on recall",
    ]
    assert default_contrasts([full("fedavg", 0)]) == []
    assert default_contrasts([]) == []


def test_default_contrasts_pass_over_what_no_run_has() -> None:
    results = [run("fedavg", 0, recall=0.2, redundancy=0.1), run("fedsdr", 0, recall=0.3)]
    results.append(
        RunResult(
            path="l",
            method="local",
            seed=0,
            world="world-0",
            lr=1e-3,
            scores={"personal": {"recall": 0.4}},
        )
    )
    assert [str(c) for c in default_contrasts(results)] == [
        "fedsdr:global > fedavg:global on recall"
    ]


def test_contrasts_are_read_from_text() -> None:
    assert Contrast.parse("fedsd:global > fedavg:global on recall") == RECALL
    assert Contrast.parse("  fedsd:global>fedavg:global   on recall\n") == RECALL
    assert Contrast.parse(str(RECALL)) == RECALL
    assert Contrast.parse("fedsd(fedprox):R+S > a.b_c-d:global on m").left == "fedsd(fedprox):R+S"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "fedsd > fedavg on recall",
        "fedsd:global > fedavg:global",
        "fedsd:global > fedavg:global on",
        "fedsd:global < fedavg:global on recall",
        "fedsd:global >> fedavg:global on recall",
        "fedsd:global > fedavg:global > local:global on recall",
        "fedsd:global > fedavg:global on recall and retention",
        "fedsd:global:x > fedavg:global on recall",
        "fedsd: global > fedavg:global on recall",
        ":global > fedavg:global on recall",
        "fedsd:global > fedavg:globalon recall",
    ],
)
def test_nonsense_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(RecipeError, match="METHOD:MIX > METHOD:MIX on MEASURE") as error:
        Contrast.parse(text)
    assert repr(text) in str(error.value)


def test_a_contrast_built_by_hand_is_checked_too() -> None:
    with pytest.raises(RecipeError, match="METHOD:MIX"):
        Contrast("fedsd", "fedavg:global", "recall")
    with pytest.raises(RecipeError, match="with itself"):
        Contrast("fedsd:global", "fedsd:global", "recall")


def test_duplicate_runs_are_refused_by_path() -> None:
    twin = RunResult(
        path="runs/again",
        method="fedsd",
        seed=3,
        world="world-3",
        lr=1e-2,
        scores={"global": {"recall": 0.1}},
    )
    with pytest.raises(RecipeError, match="fedsd with seed 3") as error:
        compare([*pairs(AHEAD), twin], [RECALL], ["recall"])
    assert "runs/fedsd-3 (lr 0.003)" in str(error.value)
    assert "runs/again (lr 0.01)" in str(error.value)


def test_the_same_seed_in_another_world_is_refused_by_path() -> None:
    results = pairs(AHEAD)
    other = RunResult(
        path="runs/other",
        method="fedsdr",
        seed=4,
        world="elsewhere",
        lr=3e-3,
        scores={"global": {"recall": 0.1}},
    )
    with pytest.raises(RecipeError, match="seed 4") as error:
        compare([*results, other], [RECALL], ["recall"])
    assert "runs/fedavg-4" in str(error.value)
    assert "runs/other" in str(error.value)


def test_runs_over_another_base_are_refused_by_path() -> None:
    left = replace(pairs(AHEAD)[0], base="a" * 64)
    right = replace(pairs(AHEAD)[1], base="b" * 64)
    with pytest.raises(
        RecipeError, match=r"different bases.* aaaaaaaaaaaa and bbbbbbbbbbbb"
    ) as error:
        compare([left, right], [], ["recall"])
    assert left.path in str(error.value)
    assert right.path in str(error.value)
    compare([left, replace(right, base="")], [], ["recall"])  # of one that says nothing


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused_by_path(bad: float) -> None:
    results = [*pairs(AHEAD), run("local", 3, recall=bad)]
    with pytest.raises(RecipeError, match=r"runs/local-3: recall of the global model is (nan|inf)"):
        compare(results, [RECALL], ["recall"])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    results = pairs(AHEAD)
    with pytest.raises(
        RecipeError, match=r"'recal' is in none of the runs\. Did you mean 'recall'"
    ):
        compare(results, [], ["recal"])
    with pytest.raises(RecipeError, match="Did you mean 'fedsd:global'"):
        compare(results, [Contrast.parse("fedsdd:global > fedavg:global on recall")], ["recall"])
    with pytest.raises(RecipeError, match="'fedsd:personal'"):
        compare(results, [Contrast.parse("fedsd:personal > fedavg:global on recall")], ["recall"])
    with pytest.raises(
        RecipeError, match=r"measure of fedsd:global, 'omission'.*They have: recall"
    ):
        compare(results, [Contrast.parse("fedsd:global > fedavg:global on omission")], ["recall"])
    with pytest.raises(RecipeError, match="nothing to compare"):
        compare([], [], [])


def test_a_contrast_named_twice_is_refused() -> None:
    turned = Contrast(RECALL.right, RECALL.left, "recall")
    with pytest.raises(RecipeError, match="named twice"):
        compare(pairs(AHEAD), [RECALL, turned], ["recall"])


def test_json_has_everything_the_text_says() -> None:
    comparison = compare(pairs(AHEAD), [RECALL], ["recall"])
    back = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert back["measures"] == ["recall"]
    assert back["rows"][1]["method"] == "fedsd"
    assert back["rows"][1]["summaries"]["recall"]["n"] == 8
    assert len(back["rows"][1]["summaries"]["recall"]["interval"]) == 2
    (contrast,) = back["contrasts"]
    assert contrast["contrast"] == {
        "left": "fedsd:global",
        "right": "fedavg:global",
        "measure": "recall",
    }
    assert contrast["holds_up"] is True
    assert contrast["verdict"] == comparison.findings[0].verdict
    assert contrast["sign_flip_p"] == 2 / 256
    assert contrast["difference"]["mean"] == pytest.approx(0.125)


def test_mixed_learning_rates_are_pointed_out() -> None:
    results = pairs(AHEAD)
    results[0] = RunResult(
        path="z",
        method="fedavg",
        seed=0,
        world="world-0",
        lr=1e-2,
        scores={"global": {"recall": 0.2}},
    )
    comparison = compare(results, [RECALL], ["recall"])
    assert comparison.notes == (
        "fedavg ran at several learning rates (0.003, 0.01): its mean mixes settings.",
    )
    assert render_text(comparison).splitlines()[-1] == comparison.notes[0]


def test_text_has_one_verdict_a_line_in_the_order_named() -> None:
    results, contrasts = many(3, 8)
    comparison = compare(results, contrasts[::-1], ["m0"])
    first, *verdicts = render_text(comparison).splitlines()
    assert "3 contrasts tested" in first
    assert verdicts == [f.verdict for f in comparison.findings]
    assert ["m2" in verdicts[0], "m0" in verdicts[2]] == [True, True]
