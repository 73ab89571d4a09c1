"""Reports of the largest sizes that fedsdr promises: bytes, seconds to build, seconds to open.

    python benchmarks/report_size.py

A comparison of 200 runs, 50,000 rewrites of 200 words, and the widest single run: 64 clients (no
file of a run holds a matrix over more) with all diagnostics. Made-up runs, opened from disk in
headless Chromium (`$CHROMIUM`, or the system's) until the page has loaded; the median of five.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, sync_playwright
from viewer import make_run

from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.read import read_records
from fedsdr.report.record import RunRecord

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from made_runs import write_diagnosis, write_run

LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd / 1000"
WIDE = tuple(f"c{n}" for n in range(64))


def comparison(folder: Path) -> Sequence[RunRecord]:
    for seed in range(20):
        for number in range(10):
            write_run(folder / f"m{number}-{seed}", f"m{number}", seed)
    return read_records([folder])


def rewrites(folder: Path) -> Sequence[RunRecord]:
    return [make_run(folder, 50_000, 200)]


def widest(folder: Path) -> Sequence[RunRecord]:
    write_diagnosis(write_run(folder / "run", clients=WIDE, rounds=20), WIDE)
    return read_records([folder])


def opened(browser: Browser, file: Path) -> float:
    page = browser.new_page()
    page.goto(file.as_uri(), wait_until="load")
    seconds = float(page.evaluate(LOADED))
    page.close()
    return seconds


MAKERS: dict[str, Callable[[Path], Sequence[RunRecord]]] = {
    "200 runs": comparison, "50,000 rewrites": rewrites, "64 clients": widest,
}  # fmt: skip


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, make in MAKERS.items():
            place = Path(folder) / name
            place.mkdir()
            began = time.perf_counter()
            records = make(place)
            read = time.perf_counter()
            file = Path(folder) / "page.html"
            file.write_text(render_report(records, PageOptions(include_texts=True)), "utf-8")
            built = time.perf_counter() - read
            seconds = median(opened(browser, file) for _ in range(5))
            print(
                f"{name}: {file.stat().st_size / 1e6:.2f} MB, made and read in {read - began:.1f} "
                f"s, built in {built:.1f} s, opened in {seconds:.2f} s"
            )
        browser.close()


if __name__ == "__main__":
    main()
