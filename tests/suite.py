"""The whole suite: `python tests/suite.py`; in two processes where there are two cores.

Each half has about half of the work. The second half's output is kept until the first is through,
so that what is printed reads like one run after the other.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from fedsdr.machine import cores

TESTS = Path(__file__).parent
UNIT = str(TESTS / "unit")
OTHERS = [str(f) for f in sorted(TESTS.iterdir()) if f.is_dir() and list(f.rglob("test_*.py"))]
OTHERS.remove(UNIT)
PAGES = [str(TESTS / "e2e" / "test_report_browser.py")]
SEEN = f"--ignore={TESTS / 'unit' / 'test_architecture.py'}"  # run first, by `make test`
NO_PAGES = [f"--ignore={file}" for file in PAGES]
PYTEST = [sys.executable, "-m", "pytest", SEEN]


def main() -> int:
    if cores({}) < 2:  # tests set their own threads: OMP_NUM_THREADS does not count
        return subprocess.run([*PYTEST, UNIT, *OTHERS], check=False).returncode
    with tempfile.TemporaryFile() as kept:
        # A browser or a model that it started has to end with it: no new session.
        second = subprocess.Popen(
            [*PYTEST, *NO_PAGES, *OTHERS], stdout=kept, stderr=subprocess.STDOUT
        )
        try:
            first = subprocess.run([*PYTEST, UNIT, *PAGES], check=False)
            second.wait()
        finally:
            second.terminate()
            kept.seek(0)
            sys.stdout.flush()
            sys.stdout.buffer.write(kept.read())
            sys.stdout.flush()
    return first.returncode or second.returncode


if __name__ == "__main__":
    sys.exit(main())
