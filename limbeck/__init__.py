"""Limbeck: from a strong reasoning teacher to a small, deployable student."""

import logging
from typing import Any

from limbeck.errors import UserError, UserErrors

__all__ = ["UserError", "UserErrors", "evaluate", "open", "plan", "run"]
__version__ = "0.1.0"


for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # tell of what no CPU can use
    logging.getLogger(name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    """The Python interface, loaded when it is asked for, so that `--help` stays quick."""
    if name in ("evaluate", "open", "plan", "run"):
        from limbeck import api

        return getattr(api, name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
