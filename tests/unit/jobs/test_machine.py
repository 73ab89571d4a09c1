"""What a process may use of its machine, on trees of control groups made by hand and for real."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fedsdr.errors import MachineError
from fedsdr.jobs import machine

GIB = 1 << 30
UNLIMITED = "9223372036854771712\n"  # as version 1 writes it
ALL = len(os.sched_getaffinity(0))


class Tree:
    """A `/proc/self` and the folders that it tells of; `root` is what a mount shows of them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.mounts = folder / "proc", folder / "cgroup folder"
        self.proc.mkdir()
        self.groups, self.mounted = list[str](), list[str]()
        monkeypatch.setattr(machine, "PROC", self.proc)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def mount(self, group: str, controllers: str = "", root: str = "/") -> Path:
        """One hierarchy, in which this process is in `group`."""
        point = self.mounts / (controllers or "unified")
        point.mkdir(parents=True)
        kind = f"cgroup cgroup rw,{controllers}" if controllers else "cgroup2 cgroup rw"
        written = str(point).replace(" ", r"\040")
        self.groups.append(f"{len(self.groups) + 1 if controllers else 0}:{controllers}:{group}")
        self.mounted.append(f"30 20 0:1 {root} {written} rw shared:1 - {kind}")
        (self.proc / "cgroup").write_text("\n".join(self.groups) + "\n")
        (self.proc / "mountinfo").write_text("\n".join(self.mounted) + "\n")
        return point


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def put(folder: Path, **files: str | int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", None),
        ("200000 100000", 2),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("", None),
        ("nonsense", None),
        ("100000 0", None),
        ("-1 100000", None),
    ],
)
def test_a_quota_of_version_2(tree: Tree, quota: str, cores: int | None) -> None:
    put(tree.mount("/job") / "job", cpu_max=quota)
    assert machine.cpu_quota() == cores
    assert machine.cores() == min(ALL, cores or ALL)


@pytest.mark.parametrize(("quota", "cores"), [(-1, None), (150000, 1), (300000, 3), (1000, 1)])
def test_a_quota_of_version_1(tree: Tree, quota: int, cores: int | None) -> None:
    folder = tree.mount("/docker/12ab", "cpu,cpuacct") / "docker" / "12ab"
    put(folder, cpu_cfs_quota_us=quota, cpu_cfs_period_us=100000)
    assert machine.cpu_quota() == cores


def test_the_tightest_of_all_levels_holds(tree: Tree) -> None:
    point = tree.mount("/a/b/c")
    put(point / "a", cpu_max="300000 100000", memory_max=4 * GIB, memory_current=3 * GIB)
    put(point / "a/b", cpu_max="max 100000", memory_max="max", memory_current=2 * GIB)
    put(point / "a/b/c", cpu_max="700000 100000", memory_max=2 * GIB, memory_current=GIB // 2)
    assert machine.cpu_quota() == 3
    assert machine.memory_there() == 2 * GIB
    assert machine.memory_free() == GIB  # of a, in which others sit too


def test_pages_of_files_can_be_had_again(tree: Tree) -> None:
    point = tree.mount("/job")
    put(point / "job", memory_max=2 * GIB, memory_current=2 * GIB - 4096)
    put(point / "job", memory_stat=f"anon 5\ninactive_file {GIB}\nactive_file 7")
    assert machine.memory_free() == GIB + 4096
    put(point / "job", memory_high=GIB)
    assert machine.memory_there() == GIB


def test_memory_of_version_1(tree: Tree) -> None:
    point = tree.mount("/job", "memory")
    put(point, memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=9 * GIB)
    assert machine.memory_there() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    put(point / "job", memory_limit_in_bytes=GIB, memory_usage_in_bytes=GIB // 4)
    put(point / "job", memory_stat=f"cache 1\ntotal_inactive_file {GIB // 8}")
    assert machine.memory_there() == GIB
    assert machine.memory_free() == GIB - GIB // 8


@pytest.mark.parametrize(
    ("group", "root", "folder"),
    [
        ("/docker/12ab", "/docker/12ab", ""),  # without a namespace: the mount is the group
        ("/docker/12ab/in", "/docker/12ab", "in"),
        ("/", "/", ""),  # with one
        ("/../other", "/", ""),  # entered from outside
        ("/gone", "/", ""),
        ("/host/only", "/elsewhere", ""),
    ],
)
def test_a_container_sees_its_own_group(tree: Tree, group: str, root: str, folder: str) -> None:
    put(tree.mount(group, root=root) / folder, cpu_max="100000 100000", memory_max=GIB)
    assert machine.cpu_quota() == 1
    assert machine.memory_there() == GIB


def test_both_versions_at_once(tree: Tree) -> None:
    put(tree.mount("/x", "memory") / "x", memory_limit_in_bytes=GIB, memory_usage_in_bytes=0)
    put(tree.mount("/x", "cpu") / "x", cpu_cfs_quota_us=100000, cpu_cfs_period_us=100000)
    tree.mount("/")
    assert machine.cpu_quota() == 1
    assert machine.memory_there() == GIB


@pytest.mark.parametrize("text", ["", "::", "0::", "x:y:z\n\0\n0::/a", "é" * 40])
def test_without_control_groups_the_machine_counts(tree: Tree, text: str) -> None:
    for name in ("cgroup", "mountinfo", "statm"):
        (tree.proc / name).write_text(text, encoding="utf-8")
    assert machine.cpu_quota() is None
    assert machine.cores() == ALL
    free, there = machine.memory_free(), machine.memory_there()
    assert free is not None
    assert there is not None
    assert 0 < free < there


@pytest.mark.parametrize(
    ("text", "wanted"), [("1", 1), ("1,4", 1), (" 1 , 2", 1), ("9999", ALL), ("", ALL), ("  ", ALL)]
)
def test_omp_num_threads(tree: Tree, text: str, wanted: int) -> None:
    assert machine.cores({"OMP_NUM_THREADS": text}) == wanted


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ",2", "1e3", "٣", "1_0", "9" * 30])
def test_nonsense_in_omp_num_threads_is_refused(text: str) -> None:
    with pytest.raises(MachineError, match=r"OMP_NUM_THREADS is .*run\.threads"):
        machine.cores({"OMP_NUM_THREADS": text})


PINNED = """
import json, os, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from fedsdr.jobs.train import train
from fedsdr.testing.toy import clients
from toy import recipe
out, folder = Path(sys.argv[1]), Path(sys.argv[2])
asked = recipe(folder, training={"rounds": 1}, run={"threads": 0}, algorithm={"name": "fedavg"})
train(asked, out, clients=list(clients((2, 2)).values()))
import torch
print(torch.get_num_threads())
"""


def alone(script: str, *arguments: object, **variables: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | variables,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return told.stdout.strip()


def test_a_run_on_one_core_has_one_thread(tiny_folder: Path, tmp_path: Path) -> None:
    assert alone(PINNED, tmp_path / "run", tiny_folder, PYTHONPATH=os.pathsep.join(sys.path)) == "1"
    assert json.loads((tmp_path / "run/run.json").read_text())["threads"] == 1


def test_a_limit_of_the_address_space() -> None:
    limit = min(8 * GIB, resource.getrlimit(resource.RLIMIT_AS)[1] & (1 << 62) - 1)
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "from fedsdr.jobs import machine; print(machine.memory_there(), machine.memory_free())"
    )
    there, free = map(int, alone(script, PYTHONPATH=os.pathsep.join(sys.path)).split())
    assert there <= limit
    assert free < limit
