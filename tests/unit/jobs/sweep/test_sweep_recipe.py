"""The sweep file: what it expands to, and every mistake named before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsdr.errors import RecipeError
from fedsdr.jobs.sweep.cells import main_cell, tuning_cells
from fedsdr.jobs.sweep.recipe import parse_sweep, read_sweep

TWO: dict[str, Any] = {"methods": {"fedavg": {}, "fedprox": {}}, "seeds": [1, 2]}
TUNED: dict[str, Any] = {"seeds": [9], "grid": {"training.lr": [0.1, 0.2]}}


def test_methods_take_their_label_as_name_and_boosted_ones_follow() -> None:
    methods = {"fedavg": {}, "near": {"algorithm.name": "fedprox", "algorithm.options.mu": 1.0}}
    sweep = parse_sweep({"sweep": {**TWO, "methods": methods, "boosted": ["near"]}})
    assert list(sweep.methods) == ["fedavg", "near", "fedsd+near"]
    chosen = main_cell(sweep, "all", "fedsd+near", 2, {}).recipe
    assert (chosen.algorithm.name, chosen.algorithm.boosted, chosen.seed) == ("fedprox", True, 2)
    assert chosen.algorithm.options == {"mu": 1.0}
    assert not main_cell(sweep, "all", "near", 2, {}).recipe.algorithm.boosted


def test_settings_methods_and_points_go_onto_the_recipe_in_this_order() -> None:
    settings = {"mild": {"data.atlas.preset": "mild", "training.batch": 2}}
    methods = {"fedavg": {"training.batch": 3}}
    tune = {**TUNED, "changes": {"data.atlas.public": 0, "training.batch": 4}}
    chosen = {"methods": methods, "settings": settings, "seeds": [1], "tune": tune}
    sweep = parse_sweep({"training": {"rounds": 7}, "sweep": chosen})
    main = main_cell(sweep, "mild", "fedavg", 1, {"training.lr": 0.2}).recipe
    assert (main.training.rounds, main.training.batch, main.training.lr) == (7, 3, 0.2)
    assert main.data.atlas is not None
    assert (main.data.atlas.preset, main.data.atlas.public) == ("mild", 120)
    first, second = tuning_cells(sweep, "mild", "fedavg")
    assert [c.recipe.training.lr for c in (first, second)] == [0.1, 0.2]
    assert first.recipe.data.atlas is not None
    assert (first.recipe.data.atlas.public, first.recipe.training.batch) == (0, 4)
    assert first.name == "tune/mild/fedavg/9-training.lr=0.1"


def test_keys_for_single_methods_are_crossed_with_the_grid_for_boosted_ones_too() -> None:
    tune = {**TUNED, "also": {"fedprox": {"algorithm.options.mu": [0.1, 1.0, 10.0]}}}
    sweep = parse_sweep({"sweep": {**TWO, "boosted": ["fedavg", "fedprox"], "tune": tune}})
    counts = {label: len(tuning_cells(sweep, "all", label)) for label in sweep.methods}
    assert counts == {"fedavg": 2, "fedprox": 6, "fedsd+fedavg": 2, "fedsd+fedprox": 6}


def test_a_file_with_changes_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"sweep": TWO}))
    sweep = read_sweep(tmp_path / "s.yaml", ["sweep.seeds=[4]", "training.lr=1e-2"])
    assert sweep.seeds == (4,)
    assert main_cell(sweep, "all", "fedavg", 4, {}).recipe.training.lr == 0.01
    assert sweep.digest != read_sweep(tmp_path / "s.yaml").digest


def test_the_example_is_a_sweep() -> None:
    sweep = read_sweep(Path(__file__).parents[4] / "recipes" / "sweep-example.yaml")
    assert list(sweep.methods) == ["fedavg", "fedprox", "fedsd+fedavg"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": {}}, r"unknown key 'sweep.method'. Did you mean 'methods'"),
        ({"methods": {}}, r"sweep.methods: .*at least 1"),
        ({"methods": {"a/b": {}}}, r"'a/b' cannot be a label"),
        ({"methods": {"..": {}}}, r"'..' cannot be a label"),
        ({"methods": {"a\n": {}}}, r"cannot be a label"),
        ({"settings": {"a b": {}}}, r"sweep.settings: 'a b' cannot be a label"),
        ({"methods": {"fedavgg": {}}}, r"method 'fedavgg'.*unknown.*Did you mean 'fedavg'"),
        (
            {"methods": {"fedprox": {"algorithm.options.nu": 1.0}}},
            r"method 'fedprox'.*no option 'nu'",
        ),
        ({"methods": {"fedavg": {"training.lrr": 1.0}}}, r"training.lrr.*Did you mean 'lr'"),
        ({"methods": {"fedavg": {"training.lr": -1.0}}}, r"training.lr"),
        ({"methods": {"fedavg": {"training.lr.x": 1.0}, "b": {}}}, r"unknown|holds a value|lr"),
        ({"methods": {"fedavg": {"seed": 3}}}, r"cannot change 'seed'"),
        ({"settings": {"x": {"sweep.seeds": [3]}}}, r"cannot change 'sweep.seeds'"),
        ({"settings": {"x": {"data.atlass.preset": "mild"}}}, r"in setting 'x'.*atlass"),
        ({"boosted": ["fedavgg"]}, r"no method 'fedavgg'. Did you mean 'fedavg'"),
        ({"boosted": ["fedavg", "fedavg"]}, r"twice"),
        ({"methods": {"fedavg": {"algorithm.boosted": True}}, "boosted": ["fedavg"]}, r"already"),
        ({"seeds": []}, r"sweep.seeds: .*at least 1"),
        ({"seeds": [1, 2, 1]}, r"sweep.seeds: 1 is given twice"),
        ({"seeds": [True]}, r"sweep.seeds"),
        ({"tune": {**TUNED, "seeds": [2]}}, r"tune.seeds: 2 is also in sweep.seeds"),
        ({"tune": {**TUNED, "seeds": [9, 9]}}, r"tune.seeds: 9 is given twice"),
        ({"tune": {**TUNED, "grid": {}}}, r"sweep.tune.grid: .*at least 1"),
        ({"tune": {**TUNED, "grid": {"training.lr": []}}}, r"sweep.tune.grid.training.lr"),
        ({"tune": {**TUNED, "grid": {"training.lr": [1.0, 1.0]}}}, r"tries a value twice"),
        ({"tune": {**TUNED, "grid": {"training.lrr": [1.0]}}}, r"training.lrr.*Did you mean 'lr'"),
        ({"tune": {**TUNED, "grids": {}}}, r"'sweep.tune.grids'. Did you mean 'grid'"),
        ({"tune": {**TUNED, "also": {"x": {"training.batch": [1]}}}}, r"also: there is no method"),
        (
            {"tune": {**TUNED, "also": {"fedavg": {"training.lr": [1.0]}}}},
            r"in sweep.tune.grid already",
        ),
        (
            {"methods": {"fedavg": {"training.lr": 0.1}}, "tune": TUNED},
            r"fedavg sets 'training.lr', which sweep.tune.grid varies",
        ),
        ({"contrasts": ["fedavg > fedprox"]}, r"cannot read the contrast"),
        ({"contrasts": ["fedavg:global > fedpro:global on recall"]}, r"'fedpro:global'.*no model"),
        ({"contrasts": ["fedavg:global > fedprox:own on recall"]}, r"'fedprox:own'.*no model"),
        (
            {
                "contrasts": [
                    "fedavg:global > fedprox:global on loss",
                    "fedprox:global > fedavg:global on loss",
                ]
            },
            r"named twice",
        ),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){says}"):
        parse_sweep({"sweep": TWO | changes})


def test_tuning_without_validation_rows_is_refused() -> None:
    data = {"file": "rows.jsonl", "validation": 0.0}
    with pytest.raises(RecipeError, match=r"data.validation is 0"):
        parse_sweep({"data": data, "sweep": {**TWO, "tune": TUNED}})


def test_tuning_that_would_train_on_other_seeds_test_rows_is_refused() -> None:
    data = {"file": "rows.jsonl"}
    with pytest.raises(RecipeError, match=r"every seed draws test rows of its own.*data.manifest"):
        parse_sweep({"data": data, "sweep": {**TWO, "tune": TUNED}})
    fixed = {"data": {**data, "manifest": "runs/first/partition.json"}}
    parse_sweep({**fixed, "sweep": {**TWO, "tune": TUNED}})


def test_a_recipe_without_a_sweep_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no key `sweep`.*Is 'sweeps' meant to be"):
        parse_sweep({"sweeps": TWO})
    with pytest.raises(RecipeError, match="does not exist"):
        read_sweep(tmp_path / "no.yaml")
    (tmp_path / "twice.yaml").write_text("sweep: {seeds: [1], seeds: [2]}")
    with pytest.raises(RecipeError, match="given twice"):
        read_sweep(tmp_path / "twice.yaml")
