"""The rewrite viewer over many rewrites: bytes of the page, seconds to build it and to open it.

    python benchmarks/viewer.py                      # 50,000 short and 50,000 long rewrites
    python benchmarks/viewer.py --rewrites 200000

Made-up rewrites of 8 clients, short as Atlas's (12 words) and long as a 7B model's (about 200 words
of a vocabulary of 20,000). The page is a whole report of one run, opened from disk in headless
Chromium (`$CHROMIUM`, or the system's): seconds until the first rewrite is there to be read, and
until the list follows a filter and a search.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from playwright.sync_api import Browser, sync_playwright

from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.record import RunRecord

CLIENTS = 8
REASONS = ("lost-number", "invented-number", "lost-name", "invented-name", "truncated")


def make_run(root: Path, count: int, length: int) -> RunRecord:
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 5) for rank in range(len(vocabulary))]

    def text(words: int) -> str:
        return " ".join(draw.choices(vocabulary, weights, k=max(1, words)))

    for client in range(CLIENTS):
        folder = root / "clients" / f"c{client}"
        folder.mkdir(parents=True)
        with (folder / "rewrites.jsonl").open("w") as file:
            for example in range(count // CLIENTS):
                raw, number = text(length // 2), str(draw.randint(1, 9999))
                written = f"{raw[: len(raw) // 2]} {text(length)} {number}"
                reasons = draw.sample(REASONS, k=draw.choice((0, 0, 0, 1, 2)))
                row = {
                    "id": f"c{client}-{example}",
                    "domain": "made up",
                    "prompt": text(length // 5),
                    "raw": raw,
                    "written": written,
                    "trained": raw if reasons else written,
                    "kept": not reasons,
                    "reasons": reasons,
                    "numbers_invented": [number] if "invented-number" in reasons else [],
                    "length_ratio": len(written.split()) / len(raw.split()),
                }
                file.write(json.dumps(row) + "\n")
    return RunRecord(
        path=root, name="made up", state="finished", facts={}, recipe_text="", recipe={}
    )


def opened(browser: Browser, page_file: Path) -> tuple[float, float, float]:
    page = browser.new_page(reduced_motion="reduce")  # no waiting for smooth scrolling
    page.route("http*://**", lambda route: route.abort())

    def timed(act: Callable[[], object], until: str) -> float:
        began = time.perf_counter()
        act()
        page.wait_for_selector(until)
        return time.perf_counter() - began

    first = timed(lambda: page.goto(page_file.as_uri(), wait_until="commit"), ".rw-text")
    narrowed = "[data-reset]:not([hidden])"
    filtered = timed(lambda: page.click(".rw-kind"), narrowed)
    page.click("[data-reset]")
    searched = timed(lambda: page.fill(".rw input[type=search]", "c3-1"), narrowed)
    page.close()
    return first, filtered, searched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rewrites", type=int, default=50_000)
    given = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, length in (("short", 12), ("long", 200)):
            record = make_run(Path(folder) / name, given.rewrites, length)
            began = time.perf_counter()
            page = render_report([record], PageOptions(include_texts=True))
            built = time.perf_counter() - began
            file = Path(folder) / f"{name}.html"
            file.write_text(page, encoding="utf-8")
            times = [opened(browser, file) for _ in range(5)]
            first, filtered, searched = (median(column) for column in zip(*times, strict=True))
            print(
                f"{given.rewrites} {name}: page {file.stat().st_size / 1e6:.2f} MB, built in "
                f"{built:.1f} s, opened in {first:.2f} s, filter {filtered:.2f} s, search "
                f"{searched:.2f} s (0.15 s of it waiting for the typist)"
            )
        browser.close()


if __name__ == "__main__":
    main()
