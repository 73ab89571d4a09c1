"""The verdict on a program is its tests', whatever it does in its own process; and what tests can
ask of a program across the line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedsdr.sandbox as sandbox
from fedsdr.sandbox import jailed, run_python

pytestmark = pytest.mark.skipif(
    sandbox.available() is not None, reason=f"no sandbox on this machine: {sandbox.available()}"
)

WRONG = "def f(x):\n    return 7\n"
TESTS = (
    "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == 6\ncheck(f)"
)

EVERYWHERE = """
import os
def everywhere(words):
    for end in range(3, 64):
        for word in words:
            try:
                os.write(end, word if isinstance(word, bytes) else str(word).encode())
            except OSError:
                pass
"""
FRAMES = """
import sys
def words():
    frame, found = sys._getframe(), ['ready\\n', 'passed\\n']
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            for value in list(space.values()):
                if isinstance(value, str): found.append(value + '\\n')
                if isinstance(value, dict): found += [f'{v}\\n' for v in value.values()]
        found += [f'{c}\\n' for c in frame.f_code.co_consts]
        frame = frame.f_back
    return found
"""
FRAMED = "import struct, json\ndef framed(m):\n    d = json.dumps(m).encode()\n"
FRAMED += "    return struct.pack('>I', len(d)) + d\n"
ALWAYS = """
class Always:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __sub__(self, other): return 0
    __rsub__ = __add__ = __radd__ = __abs__ = __float__ = __index__ = __sub__
    def __hash__(self): return hash(2)
    def __instancecheck__(self, other): return True
"""
FORGERIES = {
    "the frame's values, written everywhere": EVERYWHERE
    + FRAMES
    + "everywhere(words())\nos._exit(0)",
    "the same when it is called": EVERYWHERE
    + FRAMES
    + "def f(x):\n    everywhere(words())\n    os._exit(0)",
    "all strings that the collector knows": EVERYWHERE
    + "import gc\nfound = []\nfor o in gc.get_objects():\n"
    "    if isinstance(o, dict):\n"
    "        found += [f'{v}\\n' for v in list(o.values()) if isinstance(v, str) and len(v) < 99]\n"
    "everywhere(found[:2000])\nos._exit(0)",
    "the main module's task": EVERYWHERE + "import sys\nmain = sys.modules['__main__']\n"
    "everywhere([f'{v}\\n' for v in vars(main).values()])\nos._exit(0)",
    "the main module's end": "import sys\nmain = sys.modules['__main__']\n"
    "main.tests = main.program = lambda *a: 'passed'\n" + WRONG,
    "the line's own class": "import sys\nSide = sys.modules['calls'].Side\n"
    "Side.encode = lambda self, value: {'mine': 0}\n" + WRONG,
    "an answer of the line's own": EVERYWHERE
    + FRAMED
    + "everywhere([framed({'names': [], 'of': {'mine': 0}}), framed({'gave': True})] * 9)\n"
    + WRONG,
    "tests of its own by name": EVERYWHERE
    + FRAMED
    + "def check(candidate): pass\ndef f(x): return 7\n"
    "everywhere([framed({'names': ['check', 'f'], 'of': {'mine': 0}})])",
    "a handle on the tests": EVERYWHERE
    + FRAMED
    + "def f(x):\n    everywhere([framed({'ask': 'get', 'on': [{'yours': 0}, '__globals__'],"
    " 'named': {}})])\n    return 7",
    "a builtin of the tests": EVERYWHERE
    + FRAMED
    + "def f(x):\n    everywhere([framed({'ask': 'call', 'on': [{'builtin': 'exit'}, 0],"
    " 'named': {}})])\n    return 7",
    "always equal": ALWAYS + "def f(x): return Always()",
    "always equal, of a number's class": "class N(int):\n    __eq__ = lambda s, o: True\n"
    "    __hash__ = int.__hash__\ndef f(x): return N(7)",
    "always equal, of a text's class": "class N(str):\n    __eq__ = lambda s, o: True\n"
    "    __hash__ = str.__hash__\ndef f(x): return N(7)",
    "check is redefined": "def check(candidate): pass\n" + WRONG,
    "Python's functions are redefined": "import builtins\nbuiltins.AssertionError = None\n"
    "builtins.abs = builtins.len = builtins.sorted = lambda *a: 0\n"
    "def abs(x): return 0\ndef all(x): return True\n" + WRONG,
    "assertions are compiled away": "import sys\nsys.flags\n__debug__ if 0 else None\n" + WRONG,
    "leaves with 0": "import os\ndef f(x): os._exit(0)",
    "leaves with 0 at once": "import os\nos._exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "raises StopIteration": "def f(x): raise StopIteration",
    "raises KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raises GeneratorExit": "def f(x): raise GeneratorExit",
    "at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\n" + WRONG,
    "a thread that leaves": "import os, threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(.05), os._exit(0))).start()\n"
    "def f(x): time.sleep(5)",
    "a signal's handler": "import os, signal\nsignal.signal(14, lambda *a: os._exit(0))\n"
    "signal.setitimer(0, .05)\ndef f(x):\n    while True: pass",
    "a trace function": "import sys\ndef trace(frame, event, arg):\n"
    "    frame.f_trace_lines = False\n    return lambda *a: None\nsys.settrace(trace)\n" + WRONG,
    "a profile function that leaves": "import os, sys\n"
    "sys.setprofile(lambda *a: os._exit(0))\n" + WRONG,
    "an excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\nraise KeyError",
    "its pipes are closed": "import os\ndef f(x): os.closerange(3, 64)",
    "its pipes are swapped": "import os\nfor a in range(3, 12):\n    for b in range(3, 12):\n"
    "        try: os.dup2(a, b)\n        except OSError: pass\n" + WRONG,
    "a child answers": "import os\ndef f(x):\n    if os.fork(): os._exit(0)\n    return 7",
    "its memory through /proc": "def f(x):\n    open('/proc/self/mem', 'r+b')\n    return 7",
    "the parent's memory through /proc": "import os\ndef f(x):\n"
    "    open(f'/proc/{os.getppid()}/mem', 'r+b')\n    return 7",
    "the other process's pipes through /proc": "import os\ndef f(x):\n"
    "    open(f'/proc/{os.getpid() + 1}/fd/3', 'wb').write(b'passed')\n    return 7",
    "ctypes": "import ctypes\nctypes.memset(id(7) + 24, 2, 1)\n" + WRONG,
    "ctypes, all small numbers": "import ctypes\nfor n in range(2, 9):\n"
    "    ctypes.memset(id(n) + 24, 7, 1)\n" + WRONG,
    "unittest and doctest": "import doctest, unittest\n"
    "unittest.TestCase.assertEqual = lambda *a: None\n"
    "doctest.DocTestRunner.run = lambda *a, **k: None\n" + WRONG,
    "operator is patched": "import operator, json\noperator.eq = lambda a, b: True\n"
    "json.dumps = lambda m: '{\"gave\": true}'\n" + WRONG,
    "the argument becomes the answer": "def f(x):\n    x = 2\n    return Far()\nclass Far: pass",
    "a message without end": EVERYWHERE + "everywhere([b'\\xff\\xff\\xff\\xff'])\n" + WRONG,
    "a message of the deepest": EVERYWHERE + "import struct\n"
    "d = b'[' * 100000\neverywhere([struct.pack('>I', len(d)) + d])\n" + WRONG,
    "waits for its time to be up": "import time\ndef f(x): time.sleep(60)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_forgery_passes(name: str) -> None:
    assert not run_python(FORGERIES[name], timeout=1.0, tests=TESTS).passed


@pytest.mark.parametrize("name", list(FORGERIES)[:5])
def test_nothing_that_a_program_finds_about_itself_is_the_verdict(name: str) -> None:
    """Without tests of their own process, too."""
    assert not run_python(f"{FORGERIES[name]}\n{TESTS}", timeout=1.0).passed


@pytest.mark.parametrize(
    ("helper", "test"),
    [
        ("from operator import not_ as abs", "assert abs(f(1) - 2) < 1e-6"),
        ("def abs(x): return 0", "assert abs(f(1) - 2) < 1e-6"),
        ("def sorted(x): return f", "assert sorted([f(1)]) == [2]"),
        ("def all(x): return True", "assert all(f(n) == n + 1 for n in (1, 2))"),
        ("import math\nmath.isclose = lambda *a: True", "assert math.isclose(f(1), 2)"),
        (
            "import math\nclass M: isclose = lambda *a: True\nmath = M()",
            "assert math.isclose(f(1), 2)",
        ),
        ("from math import isclose\ndef isclose(*a): return True", "assert isclose(f(1), 2)"),
        (ALWAYS + "def f(x): return Always()", "assert f(1) in (2, 3)"),
        (ALWAYS + "def f(x): return Always()", "assert 2 in f(1)"),
        (ALWAYS + "def f(x): return Always()", "assert abs(f(1) - 2) < 1e-6"),
        (ALWAYS + "def f(x): return Always()", "assert f(1) < 3"),
        (ALWAYS + "def f(x): return [Always()]", "assert f(1) == [2]"),
        (ALWAYS + "def f(x): return {Always(): Always()}", "assert f(1) == {2: 2}"),
        (ALWAYS + "def f(x): return Always()", "assert f(1) == f(2)"),
        ("", "try:\n    assert f(1) == 2\nexcept AssertionError:\n    raise KeyError"),
    ],
)
def test_what_a_test_uses_is_not_the_programs(helper: str, test: str) -> None:
    assert run_python(f"{WRONG}{helper}", tests=test).status == "failed"


def test_a_test_that_catches_everything_does_not_pass_over_a_broken_line() -> None:
    tests = "for _ in range(3):\n    try:\n        f(1)\n    except BaseException:\n        pass"
    assert run_python("import os\ndef f(x): os._exit(0)", tests=tests).status == "exited"
    assert run_python(WRONG, tests=tests).passed


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(*a, **k): return a, k", "assert f(1, [2], x={3}) == ((1, [2]), {'x': {3}})"),
        ("def f(x): return x", "v = [True, -0.5, 1j, b'x', range(3), {1: ()}]\nassert f(v) == v"),
        ("def f(x): return x", "v = 3 ** 20000\nassert f(v) == v\nassert f(-v) == -v"),
        ("def f(x): return x", "v = float('nan')\nassert f(v) != f(v)\nassert f('\\ud800') > ''"),
        ("def f(x): return x is None or x is True", "assert f(None) is True\nassert f(1) is False"),
        ("def f(x): x.sort()", "v = [3, 1, 2]\nassert f(v) is None\nassert v == [1, 2, 3]"),
        ("def f(x): x['b'] = 2; x.pop('a')", "v = {'a': 1}\nf(v)\nassert v == {'b': 2}"),
        ("def f(x): yield from range(x)", "assert list(f(2)) == [0, 1]\nassert not next(f(9))"),
        ("def f(g, x): return [g(v) for v in x]", "assert f(lambda v: v + 1, [1, 2]) == [2, 3]"),
        ("def f(g, x): return g(x) if g else x", "assert f(str, 5) == '5'\nassert f(None, 5) == 5"),
        ("def f(x): return lambda y: x + y", "assert f(2)(3) == 5"),
        ("def f(x): raise ValueError('no', x)", "try:\n    f(3)\n    assert False\n"
         "except ValueError as e:\n    assert e.args == ('no', 3)"),
        ("from collections import namedtuple, Counter\nP = namedtuple('P', 'x y')\n"
         "def f(): return P(1, 2), Counter('aab')", "assert f() == ((1, 2), {'a': 2, 'b': 1})"),
        ("class Stack:\n    size = 0\n    def __init__(self): self.held = []\n"
         "    def push(self, x): self.held.append(x); return self\n"
         "    def __len__(self): return len(self.held)\n"
         "    def __getitem__(self, i): return self.held[i]\n"
         "    def __repr__(self): return f'Stack({self.held})'",
         "s = Stack()\nassert not s\nassert s.push(3).push(4) is s\nassert len(s) == 2\n"
         "assert s[0] == 3\nassert 4 in s\nassert s.held == [3, 4]\n"
         "s.size = 9\nassert s.size == 9\nassert repr(s) == 'Stack([3, 4])'\n"
         "assert isinstance(s, Stack)\nassert not isinstance(3, Stack)\n"
         "assert f'{s}' == 'Stack([3, 4])'\nassert list(s) == [3, 4]"),
        ("import math\nfrom typing import List\nBASE = {'a': [1]}\ndef f(x): return math.sqrt(x)",
         "v: List[float] = [f(4)]\nassert math.isclose(v[0], 2.0)\nassert BASE['a'] == [1]"),
        ("def f(x): print('hello', x)", "import io, contextlib\nout = io.StringIO()\n"
         "with contextlib.redirect_stdout(out):\n    f(3)\nassert out.getvalue() == 'hello 3\\n'"),
        ("def f(n): return n < 2 or n * f(n - 1)", "assert f(5) == 120\nassert f(500) > 9 ** 999"),
        ("big = bytearray(2 ** 26)\ndef f(): return len(big)", "assert f() == 2 ** 26"),
        ("def f(): return 1", ""),
    ],
)  # fmt: skip
def test_what_tests_can_ask_of_a_program(code: str, tests: str) -> None:
    outcome = run_python(code, timeout=10, tests=tests)
    assert outcome.passed, outcome


def test_how_tests_end_is_told() -> None:
    assert run_python(WRONG, tests=TESTS).detail == "AssertionError"
    assert run_python(WRONG, tests="g(1)").detail == "NameError"
    assert run_python(WRONG, tests="import sys\nsys.exit(0)").status == "exited"
    assert run_python("def f(x): 1 / 0", tests="f(1)").detail == "ZeroDivisionError"
    assert run_python("1 / 0", tests="f(1)").detail == "ZeroDivisionError"
    assert run_python("import os\ndef f(x): os.abort()", tests="f(1)").detail == "SIGABRT"
    assert run_python("def f(x):\n    while True: pass", 0.5, tests="f(1)").status == "timeout"
    assert run_python(WRONG, 0.5, tests="while True: pass").status == "timeout"


MUCH = "for n in range(40): open(f'a{n}', 'wb').write(bytes(2**22))\nimport time\ntime.sleep(5)"
MANY = "for n in range(9999): open(f'a{n}', 'wb').close()\nimport time\ntime.sleep(5)"


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("code", [MUCH, MANY])
def test_what_a_program_writes_is_bounded(
    code: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a file system of its own, or else by the parent, who looks."""
    if not own:
        without = jailed.JAIL.read_text().replace("    own_file_system(os.getcwd(), task)\n", "")
        (tmp_path / "jail.py").write_text(without)
        shutil.copy(jailed.JAIL.with_name("calls.py"), tmp_path)
        monkeypatch.setattr(jailed, "JAIL", tmp_path / "jail.py")
    outcome = run_python(code, timeout=10)
    assert outcome.detail in (("OSError", "quota") if own else ("quota",)), outcome
    assert run_python("for n in range(9): open(f'a{n}', 'wb').write(bytes(2**22))").passed


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor n in range(9999): os.write(1, bytes(2**20))",
        "import threading, time\nthreading.stack_size(2**16)\nfor _ in range(2000):\n"
        "    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\ntime.sleep(5)",
    ],
)
def test_output_and_threads_are_bounded(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_OUTPUT_BYTES", 2**23)
    outcome = run_python(code, timeout=10)
    assert outcome.detail in ("quota", "RuntimeError"), outcome
