"""Users' mistakes, each through the command line: one line, exit code 2, and nothing changed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from limbeck import tables

DATA = Path(__file__).parent / "mistakes"
RECIPE = (DATA / "recipe.yaml").read_text()
HELD = []  # run folders in use: descriptors that stay open, and locked
BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ROW = '{"question": "What is 1 + 1?", "answer": "2"}\n'
LESSON = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}


@dataclass(frozen=True)
class Mistake:
    """What a user does wrong in a folder that holds recipe.yaml, and what the one line must say."""

    says: tuple[str, ...]
    command: str = "plan recipe.yaml"
    prepare: Callable[[Path], object] = lambda folder: None
    env: dict[str, str] = field(default_factory=dict)
    lines: int = 1
    computes: bool = False
    """It can be found by computing only: the run folder holds what had been begun."""
    needs_torch: bool = False


def recipe(old: str, new: str, *says: str, **more) -> Mistake:
    """A mistake in the recipe; what it says begins with the key."""
    assert old in RECIPE, old

    def write(folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.replace(old, new, 1), encoding="utf-8")

    where = () if more.get("computes") else ("recipe.yaml:",)
    return Mistake((*where, *says), prepare=write, **more)


def text(content: str | bytes, *says: str, file: str = "recipe.yaml", **more) -> Mistake:
    """A mistake in a whole file."""
    raw = content if isinstance(content, bytes) else content.encode()
    return Mistake(says, prepare=lambda f: (f / file).write_bytes(raw), **more)


def model(*says: str, **changes) -> Mistake:
    """A student from elsewhere whose folder lacks something."""

    def write(folder: Path) -> None:
        made = {
            "config.json": {"model_type": "llama", "vocab_size": 300},
            "tokenizer_config.json": {"chat_template": "{{ messages }}"},
            "tokenizer.json": {"model": {"vocab": {"a": 0, "b": 299}}, "added_tokens": []},
        }
        for name, content in {**made, **changes.get("files", {})}.items():
            if content is not None:
                (folder / "student").mkdir(exist_ok=True)
                (folder / "student" / name).write_text(json.dumps(content))
        (folder / "recipe.yaml").write_text(
            RECIPE.replace("model: ./start/model", "model: student")
        )

    return Mistake(("recipe.yaml:", "stages.sft.model: ", "'student'", *says), prepare=write)


def run_folder(command: str, *says: str, prepare=lambda folder: None, **more) -> Mistake:
    """A mistake with a finished run in runs/small."""

    def write(folder: Path) -> None:
        shutil.copytree(FINISHED, folder / "runs" / "small")
        prepare(folder)

    return Mistake(says, command, write, **more)


def lock(folder: Path) -> None:
    HELD.append(file := os.open(folder / "runs" / "small" / "lock", os.O_RDWR))
    fcntl.flock(file, fcntl.LOCK_EX)


def unfinish(folder: Path) -> None:
    (folder / "runs" / "small" / "sample" / "stage.json").unlink()


def rows(folder: Path, *rows: dict) -> None:
    """The student learns from a table of the user's own, with the finished run's fresh model."""
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(FINISHED / "start" / "model", folder / "student")
    (folder / "sft.yaml").write_text(
        "stages: {sft: {model: student, data: mine.jsonl, num_epochs: 1, lr: 1e-3}}"
    )


def training(stages: str, *says: str, last: str = "", finished: bool = False) -> Mistake:
    """A mistake in further stages; what only computing finds is told of a finished run's models."""

    def write(folder: Path) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.replace("  evaluate:", f"{stages}  evaluate:"))

    def write_finished(folder: Path) -> None:
        text = stages
        for name in ("start/model", "sft/model", "curate/dataset"):
            shutil.copytree(FINISHED / name, folder / name)
            text = text.replace(f"./{name}", name)
        (folder / "training.yaml").write_text(f"stages:\n{text}")

    if not finished:
        return Mistake(("recipe.yaml:", f"stages.{last}", *says), prepare=write)
    command = "run training.yaml --quiet"
    return Mistake(says, command, write_finished, computes=True, needs_torch=True)


def stage(name: str, more: str, verb: str = "distill") -> str:
    """A stage of training; `more` of its settings."""
    settings = "model: ./start/model, data: ./curate/dataset, num_epochs: 1, lr: 1e-3"
    if verb == "score":
        settings = "data: ./curate/dataset"
    return f"  {name}: {{stage: {verb}, {settings}, {more}}}\n"


def smaller(verb: str, more: str, *says: str, field: str = "", **options) -> Mistake:
    """A mistake in a stage that makes the student smaller, or gives it out."""
    text = f"  small: {{stage: {verb}, model: ./sft/model, {more}}}\n"
    return training(text, *says, last=f"small{field}", **options)


def gated(more: str, *says: str, field: str = "", **options) -> Mistake:
    """A mistake in a gate behind an evaluation of the student."""
    asked = "engine: {name: local, model: ./sft/model}, problems: {heldout: ./collect/heldout}"
    trial = "trials: {one: {model: ./sft/model, scores: ./before/scores}}"
    trials = "" if "trials" in more else f", {trial}"
    text = f"  before: {{stage: evaluate, {asked}}}\n"
    text += f"  gate: {{model: ./sft/model, before: ./before/scores{trials}, {more}}}\n"
    return training(text, *says, last=f"gate{field}", **options)


TAUGHT = "teacher: ./sft/model"
CALIBRATED = "calibration: ./curate/dataset"
WIDER = (
    "  wider: {stage: create, tokenizer: ./start/model, hidden_size: 24, num_attention_heads: 2}\n"
)
STRANGER = (
    "  stranger: {stage: create, texts: ./curate/dataset, vocab_size: 280, hidden_size: 16,"
    " num_attention_heads: 2}\n"
)
SCORE = stage("score", TAUGHT, "score")
CACHED = "distributions: ./score/distributions"
FINISHED = Path()  # the run of test_a_path_with_spaces…, set by the fixture
MISTAKES = {
    # -- keys and names
    "unknown stage": recipe("  verify:", "  verfy:", "stages.verfy: no stage is", "mean 'verify'?"),
    "unknown verb": recipe(
        "stage: create", "stage: creat", "stages.start: ", "did you mean 'create'?"
    ),
    "unknown knob": recipe("lr: 1e-3", "lr: 1e-3\n    epochs: 3", "sft.epochs: unknown key; did"),
    "misspelt knob": recipe("batch_size", "batch_sise", "stages.sft.batch_sise", "'batch_size'?"),
    "missing knob": recipe(
        "    data: ./curate/dataset\n    num", "    num", "sft.data: is required; add it"
    ),
    "unknown plug-in knob": recipe(
        "{name: length, max_tokens: 64}", "{name: length, max: 6}", "curate.keep.1.max: unknown key"
    ),
    "unknown machine knob": recipe(
        "threads: 1", "cores: 1", "machine.cores: unknown key; there is device, device_name"
    ),
    "unknown top key": recipe("title:", "titel:", "titel: unknown key; did you mean 'title'?"),
    "misspelt source": recipe("name: file", "name: fiel", "collect.source", "mean 'file'?"),
    "misspelt engine": recipe("name: local", "name: locl", "evaluate.engine", "mean 'local'?"),
    "misspelt verifier": recipe(
        "    num: 4", "    num: 4\n    verifier: exct", "collect.verifier", "mean 'exact'?"
    ),
    "misspelt verifier of a source": recipe(
        "path: questions.jsonl", "path: questions.jsonl, verifier: nmber", "collect.source.verifier"
    ),
    "misspelt filter": recipe("[correct,", "[corect,", "curate.keep.0", "mean 'correct'?"),
    "engine of nobody": recipe("my_engine:connect", "your_engine:connect", "sample.engine: cannot"),
    "no such function": recipe("my_engine:connect", "my_engine:conect", "sample.engine: cannot"),
    "not a function": recipe(
        "my_engine:connect", "my_engine:Engine", "it is no function", "mend the module"
    ),
    "engine that does not import": text(
        "def connect(:\n", "SyntaxError", "sample.engine: cannot", file="my_engine.py"
    ),
    "plug-in is a list": recipe(
        "engine: my_engine:connect", "engine: [local]", "sample.engine: is no engine"
    ),
    "stage without a name for a folder": recipe(
        "  compare:", "  ../compare:", "is no stage name; use"
    ),
    "stage called lock": recipe("  compare:", "  lock:", "stages.lock: is no stage name; use"),
    "name that is no folder's": recipe(
        "name: small", "name: ../small", "name: ", "names no folder"
    ),
    # -- types and units
    "word for a number": recipe("num: 4", "num: four", "collect.num: ", "integer, not 'four'"),
    "half for a whole": recipe("num: 4", "num: 4.5", "collect.num: ", "integer, not 4.5"),
    "seconds": recipe("batch_size: 4", "batch_size: 10s", "sft.batch_size: ", "no unit"),
    "bytes": recipe("batch_size: 4", "batch_size: 5GB", "sft.batch_size: ", "no unit"),
    "per cent": recipe("heldout_share: 0.25", "heldout_share: 25%", "heldout_share: ", "no unit"),
    "number in quotes": recipe("lr: 1e-3", "lr: '1e-4'", "sft.lr: ", "not '1e-4'", "no quotes"),
    "sixty times": recipe("batch_size: 4", "batch_size: 1:30", "sft.batch_size: ", "not '1:30'"),
    "octal": recipe("batch_size: 4", "batch_size: 010", "sft.batch_size: ", "not '010'"),
    "yes": recipe("max_tokens: 8", "max_tokens: 8\n    greedy: yes", "evaluate.greedy: ", "'yes'"),
    "true for one": recipe("num_samples: 5", "num_samples: true", "sample.num_samples: ", "True"),
    "null": recipe("num_samples: 5", "num_samples:", "sample.num_samples: ", "not None; change"),
    "one of two types": recipe("threads: 1", "threads: all", "machine.threads: ", "not 'all'"),
    "one for a list": recipe("keep: [correct,", "keep: correct #", "curate.keep: ", "valid list"),
    "list for one": recipe("./start/model", "[./start/model]", "sft.model: ", "string, not ["),
    # -- numbers out of range
    "lr 0": recipe("lr: 1e-3", "lr: 0", "sft.lr: ", "greater than 0, not 0; change it"),
    "lr below 0": recipe("lr: 1e-3", "lr: -1e-3", "sft.lr: ", "greater than 0, not -0.001"),
    "lr above 1": recipe("lr: 1e-3", "lr: 2e5", "sft.lr: ", "less than or equal to 1"),
    "lr without end": recipe("lr: 1e-3", "lr: 1e999", "sft.lr: ", "finite number"),
    "batch of none": recipe("batch_size: 4", "batch_size: 0", "sft.batch_size: ", "greater than 0"),
    "samples below 0": recipe("num_samples: 5", "num_samples: -1", "sample.num_samples", "not -1"),
    "top_p 0": recipe("top_p: 0.95", "top_p: 0", "sample.top_p: ", "greater than 0"),
    "top_p above 1": recipe("top_p: 0.95", "top_p: 1.5", "sample.top_p: ", "equal to 1, not 1.5"),
    "temperature below 0": recipe("temperature: 0.6", "temperature: -1", "sample.temperature: "),
    "no tokens": recipe("max_tokens: 8", "max_tokens: 0", "evaluate.max_tokens: ", "than 0"),
    "share above 1": recipe("share: 0.25", "share: 1.5", "collect.heldout_share: ", "not 1.5"),
    "share of nothing": recipe("share: 0.25", "share: 0", "collect: num_heldout", "set heldout"),
    "no epochs": recipe("num_epochs: 1", "num_epochs: 0", "sft.num_epochs: ", "greater than 0"),
    "weight decay below 0": recipe("lr: 1e-3", "lr: 1e-3\n    weight_decay: -0.1", "weight_decay"),
    "warm-up above 1": recipe("lr: 1e-3", "lr: 1e-3\n    warmup_ratio: 2", "sft.warmup_ratio: "),
    "clip 0": recipe("lr: 1e-3", "lr: 1e-3\n    clip: 0", "sft.clip: ", "greater than 0"),
    "one beta": recipe("lr: 1e-3", "lr: 1e-3\n    betas: [0.9]", "sft.betas: ", "at least 2 items"),
    "threads 0": recipe("threads: 1", "threads: 0", "machine.threads: ", "than or equal to 1"),
    "filter's share": recipe(
        "{name: length, max_tokens: 64}", "{name: one_language, min_share: 90}", "keep.1.min_share"
    ),
    "no room for the bytes": recipe("vocab_size: 300", "vocab_size: 200", "start.vocab_size: "),
    "heads that do not fit": recipe("heads: 2", "heads: 3", "stages.start: hidden_size 16", "of 6"),
    "key heads that do not fit": recipe(
        "heads: 2", "heads: 2\n    num_key_value_heads: 3", "stages.start: num_key_value_heads 3"
    ),
    "no expression": recipe("stage: create", "stage: create\n    isolate: '('", "start.isolate: "),
    # -- two sources of truth, or none
    "epochs and tokens": recipe(
        "num_epochs: 1", "num_epochs: 1\n    num_tokens: 9", "stages.sft: needs one of", "give"
    ),
    "neither epochs nor tokens": recipe("    num_epochs: 1\n", "", "stages.sft: needs one of"),
    "texts and tokenizer": recipe(
        "stage: create", "stage: create\n    tokenizer: gpt/2", "stages.start: needs either texts"
    ),
    "a pair of one": recipe(
        "{scores: {student: ./evaluate/scores}}",
        "{scores: {student: ./evaluate/scores}, pairs: [[student, teacher]]}",
        "stages.compare: pairs: ",
        "is no pair of student; name two",
    ),
    "nothing to evaluate": recipe("{heldout: ./collect/heldout}", "{}", "evaluate.problems: "),
    # -- references
    "unknown stage in a path": recipe("./sample/traces", "./smaple/traces", "mean 'sample'?"),
    "unknown output": recipe("./verify/verdicts", "./verify/verdict", "mean 'verdicts'?"),
    "wrong kind": recipe("./verify/verdicts", "./sample/traces", "is traces, not verdicts; name"),
    "later stage": recipe("problems: ./collect/problems", "problems: ./curate/dataset", "later"),
    "itself": recipe("model: ./start/model", "model: ./sft/model", "sft.model: ", "itself; move"),
    "way out of the run": recipe("./start/model", "./../start/model", "sft.model: ", "no stage"),
    "no such folder": recipe("./start/model", "../start/model", "sft.model: ", "does not exist"),
    "missing file": recipe("path: questions", "path: question", "source.path: ", "does not exist"),
    "folder for a file": recipe("path: questions.jsonl", "path: .", "source.path: ", "is a folder"),
    "file of another kind": recipe("path: questions.jsonl", "path: my_engine.py", "use .jsonl"),
    "unknown family": recipe(
        "{name: file, path: questions.jsonl}",
        "{name: reasoning_gym, tasks: {chain_sun: {}}}",
        "stages.collect: tasks.chain_sun: no such",
        "did you mean chain_sum",
    ),
    "family's unknown knob": recipe(
        "{name: file, path: questions.jsonl}",
        "{name: reasoning_gym, tasks: {chain_sum: {min_term: 2}}}",
        "stages.collect: tasks.chain_sum.min_term: no such knob",
        "min_terms",
    ),
    "no key for the teacher": recipe(
        "engine: my_engine:connect",
        "engine: {name: openai, model: m, key_variable: NO_SUCH_KEY}",
        "environment variable NO_SUCH_KEY: holds no key",
        "export NO_SUCH_KEY=",
    ),
    "address without scheme": recipe(
        "engine: my_engine:connect",
        "engine: {name: openai, model: m, base_url: 'localhost:8000'}",
        "sample.engine.base_url: is no address; write it like http://",
    ),
    # -- YAML
    "key twice": recipe("num: 4", "num: 4\n    num: 5", "recipe.yaml:7: key 'num' stands twice"),
    "bomb": text(BOMB + RECIPE, "values once its aliases are written out; use fewer"),
    "alias of itself": text("a: &a [*a]\n" + RECIPE, "nested too deeply; make it flatter"),
    "deep": text("a: " + "[" * 1200 + "]" * 1200, "nested too deeply; make it flatter"),
    "tabs": recipe("    num: 4", "\tnum: 4", "recipe.yaml:6: is not valid YAML ("),
    "python": recipe(
        "num: 4", "num: !!python/name:os.system 4", "recipe.yaml:6: is not valid YAML"
    ),
    "merge of a word": recipe("num: 4", "<<: four", "recipe.yaml:6: is not valid YAML"),
    "tag of a number": recipe("num: 4", "num: !!int four", "is not valid YAML"),
    "list for a key": recipe("num: 4", "? [num]\n    : 4", "recipe.yaml:6: has a key that is no"),
    "stages as a list": text("stages: [sft]", "has no mapping called 'stages'; see"),
    "no stages": text("stages: {}", "stages: is empty; see recipes/"),
    "stage as a word": recipe(
        "  verify: {", "  other: collect\n  verify: {", "stages.other: is no"
    ),
    "empty stage": recipe("  verify: {", "  more: {stage: verify}\n  verify: {", "more.", lines=2),
    "null stage": text("stages:\n  start: {stage: create}\n", "stages.start: needs either texts"),
    "empty file": text("", "recipe.yaml: is empty; give"),
    "a word": text("distill", "has no mapping called 'stages'"),
    "two documents": text(f"{RECIPE}---\n{RECIPE}", "is not valid YAML"),
    "not UTF-8": text("title: größer\n".encode("latin-1"), "recipe.yaml: is not UTF-8"),
    "UTF-16": text(RECIPE.encode("utf-16"), "recipe.yaml: is not UTF-8"),
    "zero bytes": text(b"name: \0small\n", "is not valid YAML"),
    "sizes as a list": recipe("  ci: {sft.num_epochs: 1}", "  [ci]", "sizes: is no mapping; write"),
    "size of an unknown stage": recipe(
        "sft.num_epochs: 1", "stf.num_epochs: 1", "no stage 'stf'; did you mean 'sft'?",
        command="plan recipe.yaml --size ci",
    ),
    "several at once": recipe(
        "num: 4\n    num_heldout: 2\n    heldout_share: 0.25",
        "num: four\n    num_heldout: -2\n    heldout_share: 3\n    nun: 4",
        "collect.num: ", "collect.num_heldout: ", "collect.heldout_share: ", "collect.nun: ",
        lines=4,
    ),
    # -- recipes in Python
    "python that fails": text(
        "recipe = {}\nimport nothing_of_the_kind\n", "recipe.py:2: cannot be run (ModuleNotFound",
        file="recipe.py", command="plan recipe.py",
    ),
    "python without a recipe": text(
        "name = 'x'\n", "cannot be run", "`recipe`", file="recipe.py", command="plan recipe.py"
    ),
    # -- models and tables from elsewhere
    "no model": model("is no model", files={"config.json": None}),
    "no chat template": model("has no chat template; take", files={"tokenizer_config.json": {}}),
    "tokenizer that does not fit": model(
        "", "has a tokenizer of 400 tokens, but an embedding of 300",
        files={"tokenizer.json": {"model": {"vocab": {"a": 399}}}},
    ),
    "config that is no JSON object": model("cannot be read", files={"config.json": []}),
    "empty problem set": text("", "holds no rows; give", file="questions.jsonl"),
    "broken line": text(ROW + '{"question"', "questions.jsonl:2: ", "mend", file="questions.jsonl"),
    "row that is a list": text("[1]\n", "questions.jsonl:1: ", "object", file="questions.jsonl"),
    "row without answer": text(
        ROW + '{"question": "?"}\n', "questions.jsonl:2: no 'answer'; name", file="questions.jsonl"
    ),
    "row with an empty question": text(
        ROW.replace("What is 1 + 1?", " "), "jsonl:1: an empty question", file="questions.jsonl"
    ),
    "rows in another alphabet": text(
        '{"question": "größer?", "answer": "1"}\n'.encode("latin-1"), "questions.jsonl:", "utf-8",
        file="questions.jsonl",
    ),
    "prompt without question": recipe(
        "path: questions.jsonl", "path: questions.jsonl, prompt: Think!", "the prompt has no {quest"
    ),
    "data without messages": Mistake(
        ("sft.yaml:1: stages.sft.data: ", "has no 'messages' in row 0; there is text"),
        "plan sft.yaml", lambda folder: rows(folder, {"text": "?"}),
    ),
    "data that ends with the user": Mistake(
        ("sft.yaml:1: stages.sft.data: ", "row 0 does not end with an assistant's message; give"),
        "plan sft.yaml", lambda folder: rows(folder, {"messages": LESSON["messages"][:1] * 2}),
    ),
    # -- what only computing finds
    "answers that their verifier rejects": text(
        ROW.replace('"2"', '"two"') * 3, "collect.source: gave no problems", "bad_gold",
        "check its",
        file="questions.jsonl", command="run recipe.yaml --quiet", computes=True,
    ),
    "nothing survives": recipe(
        "{name: length, max_tokens: 64}", "{name: length, max_tokens: 1}",
        "curate.keep: dropped every trace (20 too_long); loosen", computes=True,
        command="run recipe.yaml --quiet",
    ),
    "all longer than the context": Mistake(
        ("mine.jsonl: holds no example", "(2 too long); raise max_length"),
        "run sft.yaml sft.max_length=2 --quiet", lambda folder: rows(folder, LESSON, LESSON),
        computes=True, needs_torch=True,
    ),
    "nothing to learn from": Mistake(
        ("mine.jsonl: holds no example", "(2 of no weight); raise"), "run sft.yaml --quiet",
        lambda folder: rows(folder, LESSON | {"weight": 0.0}, LESSON | {"weight": 0.0}),
        computes=True, needs_torch=True,
    ),
    # -- training and distillation
    "nobody to learn from": training(
        stage("distil", "seed: 1"), ": needs a teacher or its distributions; give", last="distil"
    ),
    "misspelt divergence": training(
        stage("distil", f"{TAUGHT}, divergence: foward_kl"), "did you mean 'forward_kl'?",
        last="distil.divergence",
    ),
    "beta beyond 1": training(
        stage("distil", f"{TAUGHT}, divergence: {{name: jsd, beta: 2}}"), "less than or equal to 1",
        last="distil.divergence.beta",
    ),
    "no such knob of a divergence": training(
        stage("distil", f"{TAUGHT}, divergence: {{name: jsd, bta: 0.5}}"), "beta",
        last="distil.divergence.bta",
    ),
    "temperature 0": training(
        stage("distil", f"{TAUGHT}, temperature: 0"), "or equal to 0.01", last="distil.temperature"
    ),
    "alpha above 1": training(
        stage("distil", f"{TAUGHT}, alpha: 2"), "less than or equal to 1", last="distil.alpha"
    ),
    "on-policy from a cache": training(
        SCORE + stage("distil", f"{CACHED}, on_policy: {{}}"),
        "on_policy needs a teacher in memory", last="distil",
    ),
    "a reward for other texts": training(
        stage("distil", f"{TAUGHT}, on_policy: {{reward: true, temperature: 0.5}}"), "drop",
        last="distil.on_policy",
    ),
    "a data set for a cache": training(
        stage("distil", "distributions: ./curate/dataset"), last="distil.distributions"
    ),
    "a cache that nobody made": training(
        stage("distil", "distributions: ./scores/distributions"), "scores", last="distil.distrib"
    ),
    "two budgets": training(
        stage("distil", f"{TAUGHT}, num_tokens: 1000"), "needs one of num_epochs", last="distil"
    ),
    "adapters of no rank": training(
        stage("more", "lora: {rank: 0}", "sft"), "greater than 0", last="more.lora.rank"
    ),
    "a base of 3 bits": training(
        stage("more", "lora: {base: int3}", "sft"), "nf4", last="more.lora.base"
    ),
    "a look at nothing": training(
        stage("more", "validation: {every_steps: 1}", "sft"), "has nothing to look at",
        last="more.validation",
    ),
    "scores of nobody": training(stage("score", "seed: 1", "score"), "teacher", last="score"),
    "draws at two temperatures": training(
        stage("score", f"{TAUGHT}, method: sample, temperatures: [1.0, 2.0]", "score"),
        "temperature", last="score",
    ),
    "a scorer that cannot score": training(
        stage("score", "engine: {name: openai, model: m, base_url: 'http://localhost:1'}", "score"),
        "log-prob", last="score",
    ),
    "a temperature that was not kept": training(
        SCORE + stage("distil", CACHED), "has no temperature 2, but 1; take", finished=True,
    ),
    "scores of another teacher": training(
        SCORE + stage("distil", f"{CACHED}, teacher: ./start/model, temperature: 1.0"),
        "score/distributions: ", "with ", "leave teacher out", finished=True,
    ),
    "scores by another tokenizer": training(
        STRANGER + stage("score", "teacher: ./stranger/model", "score")
        + stage("distil", f"{CACHED}, temperature: 1.0"),
        "score/distributions: ", "tokenizer", finished=True,
    ),
    "hidden states of other widths": training(
        WIDER + stage("distil", "teacher: ./wider/model, hidden: {}"),
        "hidden: the student's hidden states are 16 wide", "24", finished=True,
    ),
    "adapters on layers that are not there": training(
        stage("more", "lora: {targets: [query]}", "sft"), "lora.targets: ", "q_proj", finished=True,
    ),
    "a look at what is taught": training(
        stage("more", "validation: {every_steps: 1, data: ./curate/dataset}", "sft"),
        "are trained on; hold rows out", finished=True,
    ),
    # -- smaller models
    "misspelt way of pruning": smaller(
        "prune", f"method: wnda, sparsity: 0.5, {CALIBRATED}", "did you mean 'wanda'?",
        field=".method",
    ),
    "nothing left": smaller(
        "prune", f"method: wanda, sparsity: 1, {CALIBRATED}", "less than 1", field=".sparsity"
    ),
    "sparsity in per cent": smaller(
        "prune", f"method: wanda, sparsity: 50, {CALIBRATED}", "less than 1, not 50",
        field=".sparsity",
    ),
    "neither sparsity nor pattern": smaller(
        "prune", f"method: wanda, {CALIBRATED}", "needs a sparsity, or a pattern; give"
    ),
    "a pattern that leaves all": smaller(
        "prune", f"method: wanda, pattern: '4:4', {CALIBRATED}", "leaves not some of", "take 2:4",
        field=".pattern",
    ),
    "a pattern of whole units": smaller(
        "prune", f"method: width, pattern: '2:4', {CALIBRATED}", "takes out whole units", "wanda"
    ),
    "pruned by nothing": smaller(
        "prune", "method: wanda, sparsity: 0.5", "needs texts; give calibration"
    ),
    "calibrated on problems": smaller(
        "prune", "method: wanda, sparsity: 0.5, calibration: ./collect/problems",
        "is problems, not dataset", field=".calibration",
    ),
    "a layer of one": smaller(
        "prune", f"method: depth, sparsity: 0.2, {CALIBRATED}", "sparsity: 0.2 of 2 layers is none",
        finished=True,
    ),
    "misspelt way of quantizing": smaller(
        "quantize", "method: gtpq, weights: int8", "did you mean 'gptq'?", field=".method"
    ),
    "three bits": smaller(
        "quantize", "method: round, weights: int3", "'int8', 'int4' or 'fp8'", field=".weights"
    ),
    "quantized by nothing": smaller(
        "quantize", "method: gptq, weights: int8", "needs texts; give calibration"
    ),
    "activations of other bits": smaller(
        "quantize", "method: round, weights: int4, activations: int8", "do not go with int4"
    ),
    "groups of what is rounded on its way": smaller(
        "quantize", "method: round, weights: int8, activations: int8, group_size: 8", "drop group"
    ),
    "groups that leave a rest": smaller(
        "quantize", "method: round, weights: int4, group_size: 7",
        "7 does not divide 16 and 48 inputs; take",
        finished=True,
    ),
    "a type that only llama.cpp writes": smaller(
        "export", "to: gguf, quant: [q4_k_m]", "llama-quantize f16.gguf", field=".quant"
    ),
    "given out as what nobody reads": smaller(
        "export", "to: onnx", "'hf' or 'gguf'", field=".to"
    ),
    "a gate for what is better the lower": gated(
        "metric: nll", "nobody tests nll here; take pass_at_1", field=".metric"
    ),
    "a gate that lets nothing fall": gated("max_drop: 0", "greater than 0", field=".max_drop"),
    "a gate of no trials": gated("trials: {}", "at least 1 item", field=".trials"),
    "a gate that may be left": gated("otherwise: go", "'keep' or 'stop'", field=".otherwise"),
    # -- run folders
    "used by another recipe": run_folder(
        "run recipe.yaml evaluate.seed=1",
        "runs/small/evaluate: is of another recipe: ", "seed was ",
        "--redo evaluate --redo compare",
    ),
    "used under another name": run_folder(
        "run other.yaml --run runs/small",
        "runs/small: holds a run of 'small', not 'other'; choose",
        prepare=lambda f: (f / "other.yaml").write_text(RECIPE.replace("name: small",
        "name: other")),
    ),
    "in use": run_folder("run recipe.yaml", "runs/small: is in use by", "; wait", prepare=lock),
    "redo of nothing": run_folder("run recipe.yaml --redo smaple", "smaple: is no stage; there is"),
    "keep of nothing": run_folder("run recipe.yaml --keep smaple", "smaple: is no stage; there is"),
    "keep of a half": run_folder(
        "run recipe.yaml sample.seed=1 --keep sample", "runs/small/sample: was never finished",
        prepare=unfinish,
    ),
    "redo, but a mistake": run_folder(
        "run recipe.yaml --redo collect", "questions.jsonl: holds no rows",
        prepare=lambda folder: (folder / "questions.jsonl").write_text(""),
    ),
    "a folder of something else": Mistake(
        ("mine: is not a run folder: it holds 'thesis.tex'; choose an empty",),
        "run recipe.yaml --run mine",
        lambda folder: ((folder / "mine").mkdir(), (folder / "mine" / "thesis.tex").touch()),
    ),
    "a file for a run folder": Mistake(
        ("questions.jsonl: cannot be made", "choose another --run folder"),
        "run recipe.yaml --run questions.jsonl",
    ),
    "a folder where none can be": Mistake(
        ("/proc/limbeck/run: cannot be made", "choose another --run folder"),
        "run recipe.yaml --run /proc/limbeck/run",
    ),
    "a file for a plan": Mistake(
        ("questions.jsonl: is no folder; choose another --run",),
        "plan recipe.yaml --run questions.jsonl",
    ),
    "a plan for another's folder": run_folder(
        "plan other.yaml --run runs/small",
        "runs/small: holds a run of 'small', not 'other'; choose",
        prepare=lambda f: (f / "other.yaml").write_text(
            RECIPE.replace("name: small", "name: other")
        ),
    ),
    "a recipe's name in no alphabet": Mistake(
        ("has a name that is not UTF-8; rename it",),
        "plan '\udcff.yaml'",
        lambda folder: (folder / "recipe.yaml").rename(folder / "\udcff.yaml"),
    ),
    "a run folder's name in no alphabet": Mistake(
        ("cannot be made (its name is not UTF-8); choose",), "run recipe.yaml --run '\udcff'"
    ),
    "a folder that is closed": Mistake(
        ("closed", "ermission denied", "choose"), "run recipe.yaml --run closed",
        lambda folder: (folder / "closed").mkdir(mode=0o555),
    ),
    "a GPU that is not there": Mistake(
        ("machine.device: there is no CUDA device here; take cpu",),
        "run recipe.yaml machine.device=cuda",
        env={"CUDA_VISIBLE_DEVICES": ""}, needs_torch=True,
    ),
    "show of no run": Mistake((".: is not a run folder; give",), "show ."),
    "show of nothing": Mistake(("nowhere: is not a run folder; give one",), "show nowhere"),
    "report of no run": Mistake(("nowhere: is not a run folder; give one",), "report nowhere"),
    "unknown trace": run_folder("show runs/small zzz", "runs/small: id 'zzz': no trace", "; take"),
    "ambiguous trace": run_folder("show runs/small {prefix}", "traces begin with it; take an id"),
    "broken description": run_folder(
        "show runs/small", "runs/small/recipe.json: ",
        prepare=lambda folder: (folder / "runs/small/recipe.json").write_text("{"),
    ),
    # -- the command line
    "no such recipe": Mistake(("recpie.yaml: no such recipe; check",), "plan recpie.yaml"),
    "a folder for a recipe": Mistake(("cannot be read (Is a directory); give",), "plan ."),
    "a recipe's name without end": Mistake(("no such recipe",), f"plan {'x' * 5000}"),
    "setting of an unknown stage": Mistake(
        ("recipe.yaml: stf.lr: no stage 'stf'; did you mean 'sft'?",),
        "plan recipe.yaml stf.lr=1e-3"
    ),
    "setting of an unknown field": Mistake(
        ("stages.sft.lrr: unknown key; did you mean 'lr'?",), "plan recipe.yaml sft.lrr=1e-3"
    ),
    "setting of a stage": Mistake(
        ("sft: is no setting of a stage; write",), "plan recipe.yaml sft=1"
    ),
    "setting without a value": Mistake(
        ("'sft.lr': is not KEY=VALUE; write",), "plan recipe.yaml sft.lr"
    ),
    "setting of nothing": Mistake(("'=3': is not KEY=VALUE; write",), "plan recipe.yaml =3"),
    "setting that is no YAML": Mistake(
        ("sft.lr:1: is not valid YAML",), "plan recipe.yaml sft.lr=["
    ),
    "setting of a wrong type": Mistake(
        ("stages.sft.lr: should be a valid number, not 'fast'",), "plan recipe.yaml sft.lr=fast"
    ),
    "unknown size": Mistake(
        ("recipe.yaml: has no size 'cj'; there is ci",), "plan recipe.yaml --size cj"
    ),
    "unknown command": Mistake(("No such command 'rnu'", "see limbeck --help"), "rnu recipe.yaml"),
    "unknown option": Mistake(
        ("No such option: --szie", "see limbeck"), "plan recipe.yaml --szie ci"
    ),
    "missing argument": Mistake(("Missing argument", "see limbeck --help"), "run"),
    "missing value": Mistake(("requires an argument; see limbeck",), "run recipe.yaml --run"),
}  # fmt: skip


def limbeck(
    folder: Path, arguments: list[str], env: dict[str, str], torch: bool
) -> tuple[int, str, str]:
    """The command line, in a folder, as somebody without a terminal would call it."""
    done = subprocess.run(
        [*closed_to_root(), sys.executable, "-m", "limbeck", *arguments],
        cwd=folder,
        env=environment(folder.parent, torch) | env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def environment(place: Path, torch: bool) -> dict[str, str]:
    """Ours; without torch, importing it fails, which is the quicker way."""
    ours = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **ours, **({} if torch else {"PYTHONPATH": str(place / "no_torch")})}


def closed_to_root() -> list[str]:
    """What makes a closed folder closed to root, too."""
    if os.geteuid() or not shutil.which("setpriv"):
        return []
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def tree(folder: Path) -> dict[str, str]:
    """The hash of every file, locks apart."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str
    before: dict[str, str]
    after: dict[str, str]


class Warm:
    """A process that has imported Limbeck and runs one command line after another."""

    def __init__(self, place: Path) -> None:
        self.process = subprocess.Popen(
            [*closed_to_root(), sys.executable, str(Path(__file__).with_name("warm.py"))],
            env=environment(place, torch=False),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def limbeck(self, folder: Path, arguments: list[str]) -> tuple[int, str, str]:
        assert self.process.stdin and self.process.stdout
        print(json.dumps([str(folder), arguments]), file=self.process.stdin, flush=True)
        code, stdout, stderr = json.loads(self.process.stdout.readline())
        return code, stdout, stderr

    def close(self) -> None:
        self.process.communicate()


def outcome(folder: Path, mistake: Mistake, warm: Warm | None) -> Outcome:
    """Makes the folder and the mistake; in a process of its own where there is no warm one."""
    shutil.copytree(DATA, folder)
    mistake.prepare(folder)
    arguments = [
        ambiguous(folder) if word == "{prefix}" else word for word in shlex.split(mistake.command)
    ]
    before = tree(folder)
    if warm is None:
        done = limbeck(folder, arguments, mistake.env, mistake.needs_torch)
    else:
        done = warm.limbeck(folder, arguments)
    return Outcome(*done, before, tree(folder))


def ambiguous(folder: Path) -> str:
    """A first letter that two traces' ids share: there are more traces than letters."""
    ids = tables.read_table(folder / "runs" / "small" / "sample" / "traces")["id"].to_pylist()
    letters = [name[0] for name in ids]
    return next(letter for letter in letters if letters.count(letter) > 1)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[Path, int, str, str]:
    """A whole run where everything but the recipe is strange."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("good") / "Über uns 模型 'x'"
    shutil.copytree(DATA, folder)
    (folder / "recipe.yaml").rename(folder / "das Rezept ✓.yaml")
    env = {"LANG": "C", "LC_ALL": "C", "HOME": "/proc/no/home", "TERM": "dumb"}
    env |= {"PYTHONIOENCODING": "ascii", "HF_HOME": "", "XDG_CACHE_HOME": ""}
    arguments = ["run", "das Rezept ✓.yaml", "--run", "läufe/a b/small"]
    return folder / "läufe" / "a b" / "small", *limbeck(folder, arguments, env, torch=True)


@pytest.fixture(scope="module")
def outcomes(good, tmp_path_factory) -> dict[str, Outcome]:
    """Every mistake's outcome; every fifteenth, and what is special, in a fresh process."""
    global FINISHED
    FINISHED = good[0]
    place = tmp_path_factory.mktemp("mistakes")
    (place / "no_torch").mkdir()
    (place / "no_torch" / "torch.py").write_text("raise ImportError('not needed here')\n")
    fresh, usual = [], []
    for number, (name, mistake) in enumerate(MISTAKES.items()):
        special = number % 15 == 0 or mistake.computes or mistake.needs_torch or mistake.env
        (fresh if special else usual).append((name, place / str(number)))

    def some(names: list[tuple[str, Path]], warm: Warm | None) -> dict[str, Outcome]:
        return {name: outcome(folder, MISTAKES[name], warm) for name, folder in names}

    warm = Warm(place)
    with ThreadPoolExecutor(3) as pool:
        parts = [(usual, warm), (fresh[::2], None), (fresh[1::2], None)]
        found = [pool.submit(some, *part) for part in parts]
        every = {name: made for part in found for name, made in part.result().items()}
    warm.close()
    return every


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_its_place_and_the_way_out(outcomes, name):
    mistake, found = MISTAKES[name], outcomes[name]
    lines = found.stderr.splitlines()
    assert len(lines) == mistake.lines, found.stderr
    assert found.code == 2
    for line in lines:
        assert re.fullmatch(r"limbeck: \S.*; \S.*", line), line
        assert line.isprintable()
        assert len(line) < 5500 if "without end" in name else len(line) < 600
    for words in mistake.says:
        assert words in found.stderr
    assert "Traceback" not in found.stdout + found.stderr
    kept = {path: found.after.get(path) for path in found.before}
    assert kept == found.before
    new = found.after.keys() - found.before.keys()
    if mistake.computes:
        assert all(path.startswith("runs/") for path in new)
    else:
        assert not new


def test_there_are_enough():
    assert len(MISTAKES) >= 60


def test_a_path_with_spaces_and_letters_without_home_and_terminal_works(good):
    run_dir, code, stdout, stderr = good
    assert code == 0, stderr
    assert "report: " in stdout
    assert (run_dir / "report.html").exists()
    assert "Traceback" not in stderr
    assert "\x1b" not in stdout + stderr


WORKS = {
    "byte order mark": lambda f: (f / "recipe.yaml").write_bytes(b"\xef\xbb\xbf" + RECIPE.encode()),
    "carriage returns": lambda f: (f / "recipe.yaml").write_text(RECIPE, newline="\r\n"),
    "rows with a byte order mark": lambda f: (f / "questions.jsonl").write_bytes(
        b"\xef\xbb\xbf" + (DATA / "questions.jsonl").read_bytes()
    ),
    "norway": lambda f: (f / "recipe.yaml").write_text(RECIPE.replace("name: small", "name: no")),
}


@pytest.mark.parametrize("name", WORKS)
def test_what_looks_odd_but_is_none_works(name, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(DATA, folder)
    WORKS[name](folder)
    code, stdout, stderr = limbeck(folder, ["plan", "recipe.yaml"], {}, torch=False)
    assert code == 0 and "limbeck: " not in stderr, stderr  # whether it was rehearsed before or not
    assert sum(line.split()[2:] == ["new"] for line in stdout.splitlines()) >= 5
    assert "in all" in stdout
