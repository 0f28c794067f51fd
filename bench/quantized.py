"""Few bits on a CPU: what a layer and a whole engine gain in speed, and how far a student drifts.

- `layer_*`: one linear layer, of 1, 8 and 32 rows: how many times as fast as bfloat16 are float32,
  torch's quantize_dynamic, `_int_mm`, the compiled int8 product and torch's packed int4.
- `engine_*`: a random Qwen3 of 8 layers and width 512, in int8 with int8 activations, against
  bfloat16, by stage `profile`: one answer at a time, and 32 at once.
- `drift`: KL in nats a token between the quickstart's student and itself in few bits, on 200 of the
  texts that it learned from, calibrated on 128 others.

    python bench/quantized.py --run runs/quickstart
    python bench/quantized.py --run runs/quickstart --quick    # two rounds, 20 texts
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure

measure.one_thread()

import torch  # noqa: E402  (behind the environment that it reads when it is imported)
from torch.nn import functional  # noqa: E402

import limbeck  # noqa: E402
from limbeck import models, newborn, tables  # noqa: E402
from limbeck.chat import encode_examples  # noqa: E402
from limbeck.compress import anatomy  # noqa: E402
from limbeck.compress.quantize import awq, gptq  # noqa: E402
from limbeck.compress.quantize import round as rounding  # noqa: E402
from limbeck.compress.quantize.grid import Grid  # noqa: E402
from limbeck.compress.walk import walk  # noqa: E402
from limbeck.engines.decoder import kernel, linear  # noqa: E402
from limbeck.types import Message  # noqa: E402

Case = dict[str, Any]

WIDTHS = ((128, 512), (512, 2048), (1024, 4096))
ROWS = (1, 8, 32)
SECONDS = 0.05  # of one measurement of a layer
QWEN3 = {
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}
METHODS = {"round": rounding, "awq": awq, "gptq": gptq}
GRIDS = {
    "int4, groups of 32": Grid("int4", 32),
    "int4, groups of 64": Grid("int4", 64),
    "int4, groups of 32, asymmetric": Grid("int4", 32, symmetric=False),
    "int8, a scale a row": Grid("int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run of recipes/quickstart.yaml")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")  # that quantize_dynamic is marked for removal
    rounds, num_texts = (2, 20) if chosen.quick else (11, 200)
    cases = [case for width in WIDTHS for rows in ROWS for case in layer(*width, rows, rounds)]
    cases += engine(chosen.run)
    drifts = drift(chosen.run, num_texts)
    gflops = round(measure.gemm_gflops(torch.float32), 1)
    to = None if chosen.quick else Path(__file__).parent / "results" / "quantized.json"
    about = {"drift": drifts, "gemm_gflops": gflops, "threads": 1}
    measure.finish("quantized", cases, ("torch", "transformers", "limbeck"), to, **about)


def layer(inputs: int, outputs: int, rows: int, rounds: int) -> list[Case]:
    """A case for each way to multiply, of `rows` rows."""
    ways = layers(inputs, outputs, torch.randn(rows, inputs))
    print(f"\n{inputs} to {outputs}, {rows} rows, products a CPU-second")
    with torch.inference_mode():
        contestants = {name: partial(repeated, work) for name, work in ways.items()}
        rates = measure.interleaved(contestants, rounds)
    found = []
    for name in [name for name in ways if name != "bfloat16"]:
        median, low, high = measure.ratio(rates[name], rates["bfloat16"])
        about = {"way": name, "in": inputs, "out": outputs, "rows": rows}
        ends = {"low": round(low, 2), "high": round(high, 2)}
        case = f"layer_{inputs}_{rows}_{name}"
        found.append(measure.case(case, median, "x bfloat16", None, **about, **ends))
    return found


def layers(inputs: int, outputs: int, x: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """The same layer in many ways, each shown to give what float32 gives, as near as its bits."""
    weight = torch.randn(outputs, inputs) / inputs**0.5
    codes = rounding.quantize_weight(weight, None, Grid("int8"))
    plain = linear.Rounded.of(codes, None, "int8", torch.device("cpu"))
    compiled = kernel.Blocks.of(plain, kernel.load())
    dense = torch.nn.Linear(inputs, outputs, bias=False)
    dense.weight.data = weight
    dynamic = torch.ao.quantization.quantize_dynamic(
        torch.nn.Sequential(dense), {torch.nn.Linear}, torch.qint8
    )
    halves, half_x = weight.bfloat16(), x.bfloat16()
    four = rounding.quantize_weight(weight, None, Grid("int4", 32))
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(four.codes.int() + 8, 1)
    pairs = torch.stack((four.scales.T, torch.zeros_like(four.scales.T)), -1).bfloat16()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "bfloat16": lambda: functional.linear(half_x, halves),
        "float32": lambda: functional.linear(x, weight),
        "quantize_dynamic": lambda: dynamic(x),
        "_int_mm": lambda: plain(x),
        "compiled_int8": lambda: compiled(x),
        "int4": lambda: multiply(half_x, packed, 32, pairs.contiguous()),
    }
    exact = functional.linear(x, weight)
    for name, work in ways.items():
        error = float((work().float() - exact).norm() / exact.norm())
        most = 0.2 if name == "int4" else 0.03
        assert error < most, f"{name} is {error:.3f} from float32"
    return ways


def repeated(work: Callable[[], torch.Tensor]) -> float:
    """Does it for a while; gives how often."""
    import time

    count, begin = 0, time.process_time()
    while time.process_time() - begin < SECONDS:
        for _ in range(5):
            work()
        count += 5
    return count


def engine(run: Path) -> list[Case]:
    """What int8 gains over bfloat16 in the local engine, as stage `profile` measures it."""
    tokenizer = models.load_tokenizer(run / "distilled" / "model")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with tempfile.TemporaryDirectory() as folder:
        model = newborn.create_model("qwen3", len(tokenizer), 0, **ends, **QWEN3)
        models.save_model(model, tokenizer, Path(folder) / "model")
        local = {"name": "local", "model": f"{folder}/model"}
        stages = {
            "int8": {
                "stage": "quantize",
                "model": local["model"],
                "method": "round",
                "weights": "int8",
                "activations": "int8",
            },
            "profile": {
                "engines": {
                    "bfloat16": {**local, "dtype": "bfloat16"},
                    "int8": {"name": "local", "model": "./int8/model", "dtype": "bfloat16"},
                },
                "ratios": [["int8", "bfloat16"]],
                "problems": str(run / "collect" / "heldout"),
                "num_latency": 4,
                "num_load": 32,
                "max_tokens": 64,
            },
        }
        recipe = {"name": "speed", "machine": {"threads": 1}, "stages": stages}
        ratios = limbeck.run(recipe, run=f"{folder}/run").ratios()
    return [
        measure.case(
            f"engine_{row['at'].replace(' ', '_')}",
            row["ratio"],
            "x bfloat16",
            None,
            low=round(row["low"], 2),
            high=round(row["high"], 2),
        )
        for row in ratios
    ]


def drift(run: Path, num_texts: int) -> dict[str, dict[str, float]]:
    """KL from the student to itself in few bits, in nats a token, by grid and method."""
    folder = run / "distilled" / "model"
    tokenizer = models.load_tokenizer(folder)
    rows = tables.read_table(run / "curate" / "dataset").to_pylist()[: 128 + num_texts]
    pairs = []
    for row in rows:
        *prompt, answer = (Message(turn["role"], turn["content"]) for turn in row["messages"])
        pairs.append((prompt, answer.content))
    texts = [ids for ids, _ in encode_examples(tokenizer, pairs)]
    asked, calibrating = texts[128:], texts[:128]
    before = logprobs(models.load_model(folder), asked)
    found: dict[str, dict[str, float]] = {}
    for name, grid in GRIDS.items():
        for method, module in METHODS.items():
            model = models.load_model(folder)
            for block in walk(model, calibrating, device="cpu", gram=True, max_batch_tokens=2048):
                rescale = getattr(module, "rescale", None)
                if rescale:
                    rescale(block, grid)
                for key, matrix in block.matrices.items():
                    weight = anatomy.weight_of(matrix)
                    codes = module.quantize_weight(weight, block.stats[key], grid)
                    anatomy.set_weight(matrix, codes.dense())
            after = logprobs(model, asked)
            kl = sum(float((b.exp() * (b - a)).sum()) for b, a in zip(before, after, strict=True))
            found.setdefault(name, {})[method] = kl / sum(len(b) for b in before)
            print(f"  {name}, {method}: {found[name][method]:.6f} nats a token", flush=True)
    return found


def logprobs(model: Any, texts: list[list[int]]) -> list[torch.Tensor]:
    """(tokens, V) of each text."""
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for ids in texts]


if __name__ == "__main__":
    main()
