"""Many runs from one file: methods × settings × seeds, each a cell that is run once and kept as a
small JSON file.

    sweep = read_sweep("recipes/sweep-example.yaml")
    result = run_sweep(sweep, Path("runs/sweep"))
    tables = sweep_table(sweep, result.records)
"""

from fedsdr.jobs.sweep.cells import Cell, Sweep
from fedsdr.jobs.sweep.recipe import read_sweep
from fedsdr.jobs.sweep.run import Observer, SweepResult, run_sweep, survey
from fedsdr.jobs.sweep.table import SettingTable, sweep_table

__all__ = [
    "Cell",
    "Observer",
    "SettingTable",
    "Sweep",
    "SweepResult",
    "read_sweep",
    "run_sweep",
    "survey",
    "sweep_table",
]
