"""Time and memory of Wanda, SparseGPT and GPTQ against llm-compressor's, for bench/compress.py.

A llama of 13M parameters that has learned traces for 200 steps is made smaller by both sides, each
in its own process, on one thread, in float32, by the same 64 rows of 128 tokens, in batches of 32,
with which llm-compressor is quickest. Ratios are those of CPU time; loading and imports are left
out. Memory is what a process of its own holds at most beyond the model; its allocator gives back
at once what is no longer held, which it keeps else, now on one side, now on the other.

The gate: on held-out rows the nats per token of ours are not more than llm-compressor's, as far as
a paired 95 % interval can tell, or by no more than 1 % of what llm-compressor's way loses.

    python bench/compress_time.py FOLDER    # our side's process
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import measure
import torch
from llmcompressor_peer import NUM_BATCH, serve
from safetensors.torch import load_file
from transformers import PreTrainedModel

from limbeck import metrics, models, newborn
from limbeck.compress import anatomy
from limbeck.compress.prune import sparsegpt, wanda
from limbeck.compress.quantize import gptq
from limbeck.compress.quantize.grid import Grid
from limbeck.compress.walk import walk
from limbeck.train.batch import Example, collate
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy
from limbeck.train.step import cosine_lr, make_optimizer, train_step

Rows = list[list[int]]
Settings = dict[str, Any]

PEER = Path(__file__).with_name("llmcompressor_peer.py")
SIZES = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1408,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,
    "initializer_range": 0.03,
}
LENGTH, NUM_ROWS = 128, 64  # of the texts that calibrate; as many rows are held out
NUM_STEPS, STEP_ROWS, LR = 200, 8, 1e-3
METHODS = ("wanda", "sparsegpt", "gptq")
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
MORE = 0.01  # of what the peer's way loses, that ours may lose more


def cases(
    peer: str | None, learned: Iterable[list[int]], student: Path, work: Path, repeats: int
) -> tuple[list[Settings], Settings]:
    """(the cases, what else is to be told); `peer` is the Python that has llm-compressor."""
    version = peer_version(peer)
    if not peer or not version:
        left = [measure.case(f"{method}_time", 0.0, "no peer", 1.0) for method in METHODS]
        return [{**case, "met": None} for case in left], {"llm_compressor": None}
    folder = work / "time"
    if not (folder / "model").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(learned, student, folder)
    commands = {
        "limbeck": [sys.executable, __file__],
        "llm-compressor": [peer, str(PEER)],
    }
    before = measure.gemm_gflops(torch.float32)
    found = speed(folder, commands, repeats)
    gflops = (before + measure.gemm_gflops(torch.float32)) / 2
    return found, {"llm_compressor": version, "gemm_gflops": round(gflops, 1)}


def peer_version(python: str | None) -> str | None:
    """That of llm-compressor in another Python's environment; None where there is none."""
    if not python:
        told = "--peer was not given"
    else:
        done = subprocess.run([python, str(PEER), "version"], capture_output=True, text=True)
        if not done.returncode:
            return done.stdout.strip()
        told = f"{python} cannot import it"
    way_out = "pip install llmcompressor in an environment of its own, and give --peer its python"
    print(f"no llm-compressor: {told}; its cases are left open. {way_out}")
    return None


def write_model(learned: Iterable[list[int]], student: Path, folder: Path) -> None:
    """A llama that has learned texts of the student's tokens, and what to make it smaller by."""
    ids = list(chain.from_iterable(learned))
    rows = [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH, LENGTH)]
    held, calibrating, rows = rows[:NUM_ROWS], rows[-NUM_ROWS:], rows[NUM_ROWS:]
    tokenizer = models.load_tokenizer(student)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    llama = newborn.create_model("llama", len(tokenizer), 0, **ends, **SIZES)
    model = TokenModel(llama)
    optimizer = make_optimizer(model, LR)
    for step in range(NUM_STEPS):
        some = [rows[(step * STEP_ROWS + i) % len(rows)] for i in range(STEP_ROWS)]
        batch = collate([Example(row, [1] * len(row)) for row in some])
        lr = cosine_lr(step, NUM_STEPS, LR, warmup_steps=5)
        knobs: Settings = {"lr": lr, "clip": 1.0, "autocast": torch.bfloat16}
        train_step(model, [batch], optimizer, token_loss=cross_entropy, **knobs)
    (folder / "rows.json").write_text(json.dumps(calibrating))
    (folder / "held.json").write_text(json.dumps(held))
    models.save_model(llama, tokenizer, folder / "model")


def ours(method: str, model: PreTrainedModel, rows: Rows) -> None:
    """As the stages do it, in batches as the peer's: at 50 %, or in 4 bits by groups of 128."""
    size = NUM_BATCH * len(rows[0])
    for block in walk(model, rows, device="cpu", gram=method != "wanda", max_batch_tokens=size):
        for name, matrix in block.matrices.items():
            weight, stats = anatomy.weight_of(matrix), block.stats[name]
            if method == "gptq":
                codes = gptq.quantize_weight(weight, stats, Grid("int4", 128))
                anatomy.set_weight(matrix, codes.dense())
            else:
                prune = {"wanda": wanda, "sparsegpt": sparsegpt}[method].prune_weight
                anatomy.set_weight(matrix, prune(weight, stats, 0.5, None))


class Side:
    """One side's process, which has loaded everything and waits to be told what to do."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]):
        self.log = (folder / "log.txt").open("a")
        self.process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=dict(environment),
        )

    def ask(self, method: str, **more: Any) -> dict[str, float]:
        """What making the model smaller took: wall and CPU seconds, and MB beyond the model."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"method": method, **more}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"a side has ended; see {self.log.name}"
        took: dict[str, float] = json.loads(line)
        return took

    def rate(self, method: str) -> measure.Rate:
        """How often it could be done in a CPU-second; noisy runs are tried again."""
        for _ in range(measure.TRIES):
            took = self.ask(method)
            if took["wall"] / took["cpu"] <= measure.NOISY:
                return measure.Rate(1 / took["cpu"], False)
        return measure.Rate(1 / took["cpu"], True)

    def end(self) -> None:
        self.process.communicate()


def peak_mb(side: Side, method: str, to: Path) -> float:
    """What a fresh process held at most, once it has loaded what a single row needs."""
    side.ask(method, num_rows=1)
    peak = side.ask(method, to=str(to))["peak_mb"]
    side.end()
    return peak


def speed(folder: Path, commands: Mapping[str, Sequence[str]], repeats: int) -> list[Settings]:
    """The cases: what each method leaves and holds at most, and how long it takes."""
    frugal = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | GIVEN_BACK
    sides = {who: Side(command, folder, os.environ) for who, command in commands.items()}
    whole = held_losses(folder)
    cases = []
    for method in METHODS:
        losses, peaks = {}, {}
        for who, command in commands.items():
            to = folder / f"{who}_{method}.safetensors"
            peaks[f"{who}_mb"] = round(peak_mb(Side(command, folder, frugal), method, to), 1)
            losses[who] = held_losses(folder, to)
        gate = good(whole, losses["limbeck"], losses["llm-compressor"])
        print(f"\n{method}: {gate}, {peaks}", flush=True)
        cases.append(time_case(method, interleaved(sides, method, repeats), {**gate, **peaks}))
    for side in sides.values():
        side.end()
    return cases


def interleaved(
    sides: Mapping[str, Side], method: str, repeats: int
) -> dict[str, list[measure.Rate]]:
    """The rates of each, one after the other, `repeats` times; the first round warms up."""
    rates: dict[str, list[measure.Rate]] = {who: [] for who in sides}
    for turn in range(repeats + 1):
        for who, side in sides.items():
            found = side.rate(method) if turn else measure.Rate(1 / side.ask(method)["cpu"], False)
            rates[who] += [found] if turn else []
            noise = ", noisy" if found.noisy else ""
            print(
                f"  {turn or 'warm-up':>8}  {who:<24}{1 / found.per_second:8.2f} s{noise}",
                flush=True,
            )
    return rates


def time_case(
    method: str, rates: Mapping[str, list[measure.Rate]], more: Mapping[str, Any]
) -> Settings:
    """How many times the peer's CPU time is ours; not met where ours is worse by what it leaves."""
    us, them = rates["limbeck"], rates["llm-compressor"]
    median, low, high = measure.ratio(us, them)
    seconds = {
        f"{who}_s": [round(1 / rate.per_second, 3) for rate in of] for who, of in rates.items()
    }
    noisy = sum(rate.noisy for rate in (*us, *them))
    told = {"low": round(low, 3), "high": round(high, 3), "noisy": noisy, **seconds, **more}
    line = measure.case(f"{method}_time", median, "x llm-compressor", 1.0, **told)
    return {**line, "met": line["met"] and more["as_good"]}


def held_losses(folder: Path, weights: Path | None = None) -> list[float]:
    """Nats per token of each held-out row, with the weights in a file, or those it has learned."""
    model = models.load_model(folder / "model", "float32")
    if weights:
        model.load_state_dict(load_file(weights))
    losses = []
    for row in json.loads((folder / "held.json").read_text()):
        ids = torch.tensor([row])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids, use_cache=False).loss))
    return losses


def good(whole: Sequence[float], us: Sequence[float], them: Sequence[float]) -> Settings:
    """The gate: whether ours is as good as theirs, by the nats of the whole model and of both."""
    test = metrics.paired_test(us, them, most=math.inf)
    before, ours, theirs = map(statistics.fmean, (whole, us, them))
    return {
        "whole_nats": round(before, 4),
        "limbeck_nats": round(ours, 4),
        "llm-compressor_nats": round(theirs, 4),
        "difference": [round(value, 5) for value in (test.low, test.difference, test.high)],
        "as_good": test.low <= 0 or test.difference <= MORE * (theirs - before),
    }


if __name__ == "__main__":
    serve(Path(sys.argv[1]), ours)
