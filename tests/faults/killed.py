"""`limbeck run` that is killed on its way, in a process that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

PRELOAD = [
    "limbeck.api",
    "limbeck.student.writer",
    "limbeck.reporting",
    "limbeck.engines.local_engine",
    "limbeck.train.teaching",
    "limbeck.train.training",
    "peft",
    "transformers.models.llama.modeling_llama",
]


def run(path: Path, folder: Path, kill_at: str = "") -> int:
    """Its exit code; minus 9 where it died at the fail point `kill_at`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    arguments = ["limbeck", "run", str(path), "--run", str(folder), "--quiet"]
    process = context.Process(target=_child, args=(arguments, kill_at))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _child(arguments: list[str], kill_at: str) -> None:
    from limbeck import cli, ledger

    os.environ |= {"LIMBECK_KILL_AT": kill_at, "TOKENIZERS_PARALLELISM": "false"}
    ledger.gemm_gflops = lambda *_: None  # type: ignore  # half a second, of interest to people
    sys.argv = arguments
    cli.main()
