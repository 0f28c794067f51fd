"""`limbeck run` in a process of its own that starts at once and whose files may be kept small."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from typing import Any

from tests.faults.small import ASKED

ROWS_PER_PART = 16  # several parts, and what was finished must stay as it is
PRELOAD = [
    "limbeck.api",
    "limbeck.models",
    "limbeck.reporting",
    "limbeck.engines.local_engine",
    "limbeck.stages.sft",
    "limbeck.train.checkpoint",
    "transformers.models.llama.modeling_llama",
    "pyarrow.dataset",
    "reasoning_gym.arithmetic.leg_counting",
    "tests.faults.small",
]


def limbeck_run(
    recipe: dict[str, Any], folder: Path, scratch: Path, max_bytes: int | None = None
) -> tuple[int, str]:
    """(exit code, all that was printed to stderr) of `limbeck run`, in a process of its own.

    Forked from one that has imported everything, which spares seconds. No file may grow beyond
    `max_bytes`.
    """
    path = scratch / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    arguments = ["limbeck", "run", str(path), "--run", str(folder), "--quiet"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(arguments, theirs, max_bytes, str(scratch)))
    process.start()
    theirs.close()
    said = b""
    while chunk := os.read(ours.fileno(), 65536):
        said += chunk
    process.join()
    ours.close()
    return process.exitcode or 0, said.decode()


def _child(arguments: list[str], stderr: Any, max_bytes: int | None, scratch: str) -> None:
    from limbeck import cli, ledger
    from limbeck.engines import sampling
    from limbeck.stages import verify

    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = open(stderr.fileno(), "w", closefd=False)  # noqa: SIM115
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", ASKED: f"{scratch}/asked"}
    ledger.gemm_gflops = lambda *_: None  # type: ignore  # half a second, of interest to people
    sampling.write_missing.__defaults__ = (ROWS_PER_PART,)
    verify.ROWS_PER_PART = ROWS_PER_PART
    sys.argv = arguments
    if max_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
    cli.main()
