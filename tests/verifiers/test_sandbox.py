"""The sandbox holds, with bubblewrap and without, in a control group and without one."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import doctor
from limbeck.errors import UserError
from limbeck.verifiers import sandbox
from limbeck.verifiers.sandbox import bubblewrap, cgroups, seccomp, wire
from limbeck.verifiers.sandbox.equal import same_output, same_value
from limbeck.verifiers.sandbox.limits import Limits
from limbeck.verifiers.sandbox.process import Ended, Late, Trouble

REFUSALS = {name: sandbox.refusal(name) for name in sandbox.BACKENDS}
LIMITS = Limits(cpu_s=5, memory_bytes=256 << 20)
TIME_S = 20.0


WAYS = [
    pytest.param(
        (name, grouped),
        id=f"{name}-{'cgroup' if grouped else 'alone'}",
        marks=[
            pytest.mark.skipif(refusal is not None, reason=f"no {name} here: {refusal}"),
            pytest.mark.skipif(grouped and cgroups.home() is None, reason="no control group here"),
        ],
    )
    for name, refusal in REFUSALS.items()
    for grouped in (True, False)
]
needs_sandbox = pytest.mark.skipif(
    all(REFUSALS.values()), reason=f"no sandbox on this machine: {REFUSALS}"
)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Every backend, each with and without a control group."""
    name, grouped = request.param
    monkeypatch.setattr(sandbox, "backend", lambda: name)
    if not grouped:
        monkeypatch.setattr(cgroups, "home", lambda: None)
    return name


def said(program, stdin="", time_s=TIME_S, limits=LIMITS):
    written, status = sandbox.run(program, stdin, time_s, limits)
    return written.decode(), status


def test_every_promise_is_kept(way):
    findings = doctor.examine()
    assert findings[0].told == way
    assert [finding for finding in findings if not finding.ok] == []
    assert {"network", "home and files", "fork bomb", "survivors"} <= {f.name for f in findings}


def test_a_program_sees_its_input_and_nothing_of_ours(way, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    assert said("print(input()[::-1])", "äbc\n") == ("cbä\n", 0)
    told, _ = said(
        "import os, sys; print(dict(os.environ), sys.argv, sys.path, os.listdir('/'),"
        "[fd for fd in range(3, 256) if os.path.exists(f'/dev/fd/{fd}')], os.listdir('/tmp'))"
    )
    assert "canary" not in told and "proc" not in told and "home" not in told
    descriptors = """
import os
for descriptor in range(256):
    try:
        os.fstat(descriptor)
        print(descriptor)
    except OSError:
        pass
"""
    assert said(descriptors) == ("0\n1\n2\n", 0)


def test_a_program_ends_as_it_ends(way):
    assert said("import sys; print(1); sys.exit(3)") == ("1\n", 3)
    assert said("1 / 0") == ("", 1)
    assert said("import atexit; atexit.register(print, 'late'); exit()") == ("late\n", 0)
    assert said("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")[1] != 0


def test_limits_of_time_and_output(way):
    began = time.monotonic()
    with pytest.raises(Late):
        said("import time; time.sleep(99)", time_s=0.5)
    assert time.monotonic() - began < 10  # far from 99: it was killed
    with pytest.raises(Ended):
        said("while True: print('x' * 1000)")
    short = Limits(cpu_s=5, output_bytes=10)
    assert said("print('123456789')", limits=short) == ("123456789\n", 0)
    with pytest.raises(Ended):
        said("print('1234567890')", limits=short)


def test_limits_of_memory_files_and_threads(way):
    assert said("x = bytearray(100 << 20); print(len(x))")[1] == 0
    assert said("try: bytearray(300 << 20)\nexcept MemoryError: print('none')") == ("none\n", 0)
    threads = """
import threading, time
try:
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
except RuntimeError:
    print("no more")
"""
    small = Limits(cpu_s=5, memory_bytes=1 << 30, num_processes=16)
    told = said("import threading; threading.stack_size(1 << 18)" + threads, limits=small)
    assert told == ("no more\n", 0) or cgroups.home() is None
    file = "open('/tmp/a', 'wb').write(bytes(70 << 20))"
    assert said(file)[1] != 0
    assert said("import os; [os.open('/dev/null', 0) for _ in range(300)]")[1] != 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
def test_system_calls_that_are_refused(way):
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for number in (101, 250, 272, 308, 425, 321, 165, 319, 298, 435):
    libc.syscall(ctypes.c_long(number), 0x10000000, 0, 0, 0, 0)
    print(ctypes.get_errno(), end=" ")
libc.syscall(ctypes.c_long(56), 0x10000000, 0, 0, 0, 0)
print(ctypes.get_errno())
import socket
for family in (socket.AF_VSOCK, socket.AF_NETLINK, socket.AF_ALG):
    try:
        socket.socket(family, socket.SOCK_RAW if family == 16 else socket.SOCK_STREAM)
    except OSError as error:
        print(error.errno, end=" ")
"""
    assert said(program) == ("1 1 1 1 1 1 1 1 1 38 1\n97 97 97 ", 0)


def test_devices_and_libraries_stay_as_they_are(way):
    program = """
import os
for path in ("/dev/null", "/dev/urandom", "/usr/lib", "/"):
    mode = os.stat(path).st_mode & 0o7777
    for change in (lambda: os.chmod(path, mode), lambda: os.utime(path)):
        try:
            change()
            print("changed", path)
        except OSError as error:
            assert error.errno in (1, 30), error
open("/dev/null", "w").write("x")
print(len(open("/dev/urandom", "rb").read(3)))
"""
    assert said(program) == ("3\n", 0)


def test_without_a_control_group_there_are_threads_but_no_processes(way):
    program = "import os\ntry:\n    print(os.fork() >= 0)\nexcept OSError:\n    print('refused')"
    alone = cgroups.home() is None
    assert ("refused" in said(program)[0]) is alone
    threads = "import threading as t; a = t.Thread(target=print, args=(1,)); a.start(); a.join()"
    assert said(threads) == ("1\n", 0)


def test_many_at_once(way):
    told: list[object] = []
    threads = [
        threading.Thread(target=lambda n=n: told.append(said(f"print({n})"))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [(f"{n}\n", 0) for n in range(8)]


def test_nothing_is_kept_open(way):
    said("print(1)")
    before = len(os.listdir("/proc/self/fd"))
    for program in ("print(1)", "1 / 0", "import os; os._exit(0)"):
        said(program)
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [
        name for parent in cgroups.home() or () for name in parent.glob(f"limbeck-{os.getpid()}-*")
    ]


def test_a_machine_without_namespaces_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "refusal", lambda name: "Operation not permitted")
    with pytest.raises(UserError, match="install bubblewrap and allow user namespaces"):
        sandbox.backend.__wrapped__()
    finding = doctor.examine.__globals__["check"]
    monkeypatch.setattr(sandbox, "backend", sandbox.backend.__wrapped__)
    assert [found.ok for found in finding()] == [False]


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    assert sandbox.refusal("bubblewrap") == sandbox.refusal("namespaces") == "needs Linux"


def test_other_processors_are_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "riscv64" in (sandbox.refusal("bubblewrap") or "")


@needs_sandbox
def test_without_bubblewrap_the_kernel_is_asked(monkeypatch):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else which(name))
    assert sandbox.refusal("bubblewrap") == "bwrap is not installed"
    if REFUSALS["namespaces"] is None:
        assert sandbox.backend.__wrapped__() == "namespaces"


@needs_sandbox
def test_a_sandbox_that_does_not_come_up_is_trouble(monkeypatch):
    monkeypatch.setattr(sandbox, "backend", lambda: "bubblewrap")
    monkeypatch.setattr(bubblewrap, "command", lambda *words: ["/bin/false"])
    with pytest.raises(Trouble):
        said("print(1)")
    monkeypatch.setattr(bubblewrap, "command", lambda *words: ["/nowhere/bwrap"])
    with pytest.raises(Trouble, match="nowhere"):
        said("print(1)")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.binary())
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_values_come_through_as_they_are(value):
    found = wire.loads(wire.dumps(value))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", [object(), int, len, [object()], {1: range(3)}, bytearray(b"x")])
def test_nothing_else_passes(value):
    with pytest.raises(wire.NotPlain):
        wire.dumps(value)


def test_neither_do_subclasses_loops_or_depths():
    class Number(int):
        pass

    loop: list[object] = []
    loop.append(loop)
    deep: object = 0
    for _ in range(200):
        deep = [deep]
    for value in (Number(3), loop, deep):
        with pytest.raises(wire.NotPlain):
            wire.dumps(value)


@given(st.binary(max_size=60), st.sampled_from([1, 1.5, "a", [1, 2], {"a": [None]}, None]))
def test_no_bytes_surprise_the_comparison(data, expected):
    assert same_value(expected, data) in (True, False)
    with contextlib.suppress(ValueError, TypeError):
        wire.loads(data)


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        (True, 1, False),
        (1.0, 1, True),
        (1.0, 1.0000001, True),
        (1.0, 1.0001, False),
        (0.0, 1e-10, True),
        (1.0, True, False),
        (float("nan"), float("nan"), False),
        (float("inf"), float("inf"), True),
        (1.0, 10**400, False),
        ("a", "a", True),
        ("a", b"a", False),
        ([1, 2], [1, 2], True),
        ([1, 2], (1, 2), True),
        ([1, 2], {1, 2}, False),
        ([1, 2], [1, 2, 3], False),
        ([], None, False),
        ({"a": 1, "b": [2]}, {"b": (2,), "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"1": 1}, {1: 1}, False),
        (None, 0, False),
        (10**40, 10**40, True),
    ],
)
def test_the_type_of_what_is_expected_decides(expected, found, same):
    assert same_value(expected, wire.dumps(found)) is same


def test_a_key_counts_once():
    twice = b"m\0\0\0\2" + 2 * (wire.dumps("a") + wire.dumps(1))
    assert not same_value({"a": 1, "b": 1}, twice)


@pytest.mark.parametrize(
    ("expected", "written", "same"),
    [
        ("1\n2\n", b"1\n2", True),
        ("1\n2", b"1  \r\n2\n\n", True),
        ("1\n2", b"1\n", False),
        ("1\n2", b"1\n2\n3", False),
        ("1\n2", b" 1\n2", False),
        ("1\n2", b"\n1\n2", False),
        ("a b", b"a  b", False),
        ("Yes", b"yes", False),
        ("", b"", True),
        ("x", b"\xff", False),
    ],
)
def test_output_is_compared_whole(expected, written, same):
    assert same_output(expected, written) is same


def test_control_groups_of_version_2(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/user.slice/session\n")
    root = tmp_path / "cgroup"
    places = [found for (found,) in cgroups._candidates(own, root)]
    assert places == [root / "user.slice/session", root / "user.slice", root]
    root.mkdir()
    with pytest.raises(FileNotFoundError, match=r"cgroup\.procs"):  # the one file not written first
        cgroups._make((root,), 1 << 20, 7)
    (made,) = root.iterdir()
    written = {path.name: path.read_text() for path in made.iterdir()}
    limits = {"memory.max": str(1 << 20), "memory.swap.max": "0", "memory.oom.group": "1"}
    assert written == {**limits, "pids.max": "7"}


def test_control_groups_of_version_1_and_none(tmp_path):
    own = tmp_path / "own"
    own.write_text("8:pids:/\n4:memory:/docker/a\n0::/\n")
    first = cgroups._candidates(own, tmp_path)[0]
    assert first == (tmp_path / "memory/docker/a", tmp_path / "pids")
    assert cgroups._candidates(tmp_path / "none", tmp_path) == []


def test_groups_of_the_dead_are_swept(tmp_path):
    (tmp_path / "limbeck-99999999-0").mkdir()
    (tmp_path / f"limbeck-{os.getpid()}-0").mkdir()
    cgroups._sweep((tmp_path,))
    assert [path.name for path in tmp_path.iterdir()] == [f"limbeck-{os.getpid()}-0"]


def test_the_filter_is_written_for_two_machines():
    for machine in ("x86_64", "aarch64"):
        with_fork, without = (seccomp.program(may, machine) for may in (True, False))
        assert len(with_fork) % 8 == 0 and len(without) > len(with_fork) > 100 * 8
