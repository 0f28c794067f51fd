"""llm-compressor's side of bench/compress.py, which its own Python runs; knows nothing of Limbeck.

`serve` is what the processes of both sides do: they load what there is to load, and then make the
same model smaller as often as a line of their standard input tells them to.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel

Rows = list[list[int]]
NUM_BATCH = 32  # rows of a batch: of 1, 8 and 32 the quickest


def serve(folder: Path, compress: Callable[[str, PreTrainedModel, Rows], object]) -> None:
    """Answers each line {method, num_rows, to} with what `compress` took, in one line; forever.

    Takes all rows if no number is given. What the model has become goes to the file `to`, if any.
    """
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    rows = json.loads((folder / "rows.json").read_text())
    for line in sys.stdin:
        asked = json.loads(line)
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        names = [name for name, _ in model.named_parameters()]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before, wall, cpu = resident_mb("VmRSS"), time.perf_counter(), time.process_time()
        compress(asked["method"], model, rows[: asked.get("num_rows")])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        took = {"wall": wall, "cpu": cpu, "peak_mb": resident_mb("VmHWM") - before}
        if "to" in asked:
            found = {name: model.get_parameter(name).detach().contiguous() for name in names}
            save_file(found, asked["to"])
        answers.write(json.dumps(took) + "\n")


def resident_mb(what: str) -> float:
    """MB that this process holds (VmRSS), or held at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def modifier(method: str) -> Any:
    """What oneshot is to do, as it comes, at 50 % or in 4 bits by groups of 128."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    told: dict[str, Any] = {"targets": ["Linear"], "ignore": ["re:.*lm_head"]}
    if method == "gptq":
        return GPTQModifier(scheme="W4A16", **told)
    kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method]
    return kind(sparsity=0.5, mask_structure="0:0", **told)


def theirs(method: str, model: PreTrainedModel, rows: Rows) -> None:
    from llmcompressor import oneshot

    batches = [torch.tensor(rows[i : i + NUM_BATCH]) for i in range(0, len(rows), NUM_BATCH)]
    inputs = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches]
    oneshot(
        model=model,
        dataset=DataLoader(inputs, batch_size=None),
        recipe=modifier(method),
        max_seq_length=len(rows[0]),
        num_calibration_samples=len(rows),
    )


if __name__ == "__main__":
    if sys.argv[1] == "version":
        print(importlib.metadata.version("llmcompressor"))
    else:
        serve(Path(sys.argv[1]), theirs)
