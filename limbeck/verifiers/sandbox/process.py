"""One Python process in a sandbox, and the channel to it."""

from __future__ import annotations

import functools
import marshal
import os
import select
import selectors
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict
from importlib.resources import files
from struct import unpack
from types import TracebackType
from typing import Any

from limbeck.verifiers.sandbox import bubblewrap, cgroups, interpreter, seccomp, wire
from limbeck.verifiers.sandbox.limits import Limits

START_S = 30.0  # until a sandbox stands, on a machine that has much else to do
PACKAGE = "limbeck.verifiers.sandbox"
BOOTSTRAP = """
import marshal, os, sys
channel, size, parts = int(sys.argv[1]), int(sys.argv[2]), b""
while len(parts) < size:
    parts += os.read(channel, size - len(parts))
for name, code in marshal.loads(parts):
    folder, _, last = name.rpartition(".")
    module = sys.modules[name] = type(sys)(name)
    setattr(sys.modules.setdefault(folder, type(sys)(folder)), last, module)
    exec(code, module.__dict__)
module.main(channel)
"""
PARTS = ("wire", "inside.program", "inside.tester", "inside.start")


class Trouble(Exception):
    """A sandbox could not be made; nothing of a stranger's has run."""


class Ended(Exception):
    """The process is gone, or says what is no frame."""


class Late(Exception):
    """It did not answer in time."""


class Process:
    """A process in new namespaces, limited; everything in them dies with `close`.

    `backend` is "bubblewrap" or "namespaces". With `piped` its standard output can be read.
    """

    def __init__(self, limits: Limits, backend: str, piped: bool = False):
        self.limits = limits
        try:
            room = limits.memory_bytes + limits.file_bytes
            self.cgroup = cgroups.grant(room, limits.num_processes)
        except OSError as error:
            raise Trouble(str(error)) from error
        self.channel, theirs = socket.socketpair()
        try:
            self.process = self._start(theirs.fileno(), backend, piped)
        except OSError as error:
            self.channel.close()
            if self.cgroup:
                self.cgroup.end()
            raise Trouble(str(error)) from error
        finally:
            theirs.close()
        self._prepare(backend)

    def _start(self, theirs: int, backend: str, piped: bool) -> subprocess.Popen[bytes]:
        code = _code(backend == "namespaces")
        command = [interpreter.executable(), *interpreter.FLAGS, "-c", BOOTSTRAP]
        command += [str(theirs), str(len(code))]
        passed = [theirs, *(self.cgroup.doors if self.cgroup else ())]
        with tempfile.TemporaryFile() as file:  # a pipe's end would have to be closed in between
            if backend == "bubblewrap":
                file.write(self._filter())
                file.seek(0)
                command = bubblewrap.command(command, self.limits, file.fileno())
                passed.append(file.fileno())
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=passed,
                cwd="/",
                env=interpreter.ENVIRONMENT,
                start_new_session=True,
            )

    def _filter(self) -> bytes:
        return seccomp.program(may_fork=self.cgroup is not None)

    def _prepare(self, backend: str) -> None:
        """Sends what is to run inside, and waits until the sandbox stands."""
        deadline = time.monotonic() + START_S
        try:
            self._write(_code(backend == "namespaces"), deadline)
            if backend == "namespaces":
                asked = {
                    "visible": [list(pair) for pair in interpreter.visible()],
                    "devices": list(interpreter.DEVICES),
                    "file_bytes": self.limits.file_bytes,
                    "seccomp": self._filter(),
                }
                self.send(wire.READY, wire.dumps(asked), deadline)
            doors = list(self.cgroup.doors) if self.cgroup else []
            self.send(wire.READY, wire.dumps((asdict(self.limits), doors)), deadline)
            self.receive(deadline)
        except (Ended, Late) as error:
            assert self.process.stderr
            self.process.kill()
            told = self.process.stderr.read(2000).decode(errors="replace").strip()
            self.close()
            raise Trouble(told.rpartition("\n")[2][:200] or type(error).__name__) from None
        except BaseException:
            self.close()
            raise

    def ask(self, kind: bytes, deadline: float, **asked: Any) -> None:
        """The first request: what the process is for."""
        self.send(kind, wire.dumps(asked), deadline)

    def send(self, kind: bytes, payload: bytes, deadline: float) -> None:
        """Raises Late or Ended."""
        self._write(wire.frame(kind, payload), deadline)

    def _write(self, data: bytes, deadline: float) -> None:
        try:
            self.channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            self.channel.sendall(data)
        except TimeoutError:
            raise Late from None
        except OSError:
            raise Ended from None

    def receive(self, deadline: float) -> tuple[bytes, bytes]:
        """The next frame, as it came; raises Late or Ended."""
        head = self._read(5, deadline)
        (length,) = unpack(">I", head[1:])
        if length > wire.MAX_BYTES:
            raise Ended
        return head[:1], self._read(length, deadline)

    def _read(self, count: int, deadline: float) -> bytes:
        read = bytearray()
        while len(read) < count:
            try:
                self.channel.settimeout(max(deadline - time.monotonic(), 1e-3))
                part = self.channel.recv(min(count - len(read), 1 << 20))
            except TimeoutError:
                raise Late from None
            except OSError:
                raise Ended from None
            if not part:
                raise Ended
            read += part
        return bytes(read)

    def output(self, deadline: float) -> tuple[bytes, int]:
        """(all that it wrote, its exit status); Ended where it wrote too much, Late too long."""
        assert self.process.stdout
        written, pipe = bytearray(), self.process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise Late
                part = os.read(pipe, 1 << 16)
                if not part:
                    break
                written += part
                if len(written) > self.limits.output_bytes:
                    raise Ended
        return bytes(written), self._status(deadline)

    def _status(self, deadline: float) -> int:
        """The exit status, once there is one; Popen's own waiting naps for up to 50 ms."""
        descriptor = os.pidfd_open(self.process.pid)
        try:
            left_ms = 1000 * (deadline - time.monotonic())
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(left_ms, 0)):
                raise Late
        finally:
            os.close(descriptor)
        return self.process.wait()

    def close(self) -> None:
        """Kills every process of the sandbox, and waits until they are gone."""
        self.channel.close()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        if self.cgroup:
            self.cgroup.end()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@functools.cache
def _code(own: bool) -> bytes:
    """What runs inside, compiled here once; sent, so that no folder of ours is shown there.

    The main function of the last module is what begins.
    """
    compiled = []
    for name in (*PARTS, "inside.launcher") if own else PARTS:
        path = files(PACKAGE).joinpath(f"{name.replace('.', '/')}.py")
        source = path.read_text(encoding="utf-8")
        code = compile(source, f"{name}.py", "exec", dont_inherit=True, optimize=2)
        compiled.append((f"{PACKAGE}.{name}", code))
    return marshal.dumps(compiled)
