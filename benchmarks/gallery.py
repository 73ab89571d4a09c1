"""The pages under docs/gallery/: the demo's report and a comparison of seeds, with screenshots.

    python benchmarks/gallery.py                 # seeds 1 to 5, one thread: about 15 minutes
    python benchmarks/gallery.py --pages-only    # the runs are there: write the pages again

The demo's three methods on each seed, into runs/gallery/seed-S; a run that is there is not made
again, one that was stopped goes on. Printed: each page's bytes, the seconds to write it, and the
milliseconds until a headless Chromium has loaded it (median of five). From the repository's root,
to which the paths that the pages show are relative.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from fedsdr import resume, run
from fedsdr.evaluate.verdicts import Contrast
from fedsdr.jobs.demo import METHODS, demo_recipe
from fedsdr.jobs.diagnose import Wanted, diagnose_run
from fedsdr.report.page import PageOptions, render_report
from fedsdr.report.read import read_records

# The three that the methods' paper is about; named before the runs were made.
CONTRASTS = (
    "fedsd:global > fedavg:global on recall",
    "fedsd:global > fedavg:global on hallucination",
    "fedsdr:personal > fedsdr:global on recall",
)
WIDTHS = {"wide": 1280, "narrow": 390}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--pages-only", action="store_true")
    asked = parser.parse_args()
    seeds = range(1, asked.seeds + 1)
    if not asked.pages_only:
        for seed in seeds:
            make_runs(asked.runs / f"seed-{seed}", seed)
        for method in METHODS:
            diagnose_run(asked.runs / "seed-1" / method, Wanted())
    asked.out.mkdir(parents=True, exist_ok=True)
    pages = {
        "demo": [asked.runs / "seed-1"],
        "comparison": [asked.runs / f"seed-{seed}" for seed in seeds],
    }
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for name, folders in pages.items():
            show(browser, asked.out / f"{name}.html", folders)
        browser.close()


def make_runs(folder: Path, seed: int) -> None:
    for method in METHODS:
        out = folder / method
        recipe = demo_recipe(method, seed, folder / "rewrites", run__threads=1)
        began = time.monotonic()
        if (out / "results.json").is_file():
            continue
        result: dict[str, Any] = resume(out) if (out / "run.json").is_file() else run(recipe, out)
        recall = {mix: round(s["recall"], 3) for mix, s in result["scores"].items()}
        print(
            f"seed {seed} {method}: recall {recall}, {time.monotonic() - began:.0f} s", flush=True
        )


def show(browser: Browser, page: Path, folders: list[Path]) -> None:
    began = time.monotonic()
    several = len(folders) > 1
    options = PageOptions(contrasts=tuple(map(Contrast.parse, CONTRASTS)) if several else None)
    page.write_text(render_report(read_records(folders), options), encoding="utf-8")
    took = time.monotonic() - began
    loads = [load(browser, page) for _ in range(5)]
    print(
        f"{page.name}: {page.stat().st_size / 1e6:.2f} MB, written in {took:.1f} s, "
        f"loaded in {median(loads):.0f} ms"
    )
    for word, width in WIDTHS.items():
        for scheme in ("light", "dark") if word == "wide" else ("light",):
            tab = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme=scheme, device_scale_factor=1
            )
            tab.goto(page.resolve().as_uri())
            tab.screenshot(path=page.with_name(f"{page.stem}-{word}-{scheme}.png"))
            tab.close()


def load(browser: Browser, page: Path) -> float:
    tab = browser.new_page()
    tab.goto(page.resolve().as_uri())
    spent = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    tab.close()
    return float(spent)


if __name__ == "__main__":
    main()
