"""What this process may use of its machine: cores and memory, not what the machine has.

A scheduler pins a job to cores, a container has a quota and a limit, a user sets OMP_NUM_THREADS. A
job that takes more runs many times slower beside another, or is killed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedsdr.errors import MachineError

PROC = Path("/proc/self")
MEMINFO = Path("/proc/meminfo")
NONE = 1 << 60  # bytes; version 1 writes "no limit" as a number near 2^63
ESCAPED = re.compile(r"\\([0-7]{3})")  # spaces and the like in mountinfo


@dataclass(frozen=True, slots=True)
class Level:
    """A control group, or one of those around it; all of their limits hold."""

    folder: Path
    version: int

    def text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def number(self, name: str) -> int | None:
        """None too where it says "max"."""
        text = self.text(name)
        return int(text) if re.fullmatch(r"-?\d{1,20}", text) else None

    def field(self, name: str, key: str) -> int:
        match = re.search(rf"^{key} (\d{{1,20}})$", self.text(name), re.MULTILINE)
        return int(match[1]) if match else 0


def cores(environment: dict[str, str] | None = None) -> int:
    """How many threads can run at once: by affinity, the quota of the control groups, and
    OMP_NUM_THREADS, whichever is least."""
    count = getattr(os, "process_cpu_count", None)  # Python 3.13
    if count is not None:
        there = count() or 1
    elif hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    else:
        there = os.cpu_count() or 1
    wanted = asked_threads(environment)
    return max(1, min(n for n in (there, cpu_quota(), wanted) if n is not None))


def asked_threads(environment: dict[str, str] | None = None) -> int | None:
    """The first number of OMP_NUM_THREADS, which lists them level by level: "4,2"."""
    text = (os.environ if environment is None else environment).get("OMP_NUM_THREADS", "").strip()
    if not text:
        return None
    first = text.partition(",")[0].strip()
    if not re.fullmatch(r"[0-9]{1,9}", first) or int(first) < 1:
        raise MachineError(
            f"OMP_NUM_THREADS is {text!r}, which says no number of threads; make it a whole number "
            "above 0, or unset it and give run.threads in the recipe"
        )
    return int(first)


def cpu_quota() -> int | None:
    """Whole cores that the control groups let it use, at least 1."""
    shares = list[float]()
    for level in _levels("cpu"):
        if level.version == 2:
            quota, _, period = level.text("cpu.max").partition(" ")
        else:
            quota, period = level.text("cpu.cfs_quota_us"), level.text("cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # not "max", not -1
            shares.append(int(quota) / int(period))
    return max(1, int(min(shares))) if shares else None


def memory_there() -> int | None:
    """Bytes that it can have at most; None where nobody says."""
    limits = [_physical(), _address_space(), *(limit for limit, _ in _limits())]
    return min((n for n in limits if n is not None), default=None)


def memory_free() -> int | None:
    """Bytes that it can still have."""
    space, available = _address_space(), _meminfo("MemAvailable")
    rooms = [limit - used for limit, used in _limits()]
    rooms += [n for n in (available or _physical(),) if n is not None]
    if space is not None:
        pages = Level(PROC, 0).text("statm").partition(" ")[0]
        rooms.append(space - (int(pages) * os.sysconf("SC_PAGE_SIZE") if pages.isdecimal() else 0))
    return max(0, min(rooms)) if rooms else None


def _limits() -> Iterator[tuple[int, int]]:
    """Every control group's limit of memory, and what is used of it. Pages of files that nobody
    has touched for a while are given up before anybody goes without."""
    for level in _levels("memory"):
        if level.version == 2:
            limits = [level.number("memory.max"), level.number("memory.high")]
            used, pages = level.number("memory.current"), "inactive_file"
        else:
            limits = [level.number("memory.limit_in_bytes")]
            used, pages = level.number("memory.usage_in_bytes"), "total_inactive_file"
        limit = min((n for n in limits if n is not None), default=NONE)
        if 0 <= limit < NONE:
            yield limit, max(0, (used or 0) - level.field("memory.stat", pages))


def _levels(controller: str) -> Iterator[Level]:
    """The process's own group of this controller and all above it, as far as they can be seen."""
    mounts = Level(PROC, 0).text("mountinfo").splitlines()
    for line in Level(PROC, 0).text("cgroup").splitlines():
        number, names, path = (*line.split(":", 2), "", "")[:3]
        version = 2 if number == "0" and not names else 1
        if version == 1 and controller not in names.split(","):
            continue
        for mount in mounts:
            before, _, after = mount.partition(" - ")
            places, kind = before.split(), after.split()
            if len(places) < 5 or len(kind) < 3:
                continue
            root, point = (ESCAPED.sub(_letter, place) for place in places[3:5])
            mine = kind[0] == "cgroup2" if version == 2 else kind[0] == "cgroup"
            if mine and (version == 2 or controller in kind[2].split(",")):
                yield from _upwards(Path(point), root, path, version)


def _upwards(point: Path, root: str, path: str, version: int) -> Iterator[Level]:
    """In a container the mount may begin below the group's own root, or the group's path be that
    of the host: what cannot be seen under the mount point is left out."""
    inside = Path(path)
    if inside.is_relative_to(root):
        inside = inside.relative_to(root)
    folder = point / str(inside).lstrip("/")
    if ".." in folder.parts or not folder.is_dir():
        folder = point
    while True:
        yield Level(folder, version)
        if folder == point:
            return
        folder = folder.parent


def _letter(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def _meminfo(key: str) -> int | None:
    text = Level(MEMINFO.parent, 0).text(MEMINFO.name)
    line = re.search(rf"^{key}:\s*(\d{{1,15}}) kB$", text, re.MULTILINE)
    return int(line[1]) * 1024 if line else None


def _physical() -> int | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _address_space() -> int | None:
    """`ulimit -v`."""
    try:
        import resource
    except ImportError:  # no such thing on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit
