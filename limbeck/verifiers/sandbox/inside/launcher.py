"""Namespaces without bubblewrap: the same sandbox, made with the kernel's own calls.

The order is bubblewrap's: a user namespace that may do all the rest, a new root on a tmpfs, what
is shown bound into it, the old root let go of, every capability and every way to new ones dropped.
"""

from __future__ import annotations

import ctypes
import os
import sys

from limbeck.verifiers.sandbox import wire
from limbeck.verifiers.sandbox.inside import start

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, NoReturn

# clone(2): mounts, control groups, host name, IPC, users, processes, network
NEW = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
READ_ONLY, NO_SETUID, NO_DEVICES, NO_EXEC, REMOUNT, BIND, RECURSIVE = 1, 2, 4, 8, 32, 4096, 16384
PRIVATE = 1 << 18
WORDS = {
    "ro": READ_ONLY,
    "nosuid": NO_SETUID,
    "nodev": NO_DEVICES,
    "noexec": NO_EXEC,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
DETACH, KILL = 2, 9
PARENT_DEATH_SIGNAL, DROP_BOUND, SET_SECCOMP, NO_NEW_PRIVILEGES = 1, 24, 22, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITIES_VERSION_3 = 0x20080522
MAX_CAPABILITIES = 64
_libc = ctypes.CDLL(None, use_errno=True)


def enter(channel: int) -> None:
    """Returns in the sandbox, as process 2 of it; the processes before it wait for its end.

    Raises OSError where the platform refuses.
    """
    _, payload = wire.receive(channel)
    asked = wire.loads(payload)
    _die_with_parent()
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", ctypes.c_int(sum(NEW)))
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{uid} {uid} 1")
    _write("/proc/self/gid_map", f"{gid} {gid} 1")
    _fork(channel)
    _die_with_parent()
    os.setsid()
    _new_root(asked)
    _drop_capabilities()
    _fork(channel)
    _filter(asked["seccomp"])


def _fork(channel: int) -> None:
    """Returns in the child; the parent lets go of everything, and ends as the child does."""
    child = os.fork()
    if not child:
        return
    for descriptor in (0, 1, channel):
        os.close(descriptor)
    _wait(child)


def _wait(child: int) -> NoReturn:
    """The first process of a namespace also takes in what others leave behind."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _die_with_parent() -> None:
    _call("prctl", PARENT_DEATH_SIGNAL, ctypes.c_ulong(KILL))


def _new_root(asked: dict[str, Any]) -> None:
    """A tmpfs with what is asked for, read-only but for its /tmp."""
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", NO_SETUID | NO_DEVICES, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    _system_call(PIVOT_ROOT, b"/tmp", b"/tmp/old")
    os.chdir("/")
    for path, target in asked["visible"]:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if target:
            os.symlink(target, path)
        else:
            _show(path)
    os.mkdir("/dev")
    for path in asked["devices"]:
        _show(path)
    os.symlink("/tmp", "/dev/shm")
    os.mkdir("/tmp")
    with open("/old/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [line.split() for line in file]
    _call("umount2", b"/old", DETACH)
    os.rmdir("/old")
    for fields in mounts:
        _protect(fields[4].replace("\\040", " "), fields[5], asked["devices"])
    options = f"size={asked['file_bytes']},nr_inodes=16384,mode=1777"
    _mount("tmpfs", "/tmp", "tmpfs", NO_SETUID | NO_DEVICES, options)
    _call("sethostname", b"sandbox", ctypes.c_size_t(7))
    os.chdir("/tmp")


def _show(path: str) -> None:
    """Binds a file or folder of the old root to its place in the new one."""
    if os.path.isdir("/old" + path):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT))
    _mount("/old" + path, path, None, BIND | RECURSIVE)


def _protect(path: str, options: str, devices: list[str]) -> None:
    """Makes one mount read-only; flags that it has are locked, and stay."""
    if path == "/old" or path.startswith("/old/"):
        return
    flags = sum(flag for word, flag in WORDS.items() if word in options.split(","))
    flags |= READ_ONLY | NO_SETUID | (0 if path in devices else NO_DEVICES)
    _mount(None, path, None, BIND | REMOUNT | flags)


def _drop_capabilities() -> None:
    """None is left, and no program that is started can have one."""
    for number in range(MAX_CAPABILITIES):
        _libc.prctl(DROP_BOUND, ctypes.c_ulong(number), 0, 0, 0)  # fails behind the last there is
    header = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION_3, 0)
    _system_call(CAPSET, header, (ctypes.c_uint32 * 6)())
    _call("prctl", NO_NEW_PRIVILEGES, ctypes.c_ulong(1), 0, 0, 0)


def _filter(program: bytes) -> None:
    """Installs a filter for system calls: struct sock_fprog, 8 bytes a line."""
    lines = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_void_p)]

    written = Program(len(program) // 8, ctypes.addressof(lines))
    _call("prctl", SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(written), 0, 0)


def _mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str = ""
) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    _call("mount", *words, ctypes.c_ulong(flags), options.encode() or None)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _system_call(numbers: dict[str, int], *args: Any) -> None:
    """A call that the C library has no name for."""
    machine = os.uname().machine
    if machine not in numbers:
        raise OSError(f"no sandbox of our own for {machine}")
    _call("syscall", ctypes.c_long(numbers[machine]), *args)


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main(channel: int) -> None:
    """Enters the sandbox; without one nothing goes on."""
    try:
        enter(channel)
    except OSError as error:
        sys.stderr.write(str(error))
        sys.stderr.flush()
        os._exit(1)
    start.main(channel)
