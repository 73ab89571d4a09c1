"""What the walled-in processes run: each builds the walls around itself, then becomes the program
or its tests.

Started as a script by `fedsdr.sandbox`, on the standard library alone. It fails closed: a wall that
cannot be built is reported, and the program is never run.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
import traceback
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsdr.sandbox.calls import Side

# System calls a pure Python program needs: number on x86_64, on aarch64. All others are refused:
# among them sockets, exec, fork, kill, ptrace, io_uring, mount, chmod, mkdir, links, shared memory.
CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "fsync": (74, 82), "fdatasync": (75, 83),
    "ftruncate": (77, 46), "getcwd": (79, 17), "rename": (82, None), "unlink": (87, None),
    "readlink": (89, None), "umask": (95, 166), "gettimeofday": (96, 169), "getrlimit": (97, 163),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "rt_sigpending": (127, 136), "sigaltstack": (131, 132), "gettid": (186, 178),
    "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "epoll_wait": (232, None), "epoll_ctl": (233, 21), "newfstatat": (262, 79),
    "unlinkat": (263, 35), "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "get_robust_list": (274, 100), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59), "renameat2": (316, 276),
    "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293),
    "close_range": (436, 436), "faccessat2": (439, 439),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Calls allowed with some arguments only: (argument, mask, value), one of which must fit.
Rules = tuple[tuple[int, int, int], ...]
THREAD, NEW_NAMESPACES = 0x10000, 0x7E020080
ARGUMENTS: dict[str, tuple[tuple[int, int], Rules]] = {
    "clone": ((56, 220), ((0, THREAD | NEW_NAMESPACES, THREAD),)),  # threads, no processes
    "prlimit64": ((302, 261), ((2, 0xFFFFFFFF, 0),)),  # reading limits, not lifting them
    # No F_SETOWN, F_SETSIG or FIOASYNC, which send signals to other processes.
    "fcntl": ((72, 25), (*((1, 0xFFFFFFFF, n) for n in range(8)), (1, 0xFFFFFFFF, 1030))),
    "ioctl": (
        (16, 29),
        tuple((1, 0xFFFFFFFF, n) for n in (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    ),
    # Not O_RDONLY with O_TRUNC, which Landlock before kernel 6.2 takes for reading.
    "openat": (
        (257, 56),
        tuple((2, os.O_ACCMODE | os.O_TRUNC, n) for n in (0, 1, 2, 0o1001, 0o1002)),
    ),
}
SIGNAL_ITSELF = (234, 131)  # tgkill: abort() needs it
NEWER = 440  # calls above are answered "unknown", so that libc falls back to older ones
NEW_MOUNTS, NEW_USERS, PRIVATE, NO_DEVICES = 0x20000, 0x10000000, 0x44000, 14
REFUSE, UNKNOWN, KILL, ALLOW = 0x00050001, 0x00050026, 0x80000000, 0x7FFF0000  # EPERM, ENOSYS

READ, WRITE = (1 << 2) | (1 << 3), 1 << 1  # read a file or list a folder; write a file
REMOVE, MAKE_FILE, TRUNCATE = 1 << 5, 1 << 8, 1 << 14
# Rights on files that each version of Landlock handles: more of them in newer kernels.
HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime")

libc = ctypes.CDLL(None, use_errno=True)


class CannotBuild(Exception):
    pass


def main() -> None:
    report, inward, outward = map(int, sys.argv[1:4])
    task = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    side = calls_file().Side(inward, outward, task["role"] == "program")
    try:
        build_walls(task)
    except (CannotBuild, OSError, ValueError) as error:
        os.write(report, f"{error}\n".encode())
        return
    os.write(report, b"ready\n")
    end = program(task["code"], side) if task["role"] == "program" else tests(task, side)
    os.write(report, f"{end}\n".encode())
    try:
        sys.stdout.flush()
    finally:
        os._exit(0)  # threads and exit handlers of the program are not waited for


def calls_file() -> types.ModuleType:
    """Read while it can be: the walls leave none of fedsdr's own files."""
    place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "calls.py")
    module = types.ModuleType("calls")
    sys.modules["calls"] = module
    with open(place, encoding="utf-8") as file:
        exec(compile(file.read(), "calls", "exec", dont_inherit=True), module.__dict__)
    return module


def program(code: str, side: Side) -> str:
    """It answers the tests' calls when it has come to its last line."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.argv = ["program"]
    try:
        exec(compile(code, "program", "exec", dont_inherit=True), module.__dict__)
        with contextlib.suppress(AttributeError, ValueError, OSError):  # it closed its output
            sys.stdout.flush()  # it is killed when its tests are over
        side.offer(module)
        side.serve()
    except SystemExit:
        return "exited"
    except BaseException as error:
        if side.offered:
            return "exited"  # the tests are over, or nobody hears it any more
        traceback.print_exc()
        return f"failed {type(error).__name__}"
    return "exited"


def tests(task: dict[str, str], side: Side) -> str:
    """The verdict. No line of the program runs in this process, so none can give it. What the tests
    need of it they find by name; but not in place of Python's own functions."""
    try:
        space = {n: v for n, v in side.offers(task["tests"]).items() if n not in dir(builtins)}
        space |= standard_imports(task["code"]) | {"__name__": "program"}
        exec(compile(task["tests"], "tests", "exec", dont_inherit=True), space)
    except SystemExit:
        return "exited"
    except BaseException as error:
        if side.gone:
            return "gone"
        traceback.print_exc()
        return f"failed {type(error).__name__}"
    return "gone" if side.gone else task["token"]


def standard_imports(code: str) -> dict[str, Any]:
    """What the program takes from the standard library at its top level, the tests may use too:
    the library's own, not what the program has made of it."""
    namespace: dict[str, Any] = {}
    try:
        body = ast.parse(code).body
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return namespace
    for node in body:
        named = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        named += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if named and {n.partition(".")[0] for n in named} <= sys.stdlib_module_names:
            try:
                exec(compile(ast.Module([node], []), "imports", "exec"), namespace)
            except (ImportError, AttributeError):
                continue
    return {name: v for name, v in namespace.items() if name not in dir(builtins)}


def build_walls(task: dict[str, int]) -> None:
    machine = MACHINES.get(platform.machine())
    if machine is None:
        raise CannotBuild(f"no list of system calls for {platform.machine()} processors")
    for kind, most in (
        (resource.RLIMIT_AS, task["memory"]),
        (resource.RLIMIT_CPU, task["cpu"]),
        (resource.RLIMIT_FSIZE, task["file"]),
        (resource.RLIMIT_STACK, 8 * 2**20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    control("PR_SET_PDEATHSIG", 1, 9)
    own_file_system(os.getcwd(), task)
    control("PR_SET_NO_NEW_PRIVS", 38, 1)
    limit_files(os.getcwd())
    limit_calls(*machine)


def own_file_system(folder: str, task: dict[str, int]) -> bool:
    """A file system in memory for the folder, of so many bytes and files, in a mount namespace of
    this process. Where the system gives none, the parent counts what is written (`_overdrawn`)."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS):
        if libc.unshare(NEW_MOUNTS | NEW_USERS):
            return False
        try:
            for file, line in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{file}", "w") as entry:
                    entry.write(line)
        except OSError:
            return False
    size = f"size={task['disk']},nr_inodes={task['files']},mode=700"
    private = libc.mount(b"none", b"/", None, PRIVATE, None)
    if private or libc.mount(b"none", folder.encode(), b"tmpfs", NO_DEVICES, size.encode()):
        return False
    os.chdir(folder)
    return True


def limit_files(folder: str) -> None:
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        raise CannotBuild("the kernel has no Landlock, so files cannot be protected")
    handled = HANDLED[max(v for v in HANDLED if v <= version)]
    attributes = ctypes.create_string_buffer(struct.pack("=Q", handled), 8)
    rules = libc.syscall(444, attributes, ctypes.c_size_t(8), 0)
    checked("Landlock refuses a set of rules", rules)
    for path, rights in allowed_paths(folder):
        try:
            at = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            rights &= ~(1 << 3)  # listing is a right on folders only
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights & handled, at), 12)
        checked("Landlock refuses a rule", libc.syscall(445, rules, 1, rule, 0))
        os.close(at)
    checked("Landlock cannot be switched on", libc.syscall(446, rules, 0))
    os.close(rules)


def allowed_paths(folder: str) -> Iterator[tuple[str, int]]:
    # Only plain files in the folder, so that removing it is simple.
    yield folder, READ | WRITE | MAKE_FILE | REMOVE | TRUNCATE
    yield os.devnull, READ | WRITE | TRUNCATE
    yield "/dev/urandom", READ
    for path in (*SYSTEM, *sys.path, os.path.join(sys.base_prefix, "lib")):
        if path:
            yield path, READ


def limit_calls(column: int, architecture: int) -> None:
    """A seccomp filter in classic BPF: the list above, everything else refused."""
    numbers: dict[int, Rules] = {
        number: () for pair in CALLS.values() if (number := pair[column]) is not None
    }
    numbers |= {pair[column]: rules for pair, rules in ARGUMENTS.values()}
    numbers[SIGNAL_ITSELF[column]] = ((0, 0xFFFFFFFF, os.getpid()),)
    program = [load(4), jump_if(architecture, 1, 0), give(KILL), load(0)]
    for number, rules in numbers.items():
        if not rules:
            program += [jump_if(number, 0, 1), give(ALLOW)]
            continue
        block: list[bytes] = []
        for argument, mask, value in rules:
            block += [load(16 + 8 * argument), masked(mask), jump_if(value, 0, 1), give(ALLOW)]
        program += [jump_if(number, 0, len(block) + 1), *block, give(REFUSE)]
    program += [struct.pack("=HBBI", 0x25, 0, 1, NEWER), give(UNKNOWN)]
    program += [jump_if(435, 0, 1), give(UNKNOWN), give(REFUSE)]  # clone3 falls back to clone
    code = ctypes.create_string_buffer(b"".join(program), 8 * len(program))
    size_and_code = struct.pack("@HP", len(program), ctypes.addressof(code))
    header = ctypes.create_string_buffer(size_and_code, len(size_and_code))
    control("PR_SET_SECCOMP", 22, 2, ctypes.addressof(header))


def load(offset: int) -> bytes:
    return struct.pack("=HBBI", 0x20, 0, 0, offset)


def masked(mask: int) -> bytes:
    return struct.pack("=HBBI", 0x54, 0, 0, mask)


def jump_if(value: int, yes: int, no: int) -> bytes:
    return struct.pack("=HBBI", 0x15, yes, no, value)


def give(verdict: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, verdict)


def control(name: str, option: int, value: int, address: int = 0) -> None:
    arguments = [ctypes.c_ulong(a) for a in (value, address, 0, 0)]
    checked(f"{name} is refused", libc.prctl(option, *arguments))


def checked(what: str, result: int) -> None:
    if result < 0:
        raise CannotBuild(f"{what} ({os.strerror(ctypes.get_errno())})")


if __name__ == "__main__":
    main()
