"""Whether this machine can do what recipes ask of it: everything is tried, nothing believed."""

from __future__ import annotations

from limbeck.verifiers.sandbox.checks import Finding, check

__all__ = ["Finding", "examine"]


def examine() -> list[Finding]:
    """What was found, the sandbox for judged programs first; see `Finding`."""
    return check()
