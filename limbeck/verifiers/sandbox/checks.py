"""Tries whether this machine's sandbox holds: programs that do what none may do."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from limbeck.errors import UserError
from limbeck.verifiers import sandbox
from limbeck.verifiers.sandbox import cgroups, interpreter
from limbeck.verifiers.sandbox.limits import Limits
from limbeck.verifiers.sandbox.process import Ended, Late, Trouble

LIMITS = Limits(cpu_s=5, memory_bytes=256 << 20, num_processes=16, file_bytes=16 << 20)
TIME_S = 5.0
KILLED_S = 1.0  # how much longer than its limit a program may live
WAY_OUT = "judge no programs here: use another machine, and report it"

# Each prints `held` where it was stopped, else what it could do.
CONNECT = """
import socket
def reach(family, address):
    with socket.socket(family) as peer:
        peer.settimeout(0.5)
        peer.connect(address)
    print("reached", address)
for target in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_INET, ("1.1.1.1", 53)),
               (socket.AF_UNIX, {unix!r}), (socket.AF_UNIX, "\\0" + {unix!r})):
    try:
        reach(*target)
    except OSError:
        pass
print("held")
"""
READ = """
import os
for path in {paths!r}:
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path).read()
        if found:
            print("read", path, found)
    except OSError:
        pass
print("held")
"""
WRITE = """
for path in {paths!r}:
    try:
        open(path, "w").write("x")
    except OSError:
        pass
"""
FORK = """
import os, time
children = 0
try:
    while children < 100:
        if os.fork() == 0:
            time.sleep(9)
            os._exit(0)
        children += 1
except OSError:
    print("held")
else:
    print("started", children)
"""
ALLOCATE = """
import os, time
try:
    kept = bytearray(1 << 30)
    print("got 1 GiB")
except MemoryError:
    print("held", flush=True)
children = 0
try:
    while children < 4:
        if os.fork() == 0:
            kept = bytearray(b"x") * (200 << 20)
            time.sleep(1)
            os._exit(0)
        children += 1
except OSError:
    pass
together = sum(os.wait()[1] == 0 for _ in range(children))
if together > 1:
    print(together, "children hold 200 MiB each")
"""
FILL = """
try:
    for number in range(100):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(bytes(1 << 20))
    print("wrote 100 MiB")
except OSError:
    print("held")
"""
LINGER = """
import ctypes, os, time
ctypes.CDLL(None).prctl(15, b"{name}")
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
except OSError:
    pass
"""


@dataclass(frozen=True)
class Finding:
    """Something that was looked at: whether it is as it should be, and what to do if not.

    `ok` is None for what is no mistake by itself, or cannot be known here.
    """

    name: str
    ok: bool | None
    told: str
    way_out: str


def check() -> list[Finding]:
    """Which sandbox there is, and whether it holds; takes about 3 s."""
    try:
        backend = sandbox.backend()
    except UserError as error:
        return [Finding("sandbox", False, error.what, error.way_out)]
    grouped = cgroups.home() is not None
    told = "granted" if grouped else "not granted: a judged program may start threads, no process"
    findings = [
        Finding("sandbox", True, backend, ""),
        Finding("control group", True, told, ""),
    ]
    for name, (tried, holds) in TRIALS.items():
        try:
            broken = tried()
        except (Trouble, Late, Ended) as error:
            broken = f"could not be tried: {type(error).__name__} {error}"
        findings.append(Finding(name, not broken, broken or holds, WAY_OUT if broken else ""))
    return findings


def _broken(program: str) -> str:
    """What a program could do; nothing where it was stopped."""
    written, _ = sandbox.run(program, "", TIME_S, LIMITS)
    told = written.decode(errors="replace").strip()
    return "" if told == "held" else told or "it printed nothing"


def _network() -> str:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        unix = f"{folder}/socket"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as abstract:
            listener.bind(unix)
            listener.listen()
            abstract.bind("\0" + unix)
            abstract.listen()
            return _broken(CONNECT.format(port=server.getsockname()[1], unix=unix))


def _home() -> str:
    """Of home and the working folder nothing is there but what leads to the interpreter."""
    with tempfile.NamedTemporaryFile("w", suffix=".canary") as canary:
        canary.write("seen")
        canary.flush()
        shown = [path for path, _ in interpreter.visible()]
        folders = [os.path.join(folder, "") for folder in (Path.home(), os.getcwd())]
        hidden = [folder for folder in folders if not any(p.startswith(folder) for p in shown)]
        return _broken(READ.format(paths=[canary.name, *hidden, "/proc/self/environ"]))


def _outside() -> str:
    """What it writes to a path of ours may only be in its own /tmp."""
    with tempfile.NamedTemporaryFile("r") as canary:
        places = ("/", "/usr/lib", "/dev", os.getcwd(), str(Path.home()))
        paths = [os.path.join(place, f"limbeck-{os.getpid()}") for place in places]
        sandbox.run(WRITE.format(paths=[canary.name, *paths]), "", TIME_S, LIMITS)
        written = [path for path in paths if os.path.exists(path)]
        return f"wrote {', '.join(written)}" if written else canary.read()


def _on_time() -> str:
    began, limit_s = time.monotonic(), 0.5
    try:
        sandbox.run("while True: pass", "", limit_s, LIMITS)
    except Late:
        took_s = time.monotonic() - began
        return "" if took_s < limit_s + KILLED_S else f"it took {took_s:.1f} s"
    return "it ended by itself"


def _survivors() -> str:
    name = f"lb{os.getpid()}"
    sandbox.run(LINGER.format(name=name), "", TIME_S, LIMITS)
    time.sleep(KILLED_S)
    left = [pid for pid, comm in _processes() if comm == name]
    return f"processes {', '.join(left)} are left" if left else ""


def _processes() -> Iterator[tuple[str, str]]:
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                yield folder.name, (folder / "comm").read_text().strip()
        except OSError:
            continue


TRIALS: dict[str, tuple[Callable[[], str], str]] = {  # and what is said where it holds
    "network": (_network, "a judged program reaches nobody, on this machine or beyond"),
    "home and files": (_home, "it sees nothing of yours"),
    "writing outside": (_outside, "what it writes is gone with it"),
    "fork bomb": (lambda: _broken(FORK), "stopped at its limit of processes"),
    "memory": (lambda: _broken(ALLOCATE), "stopped at its limit, its children included"),
    "disk": (lambda: _broken(FILL), "stopped at its limit"),
    "killed on time": (_on_time, "what runs for too long is killed"),
    "survivors": (_survivors, "what it leaves behind is killed with it"),
}
