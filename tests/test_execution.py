"""Guarded execution: right code passes, and every attack ends as a named failure.

The attacks return the right answer *after* their deed, so that a verdict of "passed" would mean
that the deed was done. Each runs in the subset guard, which must refuse it, and under bubblewrap,
which must stop it; the few that only use up resources run in both.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from judgelib.execution import (
    GuardError,
    Job,
    Limits,
    OutsideSubset,
    Verdict,
    check_subset,
    probe,
    records,
    run_check,
    run_many,
    run_program,
    run_tests,
)
from judgelib.execution import bubblewrap as bubblewrap_module
from judgelib.execution import child as child_module
from judgelib.execution.calls import parse_line, parse_reply, run_alone, same
from judgelib.execution.child import Stopped
from judgelib.execution.worker import decode, encode

DOUBLE = "def f(x):\n    return x * 2\n"
CASES = [((2,), 4), (("ab",), "abab")]
SMALL = 128 * 2**20
SHORT = Limits(cpu_seconds=1, wall_seconds=1.5, memory_bytes=SMALL)
LONG = Limits(cpu_seconds=10, wall_seconds=30.0, memory_bytes=SMALL)


def limits_for(reasons: set[str]) -> Limits:
    """Short only where time is meant to run out, so that a busy machine changes no verdict."""
    return SHORT if "timeout" in reasons else LONG


@pytest.fixture(scope="session")
def confinement() -> None:
    """Skip where bubblewrap cannot confine; the fail-closed tests below run there all the same."""
    try:
        probe()
    except GuardError as error:
        pytest.skip(f"no confinement here: {error}")


@pytest.fixture(params=["subset", "bubblewrap"])
def guard(request: pytest.FixtureRequest) -> str:
    """Both guards in turn; the second only where it holds."""
    if request.param == "bubblewrap":
        request.getfixturevalue("confinement")
    return str(request.param)


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A text in the command line of every process of the test; none may outlive it."""
    mark = f"marker-{uuid.uuid4().hex}"
    text = child_module._worker_text() + f"# {mark}\n"
    monkeypatch.setattr(child_module, "_worker_text", lambda: text)
    yield mark
    assert survivors(mark) == []


def survivors(mark: str, patience: float = 2.0) -> list[str]:
    """Command lines that still hold the marker after a moment's patience."""
    until = time.monotonic() + patience
    while (found := marked(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def marked(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode("utf-8", "replace")
        except OSError:
            continue  # ended while we looked
        if mark in line:
            found.append(line[:200])
    return found


# ---------------------------------------------------------------- right and wrong answers


@pytest.mark.parametrize("guard", ["auto", "subset", "none"])
def test_right_code_passes_and_the_guard_is_recorded(guard: str, marker: str) -> None:
    verdict = run_tests(DOUBLE, "f", CASES, guard=guard)
    assert (verdict.passed, verdict.reason) == (True, "passed")
    assert verdict.guard == ("none" if guard == "none" else "subset")


def test_code_beyond_the_subset_runs_under_bubblewrap(confinement: None, marker: str) -> None:
    source = "import math\ndef f(x):\n    while True:\n        return math.factorial(x)\n"
    verdict = run_tests(source, "f", [((5,), 120)])
    assert verdict == Verdict(True, "passed", "1 cases", "bubblewrap")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return x + 2", "exception"),  # right for 2, a TypeError for "ab"
        ("return [x, x]", "wrong_answer"),
        ("return None", "wrong_answer"),
        ("return f(x)", "exception"),
        ("return range(x)", "wrong_type"),
        ("return (", "syntax_error"),
        ("return undefined", "exception"),
    ],
)
def test_wrong_code_fails_with_its_reason(guard: str, body: str, reason: str) -> None:
    verdict = run_tests(f"def f(x):\n    {body}\n", "f", CASES, guard=guard)
    assert (verdict.passed, verdict.reason, verdict.guard) == (False, reason, guard)


def test_the_detail_names_case_expected_and_got() -> None:
    verdict = run_tests(DOUBLE, "f", [((1,), 2), ((2,), 5)])
    assert verdict.detail == "case 1: expected 5, got 4"


def test_a_function_of_another_name_is_missing() -> None:
    assert run_tests(DOUBLE, "g", CASES).reason == "missing_function"


@pytest.mark.parametrize(
    ("expected", "got"),
    [(1, True), (1, 1.0), ([1], (1,)), ([], None), ("1", 1), ({1: 2}, {True: 2}), ({1}, {True})],
)
def test_equality_is_exact_in_type(expected: object, got: object) -> None:
    assert same(expected, expected) and same(got, got)
    assert not same(expected, got) and not same(got, expected)


def test_not_a_number_may_be_expected() -> None:
    assert same([float("nan"), 0.5], [float("nan"), 0.5])
    assert not same([0.5], [float("nan")])


VALUES = [None, True, 0, -(10**40), 0.1, float("inf"), "é\n\ud800", [], [[1, "a"], ()]]
VALUES += [{"a": 1, 2: (3,)}, {1, "x"}, {"tuple": [1]}, [{"dict": []}], {(1, 2): {"set": 3}}]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_data_crosses_unchanged(value: object, guard: str) -> None:
    assert same(decode(encode(value)), value)
    verdict = run_tests("def f(x):\n    return x\n", "f", [((value,), value)], guard=guard)
    assert verdict.passed, verdict


def test_many_jobs_keep_their_order_over_failures_and_threads(marker: str) -> None:
    loop = "def f(x):\n    for i in range(10**12):\n        x = i\n    return 4\n"
    huge = 'def f(x):\n    return "a" * 10**12\n'
    jobs = [Job(source, "f", [((2,), 4)]) for source in (DOUBLE, loop, DOUBLE, huge, DOUBLE)]
    expected = ["passed", "timeout", "passed", "memory", "passed"]
    for parallel in (1, 2):
        verdicts = run_many(jobs, limits=SHORT, guard="subset", parallel=parallel)
        assert [verdict.reason for verdict in verdicts] == expected


def test_subset_jobs_share_one_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    original = child_module.Child._start
    monkeypatch.setattr(
        child_module.Child, "_start", lambda *a: [original(*a), started.append(a[1])][0]
    )
    verdicts = run_many([Job(DOUBLE, "f", CASES)] * 50)
    assert all(verdict.passed for verdict in verdicts) and started == ["pool"]


def test_no_jobs_no_verdicts() -> None:
    assert run_many([]) == []


def test_sets_are_ordered_alike_in_every_run() -> None:
    source = "def f(words):\n    return [w for w in set(words)]\n"
    words = [f"word{i}" for i in range(20)]
    details = {run_tests(source, "f", [((words,), None)]).detail for _ in range(3)}
    assert len(details) == 1


# ---------------------------------------------------------------- the subset


INSIDE = [
    "def f(xs):\n    return sorted([x for x in xs if x % 2 == 0], reverse=True)[:3]\n",
    'def f(s):\n    """Shout."""\n    return " ".join(w.upper() for w in s.split())\n',
    "def g(x):\n    return x if x else 1\ndef f(x: int, y: int = 1) -> int:\n    return g(x)\n",
    "A = 3\ndef f(d):\n    t = 0\n    for _, v in d.items():\n        t += v // A\n    return t\n",
    "def f(a, *b):\n    x, y = a, {k: v for k, v in zip(b, b)}\n    return not x and y is None\n",
    "def f(input):\n    return input\n",
]

OUTSIDE = {
    "import": "import os\ndef f(x):\n    return x\n",
    "import inside": "def f(x):\n    import os\n    return x\n",
    "while": "def f(x):\n    while True:\n        x = 1\n",
    "lambda": "def f(x):\n    return (lambda: x)()\n",
    "f-string": 'def f(x):\n    return f"{x.__class__}"\n',
    "format": 'def f(x):\n    return "{0.__class__}".format(x)\n',
    "format_map": 'def f(x):\n    return "{x.__class__}".format_map(x)\n',
    "dunder": "def f(x):\n    return x.__class__\n",
    "dunder name": "def f(x):\n    return __builtins__\n",
    "private parameter": "def f(_x):\n    return 1\n",
    "private function": "def __f(x):\n    return 1\n",
    "frame of a generator": "def f(x):\n    return (i for i in x).gi_frame\n",
    "method not called": "def f(x):\n    return x.append\n",
    "attribute stored": "def f(x):\n    x.append = 1\n",
    "eval": 'def f(x):\n    return eval("1")\n',
    "open": 'def f(x):\n    return open("/etc/passwd").read()\n',
    "getattr": 'def f(x):\n    return getattr(x, "__class__")\n',
    "type": "def f(x):\n    return type(x)\n",
    "print": "def f(x):\n    print(x)\n",
    "class": "class A:\n    pass\n",
    "decorator": "@str\ndef f(x):\n    return x\n",
    "global": "def f(x):\n    global y\n    y = 1\n",
    "try": "def f(x):\n    try:\n        return 1\n    except ValueError:\n        return 2\n",
    "with": "def f(x):\n    with x:\n        return 1\n",
    "raise": "def f(x):\n    raise ValueError\n",
    "walrus": "def f(x):\n    return (y := x)\n",
    "yield": "def f(x):\n    yield x\n",
    "async": "async def f(x):\n    return x\n",
    "match": "def f(x):\n    match x:\n        case 1:\n            return 1\n",
    "delete": "def f(x):\n    del x\n",
    "bytes": 'def f(x):\n    return b"a"\n',
    "call at the top": "def f(x):\n    return x\n\nf(1)\n",
    "loop at the top": "for i in range(3):\n    i = 2\n",
    "too long": "def f(x):\n    return x\n" + "#" * 30_000,
    "too deep": "def f(x):\n    return " + "-" * 15_000 + "1\n",
    "null byte": "def f(x):\n    return 1\n\0",
}


@pytest.mark.parametrize("source", INSIDE)
def test_the_subset_holds_what_the_sandbox_writes(source: str) -> None:
    check_subset(source)


@pytest.mark.parametrize("source", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_the_subset_ends_there(source: str) -> None:
    with pytest.raises((OutsideSubset, SyntaxError)):
        check_subset(source)
    verdict = run_tests(source, "f", CASES, guard="subset")
    assert verdict.reason in ("forbidden_syntax", "syntax_error")
    assert (verdict.passed, verdict.guard) == (False, "subset")


def test_the_refusal_says_what_and_where() -> None:
    with pytest.raises(OutsideSubset, match="line 2: attribute __class__"):
        check_subset("def f(x):\n    return x.__class__\n")


# ---------------------------------------------------------------- attacks on resources

EXHAUSTION = {
    "loop": ("for i in range(10**12):\n        y = i", {"timeout"}),
    "loop in C": ("y = sum(range(10**12))", {"timeout"}),
    "power tower": ("y = 10**10**10", {"timeout", "memory"}),
    "long string": ('y = "a" * (10 * 2**30)', {"memory"}),
    "long list": ("y = list(range(10**10))", {"memory"}),
    "growing list": ("y = [0]\n    for i in range(99):\n        y = y + y", {"memory"}),
    "padding": ('y = "%10000000000d" % 1', {"memory", "exception"}),
    "recursion": ("y = f(x)", {"exception"}),
}


@pytest.mark.parametrize("name", EXHAUSTION)
def test_exhaustion_ends_named(marker: str, guard: str, name: str) -> None:
    body, reasons = EXHAUSTION[name]
    source = f"def f(x):\n    {body}\n    return x * 2\n"
    verdict = run_tests(source, "f", CASES, limits=limits_for(reasons), guard=guard)
    assert not verdict.passed and verdict.reason in reasons, verdict


def test_processor_time_is_limited_apart_from_wall_time(marker: str, guard: str) -> None:
    source = "def f(x):\n    return sum(range(10**12))\n"
    limits = Limits(cpu_seconds=1, wall_seconds=60.0)
    verdict = run_tests(source, "f", CASES, limits=limits, guard=guard)
    assert (verdict.reason, verdict.detail) == ("timeout", "the processor time is used up")


def test_a_large_answer_is_an_output_too(marker: str, guard: str) -> None:
    source = 'def f(x):\n    return "a" * 2**22\n'
    assert run_tests(source, "f", CASES, guard=guard).reason == "output_limit"


# ---------------------------------------------------------------- attacks by any code

LOOP = "while True:\n    pass"
BOMB = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
FLOOD = "import sys\nfor i in range(1024):\n    sys.{stream}.write('x' * 2**20)"
CHILD = """
import os, subprocess
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv("/usr/bin/sleep", ["sleep", "600", "MARKER"])
    os._exit(0)
"""
# Walk outwards to the worker's own frame and answer in its place.
WALK = """
import sys
frame = sys._getframe()
while "send" not in frame.f_locals:
    frame = frame.f_back
send = frame.f_locals["send"]
"""

ATTACKS = {
    "infinite loop": (LOOP, {"timeout"}),
    "loop deaf to the limit": (
        f"import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n{LOOP}",
        {"timeout", "no_result"},
    ),
    "sleep": ("import time\ntime.sleep(60)", {"timeout"}),
    "fork": ("import os\nos.fork()", {"exception"}),
    "fork bomb": (BOMB, {"timeout"}),
    "threads": ("import threading\nthreading.Thread(target=int).start()", {"exception"}),
    "10 GB": ("y = bytearray(10 * 2**30)", {"memory"}),
    "10 GB in pieces": ("y = []\nwhile True:\n    y.append(bytearray(2**20))", {"memory"}),
    "1 GB to stdout": (FLOOD.format(stream="stdout"), {"output_limit"}),
    "1 GB to stderr": (FLOOD.format(stream="stderr"), {"output_limit"}),
    "os._exit(0)": ("import os\nos._exit(0)", {"no_result"}),
    "sys.exit(0)": ("import sys\nsys.exit(0)", {"exception"}),
    "kill everything": ("import os\nos.kill(-1, 9)", {"exception", "no_result"}),
    "kill the namespace": ("import os\nos.kill(1, 9)\nos._exit(0)", {"no_result"}),
    "kill itself": ("import os\nos.kill(os.getpid(), 9)", {"no_result"}),
    "hang up": ("import os\nos.closerange(0, 64)", {"exception", "no_result"}),
    "hang up and stay": (f"import os\nos.closerange(0, 64)\n{LOOP}", {"no_result", "timeout"}),
    "write to the root": ('open("/attack", "w")', {"exception"}),
    "write to the system": ('open("/usr/attack", "w")', {"exception"}),
    "write to shared memory": ('open("/dev/shm/attack", "w")', {"exception"}),
    "large file": ('open("/tmp/attack", "wb").write(bytes(2**24))', {"exception"}),
    "many files": (
        'for i in range(64):\n    open(f"/tmp/{i}", "wb").write(bytes(2**18))',
        {"exception"},
    ),
    "passwords": ('open("/etc/passwd").read()', {"exception"}),
    "a shell": ('import subprocess\nsubprocess.run(["/bin/sh"])', {"exception"}),
    "crash by ctypes": ("import ctypes\nctypes.string_at(0)", {"no_result"}),
    "root by ctypes": ("import ctypes\nassert ctypes.CDLL(None).setuid(0) == 0", {"exception"}),
    "mount by ctypes": (
        'import ctypes\nassert ctypes.CDLL(None).mount(b"/", b"/tmp", None, 4096, None) == 0',
        {"exception"},
    ),
    "new namespace by ctypes": (
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
        {"exception"},
    ),
    "socket to the world": (
        'import socket\nsocket.create_connection(("1.1.1.1", 53), timeout=1)',
        {"exception"},
    ),
    "surviving child": (CHILD, {"exception"}),
    "equal to everything": (
        "class Equal:\n    def __eq__(self, other):\n        return True\nreturn Equal()",
        {"wrong_type"},
    ),
    "an int equal to everything": (
        "class Equal(int):\n    def __eq__(self, other):\n        return True\nreturn Equal(3)",
        {"wrong_type"},
    ),
    "a type equal to every type": (
        "class Meta(type):\n    __hash__ = type.__hash__\n    def __eq__(self, other):\n"
        "        return True\nclass Any(metaclass=Meta):\n    pass\nreturn Any()",
        {"wrong_type"},
    ),
    "print the pass line": (
        'print(\'{"passed": true}\')\nprint("passed", "OK", 4)\nimport os\nos._exit(0)',
        {"no_result"},
    ),
    "write the pass line everywhere": (
        "import os\nfor d in range(3, 64):\n    try:\n        os.write(d, b'{\"value\": 4}\\n')\n"
        "    except OSError:\n        pass",
        {"forged"},
    ),
    "rubbish in the reply": (
        "import os\nfor d in range(3, 64):\n    try:\n        os.write(d, b'['*10**5+b'\\n')\n"
        "    except OSError:\n        pass",
        {"forged"},
    ),
    "walk to the grader, say passed": (WALK + "send({'passed': True})", {"forged"}),
    "walk to the grader, report a pass": (
        WALK + "send({'error': 'passed', 'detail': ''})",
        {"forged"},
    ),
    "walk to the grader, unknown data": (WALK + "send({'value': {'any': []}})", {"forged"}),
    "walk to the grader, guess": (WALK + "send({'value': 3}, {'value': 3})", {"wrong_answer"}),
    "patched builtins": (
        "import builtins\nfor name in ('all', 'any', 'isinstance', 'map', 'len', 'type', 'zip'):\n"
        "    setattr(builtins, name, lambda *a: True)\nreturn object()",
        {"exception", "wrong_type", "no_result", "forged"},
    ),
    "patched json": (
        "import json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\nreturn 3",
        {"forged"},
    ),
    "patched encoder": (
        WALK.replace("send", "batch") + "frame.f_globals['encode'] = lambda x: True\nreturn 3",
        {"wrong_answer"},
    ),
    "a string of its own": (
        "class Text(str):\n    pass\nraise ValueError(Text('passed'))",
        {"exception"},
    ),
    "an exception that does not print": (
        "class Odd(Exception):\n    def __str__(self):\n        raise self\nraise Odd",
        {"no_result"},
    ),
    "a bottomless answer": (
        "y = []\nfor i in range(10**5):\n    y = [y]\nreturn y",
        {"exception", "no_result"},
    ),
    "an answer within itself": ("y = []\ny.append(y)\nreturn y", {"exception"}),
}


def attack_source(body: str, mark: str = "") -> str:
    """The deed inside a function, then the right answer."""
    lines = [f"    {line}" for line in body.replace("MARKER", mark).splitlines()]
    return "\n".join(["def f(x):", *lines, "    return x * 2", ""])


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_ends_as_a_named_failure(confinement: None, marker: str, name: str) -> None:
    body, reasons = ATTACKS[name]
    source, limits = attack_source(body, marker), limits_for(reasons)
    verdict = run_tests(source, "f", [((2,), 4)], limits=limits, guard="bubblewrap")
    assert not verdict.passed and verdict.reason in reasons, verdict
    assert verdict.guard == "bubblewrap"


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_outside_the_subset(name: str) -> None:
    verdict = run_tests(attack_source(ATTACKS[name][0]), "f", [((2,), 4)], guard="subset")
    assert not verdict.passed and verdict.reason in ("forbidden_syntax", "exception"), verdict


def test_children_die_with_the_candidate_even_where_they_are_allowed(
    confinement: None, marker: str
) -> None:
    source, limits = attack_source(CHILD, marker), Limits(processes=8)
    verdict = run_tests(source, "f", [((2,), 4)], limits=limits, guard="bubblewrap")
    assert verdict.passed  # the answer was right; what it left behind is gone: see `marker`


ORPHAN = """
from judgelib.execution import Limits, child, run_tests
from judgelib.execution.probe import require_bubblewrap
require_bubblewrap()  # so that what follows is about the candidate alone
text, start, send = child._worker_text() + "# MARKER", child.Child._start, child.Child.send
child._worker_text = lambda: text
child.Child._start = lambda *a: (start(*a), print("starting", flush=True))[0]
child.Child.send = lambda *a: (send(*a), print("running", flush=True))[0]
limits = Limits(cpu_seconds=60, wall_seconds=60.0)
source = "import time\\ndef f(x):\\n    time.sleep(60)\\n"
run_tests(source, "f", [((2,), 4)], limits=limits, guard="bubblewrap")
"""


@pytest.mark.parametrize(("moment", "processes"), [("starting", 1), ("running", 4)])
def test_the_candidate_dies_with_the_grader(confinement: None, moment: str, processes: int) -> None:
    mark = f"marker-{uuid.uuid4().hex}"
    command = [sys.executable, "-c", ORPHAN.replace("MARKER", mark)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as grader:
        assert grader.stdout is not None
        while (line := grader.stdout.readline().strip()) != moment:
            assert line, "the grader ended by itself"
        alive = marked(mark)
        grader.send_signal(signal.SIGKILL)
    assert len(alive) >= processes  # once it runs: grader, two of bubblewrap, candidate
    assert survivors(mark, patience=20.0) == []  # it would sleep for 60 s


def test_a_fork_bomb_of_many_dies_as_a_whole(confinement: None, marker: str) -> None:
    limits = Limits(cpu_seconds=1, wall_seconds=1.0, processes=16)
    verdict = run_tests(attack_source(BOMB), "f", [((2,), 4)], limits=limits, guard="bubblewrap")
    assert verdict.reason == "timeout"


def test_the_number_of_processes_is_exact(confinement: None) -> None:
    body = "import os, time\nn = 1\ntry:\n    while os.fork():\n        n += 1\n    time.sleep(9)\n"
    source = attack_source(body + "except OSError:\n    return n")
    limits = Limits(processes=5)
    assert run_tests(source, "f", [((2,), 5)], limits=limits, guard="bubblewrap").passed


def test_files_outside_cannot_be_read_or_written(confinement: None, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.chmod(secret, 0o666)
    for mode in ("r", "w"):
        source = attack_source(f"open({str(secret)!r}, {mode!r}).close()")
        verdict = run_tests(source, "f", [((2,), 4)], guard="bubblewrap")
        assert verdict.reason == "exception" and "FileNotFoundError" in verdict.detail
    assert secret.read_text() == "secret"


def test_the_home_folder_cannot_be_read(confinement: None) -> None:
    home = Path.home()
    held = {entry.name for entry in home.iterdir()} if home.is_dir() else set()
    source = f"import os\ndef f(x):\n    return os.listdir({str(home)!r})\n"
    (reply,) = run_alone(Job(source, "f", []), [[2]], "bubblewrap", Limits())
    interpreter = Path(bubblewrap_module.interpreter())
    inside = {interpreter.relative_to(home).parts[0]} if interpreter.is_relative_to(home) else set()
    assert set(reply.value or []) <= inside, held


def test_a_socket_does_not_reach_this_machine(confinement: None) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        body = f'import socket\nsocket.create_connection(("127.0.0.1", {port}), timeout=1)'
        verdict = run_tests(attack_source(body), "f", [((2,), 4)], guard="bubblewrap")
        assert verdict.reason == "exception" and "ConnectionRefused" in verdict.detail
        with pytest.raises(TimeoutError):
            server.accept()


def test_everything_in_the_grader_s_frames_lacks_the_expected_output(confinement: None) -> None:
    """The walk reaches the nonce, so it went all the way; the needle is not there to be found."""
    body = "import gc, sys\ntexts = []\nframe = sys._getframe()\nwhile frame:\n"
    body += "    texts.append(repr(frame.f_locals))\n    frame = frame.f_back\n"
    body += "texts += [repr(o) for o in gc.get_objects() if type(o) is dict and 'nonce' in o]\n"
    source = attack_source(body + "return ''.join(texts)")
    job = Job(source, "f", [((2,), "needle-4711")])
    (reply,) = run_alone(job, [[2]], "bubblewrap", Limits())
    assert "'nonce': '" in reply.value and "needle-4711" not in reply.value
    assert run_tests(source, "f", job.cases).reason == "wrong_answer"


def test_a_reply_to_another_job_is_forged() -> None:
    with pytest.raises(Stopped, match="nonce"):
        parse_line(b'{"nonce": "other", "value": 4}', "mine")
    with pytest.raises(Stopped, match="forged"):
        parse_reply({"value": 4, "passed": True})
    with pytest.raises(Stopped, match="forged"):
        parse_reply({"value": {"set": [[1]]}})


# ---------------------------------------------------------------- whole programs and checks


def test_a_program_turns_stdin_into_stdout(confinement: None, marker: str) -> None:
    outcome = run_program("import sys\nprint(sum(map(int, sys.stdin)))\nexit()", "1\n2\n" * 50_000)
    assert (outcome.stdout, outcome.finished, outcome.guard) == ("150000\n", True, "bubblewrap")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (LOOP, "timeout"),
        ("1 / 0", "exception"),
        ("import sys\nsys.exit(3)", "exception"),
        ("def", "syntax_error"),
        ("x = bytearray(10**10)", "memory"),
        ("while True:\n    print('x' * 1000)", "output_limit"),
        ("import os\nos._exit(0)", "no_result"),
    ],
)
def test_a_program_s_end_is_named(confinement: None, marker: str, source: str, reason: str) -> None:
    limits = limits_for({reason})
    outcome = run_program(f"print('begun', flush=True)\n{source}", limits=limits)
    assert (outcome.finished, outcome.reason) == (False, reason)
    assert outcome.stdout.startswith("begun\n") or reason == "syntax_error"


CHECK = """
def twice(x):
    return x + x

def check(candidate):
    for x in [1, 2.5, "a", [1], (2,)]:
        assert candidate(x) == twice(x)
    assert True, "good"
"""


def test_a_check_passes_right_code(confinement: None, marker: str) -> None:
    verdict = run_check(DOUBLE, "f", CHECK)
    assert verdict == Verdict(True, "passed", "5 calls", "bubblewrap")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return x", "wrong_answer"),
        ("return None", "wrong_answer"),
        ("import os\nos._exit(0)", "no_result"),
        ("import sys\nsys.exit(0)", "exception"),
        (LOOP, "timeout"),
        (ATTACKS["equal to everything"][0], "wrong_type"),
        (ATTACKS["patched json"][0], "forged"),
        ("def check(candidate):\n    pass\nglobals()['check'] = check\nreturn 0", "wrong_answer"),
        ("import builtins\nbuiltins.AssertionError = ValueError\nreturn 0", "wrong_answer"),
    ],
)
def test_a_check_fails_forgers(confinement: None, marker: str, body: str, reason: str) -> None:
    verdict = run_check(attack_source(body), "f", CHECK, limits=limits_for({reason}))
    assert (verdict.passed, verdict.reason) == (False, reason), verdict


def test_a_check_that_calls_nothing_does_not_pass(confinement: None) -> None:
    verdict = run_check(DOUBLE, "f", "def check(candidate):\n    assert True\n")
    assert (verdict.passed, verdict.reason) == (False, "no_result")


def test_a_broken_check_is_the_user_s_mistake(confinement: None) -> None:
    with pytest.raises(ValueError, match="does not parse"):
        run_check(DOUBLE, "f", "def check(candidate:\n")


# ---------------------------------------------------------------- failing closed

BEYOND = "import math\ndef f(x):\n    return x * 2\n"


def test_without_bubblewrap_only_the_subset_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap_module.shutil, "which", lambda name: None)
    assert run_tests(DOUBLE, "f", CASES).passed
    for refused in (
        lambda: run_tests(BEYOND, "f", CASES),
        lambda: run_tests(DOUBLE, "f", CASES, guard="bubblewrap"),
        lambda: run_program("print(1)"),
        lambda: run_check(DOUBLE, "f", CHECK),
        probe,
    ):
        with pytest.raises(GuardError, match="apt-get install bubblewrap"):
            refused()
    assert run_tests(BEYOND, "f", CASES, guard="none") == Verdict(True, "passed", "2 cases", "none")


def fake_bubblewrap(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_bubblewrap_that_does_not_start_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bubblewrap(tmp_path, monkeypatch, "echo 'bwrap: No permissions' >&2; exit 1")
    with pytest.raises(GuardError, match="does not start.*No permissions.*"):
        run_tests(BEYOND, "f", CASES)


def test_a_bubblewrap_that_does_not_confine_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_all_options = 'while [[ " $* " == *" -- "* ]]; do shift; done; exec "$@"'
    fake_bubblewrap(tmp_path, monkeypatch, drop_all_options)
    with pytest.raises(GuardError, match="does not confine.*no network"):
        run_tests(BEYOND, "f", CASES)


SHOW_FOLDER = ["--perms", "0755", "--dir", "/var", "--ro-bind", "/var/tmp", "/var/tmp"]


@pytest.mark.parametrize(
    ("function", "change", "fact"),
    [
        ("_isolation", lambda words: [*words, "--share-net"], "no network"),
        ("_isolation", lambda words: [*words, "--setenv", "KEY", "1"], "empty environment"),
        ("_system_view", lambda words: [*words, *SHOW_FOLDER], "files outside hidden"),
        ("_system_view", lambda words: [*words, *SHOW_FOLDER], "home hidden"),
        ("_scratch", lambda words: words[:-2], "system read-only"),
        ("_scratch", lambda words: [w + "0" * w.isdigit() for w in words], "folder size"),
        ("_scratch", lambda words: [*words, "--proc", "/tmp"], "empty folder"),
        ("_as_nobody", lambda words: [], "processes limited"),
    ],
)
def test_the_probe_notices_each_hole(
    confinement: None,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    change: Callable[[list[str]], list[str]],
    fact: str,
) -> None:
    if function == "_as_nobody" and os.geteuid() != 0:
        pytest.skip("only root steps down")
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")  # where the probe puts its canary
    monkeypatch.setenv("HOME", "/var/tmp")
    original = getattr(bubblewrap_module, function)
    monkeypatch.setattr(bubblewrap_module, function, lambda *a: change(original(*a)))
    with pytest.raises(GuardError, match=fact):
        probe()


@pytest.mark.parametrize(
    ("resource", "fact"),
    [
        ("RLIMIT_AS", "memory limited"),
        ("RLIMIT_NPROC", "processes limited"),
        ("RLIMIT_FSIZE", "file size limited"),
        ("RLIMIT_CPU", "processor time limited"),
    ],
)
def test_the_probe_notices_each_missing_limit(
    confinement: None, monkeypatch: pytest.MonkeyPatch, resource: str, fact: str
) -> None:
    original = records.Limits.resources

    def without(self: Limits, *, overhead: int = 0) -> dict[str, int]:
        limits = original(self, overhead=overhead).items()
        return {name: value for name, value in limits if name != resource}

    monkeypatch.setattr(records.Limits, "resources", without)
    with pytest.raises(GuardError, match=fact):
        probe()


# ---------------------------------------------------------------- the user's mistakes


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "no cases"),
        ([("ab", "abab")], r"tuple of arguments, got a str"),
        ([((object(),), 1)], "case 0: object is not plain data"),
        ([((1,), 2), ((1,), 1j)], "case 1: complex is not plain data"),
    ],
)
def test_cases_must_be_plain_and_there(cases: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_tests(DOUBLE, "f", cases)


def test_unknown_guards_and_empty_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="guard must be one of"):
        run_tests(DOUBLE, "f", CASES, guard="bublewrap")
    with pytest.raises(ValueError, match="whole programs need"):
        run_program("print(1)", guard="subset")
    with pytest.raises(ValueError, match="parallel must be at least 1"):
        run_many([], parallel=0)
    for wrong in ({"cpu_seconds": 0}, {"wall_seconds": float("inf")}, {"processes": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)
