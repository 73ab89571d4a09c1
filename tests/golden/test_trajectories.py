"""What a method does to the numbers is written down: a change that moves them has to say so.

Losses are compared to 1e-3, for other processors round differently; on the recorded environment
they are equal to all digits shown.
"""

import importlib.util
import json
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("record", Path(__file__).with_name("record.py"))
assert _spec is not None
assert _spec.loader is not None
record = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(record)

GOLDEN = json.loads(record.FILE.read_text())


@pytest.mark.parametrize("method", record.METHODS)
def test_trajectory(method: str, tmp_path: Path):
    found, recorded = record.trajectory(method, tmp_path), GOLDEN["trajectories"][method]
    assert found["world"] == recorded["world"]
    assert found["bytes_up"] == recorded["bytes_up"]
    tolerance = 1e-9 if record.environment() == GOLDEN["environment"] else 1e-3
    assert found["losses"] == pytest.approx(recorded["losses"], rel=tolerance)
    for mix, scores in recorded["scores"].items():
        assert found["scores"][mix] == pytest.approx(scores, abs=0.15)
