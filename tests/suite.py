"""The whole suite: `python tests/suite.py`; in two processes where there are two cores. `--core`:
the fast tier, unit tests of the core beside the check of types.

Each half has about half of the work. The second half's output is kept until the first is through,
so that what is printed reads like one run after the other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from fedsdr.jobs.machine import cores

TESTS = Path(__file__).parent
UNIT = str(TESTS / "unit")
ROOMS = ("parts", "training", "coordinator", "cohort", "site", "recipe", "runs", "text")
CORE = [f"{UNIT}/test_architecture.py", *(f"{UNIT}/{room}" for room in ROOMS)]
OTHERS = [str(f) for f in sorted(TESTS.iterdir()) if f.is_dir() and list(f.rglob("test_*.py"))]
OTHERS.remove(UNIT)
PAGES = [str(TESTS / "e2e" / "test_report_browser.py")]
SEEN = f"--ignore={TESTS / 'unit' / 'test_architecture.py'}"  # run first, by `make test`
NO_PAGES = [f"--ignore={file}" for file in PAGES]
PYTEST = [sys.executable, "-m", "pytest", SEEN]


def main(asked: list[str]) -> int:
    core = [sys.executable, "-m", "pytest", *CORE], [sys.executable, "-m", "pyright"]
    halves = [*PYTEST, UNIT, *PAGES], [*PYTEST, *NO_PAGES, *OTHERS]
    first, second = core if "--core" in asked else halves
    if cores({}) < 2:  # tests set their own threads: OMP_NUM_THREADS does not count
        if "--core" in asked:
            return (
                subprocess.run(second, check=False).returncode or subprocess.run(first).returncode
            )
        return subprocess.run([*PYTEST, UNIT, *OTHERS], check=False).returncode
    with tempfile.TemporaryFile() as kept:
        # A browser or a model that it started has to end with it: no new session.
        beside = subprocess.Popen(second, stdout=kept, stderr=subprocess.STDOUT)
        try:
            ended = subprocess.run(first, check=False)
            beside.wait()
        finally:
            beside.terminate()
            kept.seek(0)
            sys.stdout.flush()
            sys.stdout.buffer.write(kept.read())
            sys.stdout.flush()
    return ended.returncode or beside.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
