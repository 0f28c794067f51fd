"""Smaller models: what is lost for which size, which texts calibrate best, and what it takes.

The quickstart's student (`limbeck run recipes/quickstart.yaml`) is made smaller in every way that
there is, asked its held-out problems again (pass@1, 4 samples of each) and how likely its own right
answers to them were (perplexity, of W8A8 with inputs as they are). `own_traces_gain` is by how much
pass@1 is higher when Wanda, SparseGPT and GPTQ are calibrated on what the student wrote and its
verifier found right, and not on as many tokens of GSM8K; paired by problem and by seed.

Time and memory are held against llm-compressor's, see compress_time.py.

    python bench/compress.py --run runs/quickstart --peer ~/llmcompressor/bin/python
    python bench/compress.py --quick    # one seed, and two rounds instead of five

Without a peer its cases are left open. Needs LIMBECK_TEST_DATA for the texts of GSM8K.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure

measure.one_thread()

import compress_time  # noqa: E402  (behind the environment that torch reads when it is imported)
import numpy as np  # noqa: E402

import limbeck  # noqa: E402
from limbeck import metrics, models, tables  # noqa: E402
from limbeck.chat import encode_examples  # noqa: E402
from limbeck.problems import make_problem  # noqa: E402
from limbeck.runs import Run  # noqa: E402
from limbeck.types import Message, Problem  # noqa: E402

Settings = dict[str, Any]

SHARES: dict[str, Settings] = {"50": {"sparsity": 0.5}, "2_4": {"pattern": "2:4"}}
UNITS: dict[str, str | Settings] = {"depth": "depth", "width": {"name": "width", "multiple": 8}}
BITS: dict[str, Settings] = {
    "int8": {"weights": "int8"},
    "w8a8": {"weights": "int8", "activations": "int8"},
    "int4": {"weights": "int4", "group_size": 32},
}
WAYS: dict[str, Settings] = {
    **{
        f"{method}_{share}": {"stage": "prune", "method": method, **settings}
        for share, settings in SHARES.items()
        for method in ("magnitude", "wanda", "sparsegpt")
    },
    **{
        f"{name}_35": {"stage": "prune", "method": method, "sparsity": 0.35}
        for name, method in UNITS.items()
    },
    **{
        f"{method}_{bits}": {"stage": "quantize", "method": method, **settings}
        for bits, settings in BITS.items()
        for method in ("round", "gptq", "awq")
    },
}
CALIBRATED = ("wanda_50", "sparsegpt_50", "gptq_int4")  # on own traces and on others' texts
NUM_ASKED = 1000  # problems whose right answers calibrate
NUM_TEXTS = 128


def write_texts(run: Path, work: Path) -> int:
    """Makes a run in `work / texts`, of what the student writes and its verifier finds right.

    Beside it lie its right answers to held-out problems, as what is to be answered, and lessons of
    GSM8K's. Gives the mean number of tokens of its own.
    """
    if not (work / "asked").exists():
        asked = tables.read_problems(run / "collect" / "problems")[:NUM_ASKED]
        tables.write_part(work / "asked", tables.to_table("problems", asked))
    stages: Settings = {}
    for split, problems in (("own", work / "asked"), ("heldout", run / "collect" / "heldout")):
        paths = {"problems": str(problems), "traces": f"./{split}/traces"}
        stages |= {
            split: {
                "stage": "sample",
                "problems": str(problems),
                "engine": {"name": "local", "model": str(run / "distilled" / "model")},
                "temperature": 0.6,
                "top_p": 0.95,
                "max_tokens": 128,
            },
            f"{split}_judged": {"stage": "verify", **paths},
            f"{split}_right": {
                "stage": "curate",
                **paths,
                "verdicts": f"./{split}_judged/verdicts",
                "keep": ["correct", "finished", "well_formed"],
            },
        }
    made = limbeck.run(recipe("texts", stages), run=work / "texts")
    if not (work / "answered").exists():
        right = [as_problem(*lesson) for lesson in lessons(made.path / "heldout_right" / "dataset")]
        tables.write_part(work / "answered", tables.to_table("problems", right))
    write_generic(work / "generic.jsonl")
    return round(statistics.fmean(map(len, tokens(made.path / "own_right" / "dataset", run))))


def recipe(name: str, stages: Settings) -> Settings:
    return {"name": name, "title": name, "machine": {"threads": 1}, "stages": stages}


def lessons(dataset: Path) -> list[tuple[str, str]]:
    """(question, answer) of each row of a data set."""
    rows = tables.read_table(dataset, ["messages"])["messages"].to_pylist()
    return [(messages[0]["content"], messages[-1]["content"]) for messages in rows]


def as_problem(question: str, answer: str) -> Problem:
    return make_problem(question, answer, verifier="exact")


def tokens(dataset: Path, run: Path) -> list[list[int]]:
    """Prompt and answer of each row of a data set by the student's chat template."""
    tokenizer = models.load_tokenizer(run / "distilled" / "model")
    pairs = [((Message("user", asked),), answer) for asked, answer in lessons(dataset)]
    return [ids for ids, _ in encode_examples(tokenizer, pairs)]


def write_generic(path: Path) -> None:
    """GSM8K's training problems and solutions as lessons."""
    source = Path(os.environ["LIMBECK_TEST_DATA"]) / "gsm8k" / "train.jsonl.gz"
    with gzip.open(source, "rt", encoding="utf-8") as read, path.open("w") as write:
        for number, line in enumerate(read):
            row = json.loads(line)
            turns = [("user", row["question"]), ("assistant", row["answer"])]
            messages = [{"role": role, "content": text} for role, text in turns]
            write.write(json.dumps({"id": str(number), "messages": messages}) + "\n")


def made_smaller(run: Path, work: Path, name: str, way: Settings, **texts: Any) -> Settings:
    """The stages that make the student smaller in this way, and judge what has become of it."""
    calibration = {"calibration": str(work / "texts" / "own_right" / "dataset")}
    calibration |= {"num_texts": NUM_TEXTS, **texts}
    return {
        name: {"model": str(run / "distilled" / "model"), **way, **calibration},
        **judged(run, work, name, f"./{name}/model"),
    }


def judged(run: Path, work: Path, name: str, model: str) -> Settings:
    """The stages that ask a model the held-out problems, and how likely right answers are."""
    return {
        f"{name}_asked": {
            "stage": "evaluate",
            "engine": {"name": "local", "model": model},
            "problems": {"heldout": str(run / "collect" / "heldout")},
            "num_samples": 4,
            "max_tokens": 128,
            "greedy": False,
        },
        f"{name}_read": {
            "stage": "likelihood",
            "model": model,
            "problems": {"heldout": str(work / "answered")},
        },
    }


def quality(run: Path, work: Path, num_seeds: int) -> tuple[Settings, list[Settings]]:
    """(case own_traces_gain, a row for each way): what is lost, what own traces gain."""
    length = write_texts(run, work)
    stages = judged(run, work, "whole", str(run / "distilled" / "model"))
    for name, way in WAYS.items():
        stages |= made_smaller(run, work, name, way)
    # Of GSM8K every text is cut to the mean length of own ones: as many tokens, at like places.
    sources: dict[str, Settings] = {
        "own": {},
        "generic": {"calibration": str(work / "generic.jsonl"), "max_length": length},
    }
    for source, texts in sources.items():
        for way in CALIBRATED:
            for seed in range(num_seeds):
                name = f"{way}_{source}_{seed}"
                stages |= made_smaller(run, work, name, WAYS[way], seed=seed, **texts)
    made = limbeck.run(recipe("methods", stages), run=work / "methods")
    rows = [told(made, name) for name in ("whole", *WAYS)]
    for row in rows:
        print(WORDS.format(**row))
    return gain_case(made, num_seeds), rows


WORDS = "  {way:<16}{num_bytes:>12,} bytes  pass@1 {pass_at_1:6.1%} ({low:.1%} to {high:.1%})"
WORDS += "  perplexity {perplexity:.4f}"


def told(made: Run, name: str) -> Settings:
    """What a way has made of the student: size, pass@1 with its interval, perplexity."""
    said = {row["stage"]: row.get("summary", {}) for row in made.stages()}
    (asked,) = said[f"{name}_asked"]["results"]
    read = {row["metric"]: row["value"] for row in said[f"{name}_read"]["results"]}
    size = said.get(name) or said[f"{name}_read"]  # of the whole one only the reader tells
    kept = {key: size[key] for key in SIZES if key in size}
    answered = {"pass_at_1": asked["value"], "low": asked["low"], "high": asked["high"]}
    length = {"tokens_per_answer": asked["tokens_per_answer"]}
    return {"way": name, **kept, **answered, **length, "perplexity": read["perplexity"]}


SIZES = ("num_parameters", "num_bytes", "sparsity", "bits_per_weight")


def gain_case(made: Run, num_seeds: int) -> Settings:
    """By how much pass@1 is higher with own traces; met if the whole interval is above 0."""
    gains = {"all": gain(made, "asked", CALIBRATED, num_seeds)}
    gains |= {way: gain(made, "asked", [way], num_seeds) for way in CALIBRATED}
    nats = {way: gain(made, "read", [way], num_seeds) for way in CALIBRATED}
    read = {row["stage"]: row["tokens_in"] for row in made.ledger()}
    seen = [
        sum(read[f"{way}_{source}_{seed}"] for way in CALIBRATED for seed in range(num_seeds))
        for source in ("own", "generic")
    ]
    more = {"seeds": num_seeds, "texts": NUM_TEXTS, "tokens": seen, "gains": gains, "nats": nats}
    whole = gains["all"]
    line = measure.case("own_traces_gain", whole["mean"], "of pass@1", 0.0, **more)
    return {**line, "met": whole["low"] > 0}


def gain(made: Run, asked: str, ways: Sequence[str], num_seeds: int) -> dict[str, float]:
    """Own traces' mean minus generic texts' over these ways, by problem and by seed.

    The interval is the wider of the two: problems and seeds are both drawn.
    """
    own, generic = (
        np.array(
            [
                [values(made, f"{way}_{source}_{seed}_{asked}") for way in ways]
                for seed in range(num_seeds)
            ]
        ).mean(1)  # (seeds, problems)
        for source in ("own", "generic")
    )
    most = 1.0 if asked == "asked" else math.inf
    tests = [metrics.paired_test(own.mean(0), generic.mean(0), most=most)]
    if num_seeds > 1:
        tests.append(metrics.seeds_test((own - generic).mean(1), most=most))
    wider = max(tests, key=lambda test: test.high - test.low)
    found = {"mean": tests[0].difference, "low": wider.low, "high": wider.high}
    return {name: round(value, 4) for name, value in found.items()}


def values(made: Run, stage: str) -> list[float]:
    """What a stage found of each problem, in the order of their ids."""
    rows = sorted(made.table(f"{stage}/scores").to_pylist(), key=lambda row: row["problem_id"])
    return [metrics.value_of(row) for row in rows]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    options.add_argument("--peer", help="the python of an environment with llm-compressor")
    options.add_argument("--work", type=Path, help="where the models are made, and kept")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--out", type=Path, help="keeps the JSON line in this file")
    chosen = options.parse_args()
    run, work = chosen.run.resolve(), Path(chosen.work or tempfile.mkdtemp()).resolve()
    peer = chosen.peer or os.environ.get("LLMCOMPRESSOR_PYTHON")
    learned = tokens(run / "curate" / "dataset", run)
    student = run / "distilled" / "model"
    case, rows = quality(run, work, 1 if chosen.quick else 3)
    cases, about = compress_time.cases(peer, learned, student, work, 2 if chosen.quick else 5)
    packages = ["torch", "transformers", "limbeck"]
    more = {**about, "ways": rows, "threads": 1}
    measure.finish("compress", [*cases, case], packages, chosen.out, **more)
    sys.exit(any(line["met"] is False for line in [*cases, case]))


if __name__ == "__main__":
    main()
