"""What a method does to the numbers is written down: a change that moves them has to say so."""

import importlib.util
import json
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("record", Path(__file__).with_name("record.py"))
assert _spec is not None
assert _spec.loader is not None
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)


@pytest.mark.parametrize("method", record.METHODS)
def test_trajectory(method: str, tmp_path: Path):
    now = json.loads(json.dumps(record.trajectory(method, tmp_path)))
    recorded = record.recorded()[method]
    assert record.deviation(recorded, now) < record.TOLERANCE, (recorded, now)
