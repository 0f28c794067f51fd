"""Runs a judged program, as a script or for its functions."""

from __future__ import annotations

import builtins
import os
import sys
from types import ModuleType

from limbeck.verifiers.sandbox import wire

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def run(channel: int, kind: bytes, source: str, stdin: str = "") -> None:
    """A script has its input and an output; what serves functions has only the channel."""
    if kind == wire.SCRIPT:
        os.close(channel)
        silence(2)
        _take_input(stdin)
        execute(source, "__main__")
    else:
        silence(0, 1, 2)
        serve(channel, source)


def _take_input(stdin: str) -> None:
    path = "/tmp/stdin"
    with open(path, "wb") as file:
        file.write(stdin.encode("utf-8", "surrogatepass"))
    descriptor = os.open(path, os.O_RDONLY)
    os.unlink(path)
    os.dup2(descriptor, 0)
    os.close(descriptor)


def execute(source: str, name: str) -> dict[str, Any]:
    """Runs a program as a module of that name; its globals."""
    for word in ("exit", "quit"):  # which is not imported, as it looks for packages
        setattr(builtins, word, sys.exit)
    module = ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    sys.argv = ["program.py"]
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def serve(channel: int, source: str) -> None:
    """Loads a program and answers calls of its functions until nobody asks.

    SystemExit and the like end the process, and with it every test that is still to come.
    """
    try:
        found = execute(source, "program")
    except Exception as error:
        return _raised(channel, error)
    wire.send(channel, wire.VALUE)
    while True:
        try:
            _, payload = wire.receive(channel)
        except EOFError:
            return
        name, args, kwargs = wire.loads(payload)
        try:
            value = function(found, name)(*args, **kwargs)
        except Exception as error:
            _raised(channel, error)
            continue
        answer(channel, value)


def function(found: dict[str, Any], name: str) -> Callable[..., Any]:
    """A program's function of that name, or that method of its class Solution."""
    if name not in found and hasattr(found.get("Solution"), name):
        return getattr(found["Solution"](), name)
    if name not in found:
        raise NameError(f"name {name!r} is not defined")
    return found[name]


def answer(channel: int, value: Any) -> None:
    """Sends a value, or that it is not plain."""
    try:
        data = wire.dumps(value)
    except Exception as error:
        return wire.send(channel, wire.NOT_PLAIN, str(error).encode()[:200])
    wire.send(channel, wire.VALUE, data)


def _raised(channel: int, error: Exception) -> None:
    try:
        told = type(error).__name__, str(error)[:1000]
        data = wire.dumps(told)
    except Exception:
        data = wire.dumps(("Exception", ""))
    wire.send(channel, wire.RAISED, data)


def silence(*descriptors: int) -> None:
    """Puts /dev/null in the place of descriptors."""
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor)
    os.close(nothing)
