"""The trajectories that test_trajectories.py holds: fp64 runs, the same on every processor.

python tests/golden/record.py                      record them; only when they are meant to change
python tests/golden/record.py --settings           how far they stray under other kernels, threads
python tests/golden/record.py --exact FILE         every byte of the runs, in fp32 and fp64
python tests/golden/record.py --exact-check FILE   the same bytes again? Only on the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fedsdr.jobs.train import train
from fedsdr.recipe.settings import build_recipe

FILE = Path(__file__).with_name("trajectories.json")
METHODS = ("fedavg", "fedprox", "fedsd", "fedsdr", "local", "central")
# Kernels of other processors stray by 1e-12 at most (--settings), a changed method by 1e-4 or more.
TOLERANCE = 1e-8
NO_FMA = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-FMA,-FMA4"
SETTINGS: dict[str, dict[str, str]] = {
    "as it comes": {},
    "torch, default": {"ATEN_CPU_CAPABILITY": "default"},
    "torch, AVX2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch, AVX512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "oneDNN, SSE4.1": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN, AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN, AVX512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "MKL, SSE4.2": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "MKL, AVX2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "MKL, on any processor": {"MKL_CBWR": "COMPATIBLE"},
    "libm, without FMA": {"GLIBC_TUNABLES": NO_FMA},
    "all at their lowest": {
        "GLIBC_TUNABLES": NO_FMA,
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "MKL_CBWR": "COMPATIBLE",
    },
}
# Of a run's files, those that hold a clock, a name drawn anew, or a digest of such.
OWN = (
    "run.json",
    "results.json",
    "recipe.yaml",
    "timings.jsonl",
    "ledger.jsonl",
    "lock",
    "state.json",
)


def run(method: str, out: Path, dtype: str = "float64", threads: int = 1) -> dict[str, Any]:
    """Three rounds of two small clients on atlas-base."""
    recipe = build_recipe(
        {
            "seed": 5,
            "model": {"dtype": dtype},
            "data": {"atlas": {"clients": 2, "examples": 10, "public": 8}},
            "algorithm": {"name": method},
            "training": {"rounds": 3, "local_steps": 4, "batch": 4, "lr": 0.003},
            "rewriting": {"max_new_tokens": 64, "cache": str(out / "cache")},
            "evaluation": {"every": 3},
            "run": {"threads": threads},
        }
    )
    return dict(train(recipe, out / method))


def trajectory(method: str, out: Path, threads: int = 1) -> dict[str, Any]:
    """What a method did: numbers, and words, which have to be the same to the letter."""
    results = run(method, out, threads=threads)
    root = out / method
    return {
        "world": results["world"],
        "bytes_up": results["bytes_up"],
        "rewrites": _digest(
            row["trained"]
            for file in sorted(root.glob("clients/*/rewrites.jsonl"))
            for row in _rows(file)
        ),
        "losses": [row["loss"] for row in _rows(root / "rounds.jsonl")],
        "norms": {
            file.parent.relative_to(root / "adapters").as_posix(): sum(
                float(tensor.double().norm()) for tensor in load_file(file).values()
            )
            for file in sorted(root.rglob("adapter_model.safetensors"))
        },
        "scores": results["scores"],
    }


def deviation(recorded: Any, now: Any) -> float:
    """The largest relative difference of two numbers; infinite where anything else differs."""
    if isinstance(recorded, dict) and isinstance(now, dict) and recorded.keys() == now.keys():
        return max((deviation(recorded[key], now[key]) for key in recorded), default=0.0)
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        return max(map(deviation, recorded, now), default=0.0)
    if isinstance(recorded, float) and isinstance(now, float):
        return abs(recorded - now) / max(abs(recorded), 1e-3)
    return 0.0 if recorded == now else float("inf")


def recorded() -> dict[str, Any]:
    return json.loads(FILE.read_text())["trajectories"]


def trajectories(threads: int = 1) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        # As they are read: a number that JSON does not keep would differ for ever.
        return {m: json.loads(json.dumps(trajectory(m, Path(folder), threads))) for m in METHODS}


def exact() -> dict[str, str]:
    """File of a run -> sha256 of its bytes; results.json without its digests of the rest."""
    told = dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "float64"):
            out = Path(folder) / dtype
            for method in METHODS:
                results = run(method, out, dtype)
                told[f"{dtype}/{method}: results"] = _digest([json.dumps(results, sort_keys=True)])
                for file in sorted((out / method).rglob("*")):
                    if file.is_file() and file.name not in OWN:
                        name = f"{dtype}/{file.relative_to(out).as_posix()}"
                        told[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return told


def environment() -> dict[str, str]:
    """Where it was recorded: to be read, nothing hangs on it."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _digest(texts: Iterator[str] | list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _record() -> None:
    text = json.dumps({"environment": environment(), "trajectories": trajectories()}, indent=2)
    FILE.write_text(text + "\n")


def _compare(threads: int) -> None:
    known = recorded()
    now = trajectories(threads)
    far = {method: deviation(known[method], now[method]) for method in METHODS}
    print(json.dumps({"capability": environment()["capability"], "deviation": far}))


def _settings() -> None:
    """Each in a process of its own: kernels are chosen when torch is loaded."""
    print(
        f"{'setting':<24}{'threads':>8}  {'torch says':<12}" + "".join(f"{m:>10}" for m in METHODS)
    )
    for name, variables in SETTINGS.items():
        for threads in (1, 2):
            done = subprocess.run(
                [sys.executable, __file__, "--compare", str(threads)],
                env=os.environ | variables | {"OMP_WAIT_POLICY": "PASSIVE"},
                capture_output=True,
                text=True,
                check=True,
            )
            told = json.loads(done.stdout.splitlines()[-1])
            far = "".join(f"{told['deviation'][m]:>10.1e}" for m in METHODS)
            print(f"{name:<24}{threads:>8}  {told['capability']:<12}{far}", flush=True)


def _exact_check(file: Path) -> None:
    known, now = json.loads(file.read_text()), exact()
    other = [name for name in sorted(known.keys() | now.keys()) if known.get(name) != now.get(name)]
    for name in other:
        print(f"differs: {name}")
    if other:
        sys.exit(f"{len(other)} of {len(known.keys() | now.keys())} differ")
    print(f"all {len(known)} are equal to the bit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--settings", action="store_true")
    what.add_argument("--compare", type=int, metavar="THREADS")
    what.add_argument("--exact", type=Path, metavar="FILE")
    what.add_argument("--exact-check", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.settings:
        _settings()
    elif asked.compare is not None:
        _compare(asked.compare)
    elif asked.exact is not None:
        asked.exact.write_text(json.dumps(exact(), indent=1) + "\n")
    elif asked.exact_check is not None:
        _exact_check(asked.exact_check)
    else:
        _record()


if __name__ == "__main__":
    main()
