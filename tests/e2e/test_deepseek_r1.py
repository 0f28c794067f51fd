"""recipes/deepseek_r1/: planned whole, and run whole for two steps on shrunken random models.

Every file runs as it is, but for what no test can have: small models of the same architectures
stand in for the real ones, worked solutions for what a trained one would write, puzzles for public
questions, and few of everything.
"""

import json
from math import isnan
from pathlib import Path

import pytest

import limbeck
from limbeck import api, store
from limbeck import recipe as recipes

pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")
pytest.importorskip("openai")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "deepseek_r1"
STUDENTS = {  # the paper's, table 6: (architecture, head and embeddings are one, lr)
    "qwen_1_5b": ("qwen2", True, 1e-4),
    "qwen_7b": ("qwen2", False, 8e-5),
    "qwen_14b": ("qwen2", False, 7e-5),
    "qwen_32b": ("qwen2", False, 6e-5),
    "llama_8b": ("llama", False, 5e-5),
    "llama_70b": ("llama", False, 2e-5),
}
LLAMA_3_1 = {  # how its positions reach 131,072 tokens, of 8,192 that it was made for
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PUZZLES = {"name": "reasoning_gym", "tasks": {"chain_sum": {"min_terms": 2, "max_terms": 2}}}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # what lies beside a recipe is named from there


def talk():
    text = (FOLDER / "talk.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def shrunken(tmp_path_factory):
    """A folder with a small random model, by (architecture, whether its tables are tied)."""
    from limbeck import models, newborn

    rows = talk()
    texts = [f"{row['query']} {row['response']} \\boxed{{0123456789}}" for row in rows]
    tokenizer = newborn.train_tokenizer(iter(texts), 384)

    def make(architecture, is_tied):
        folder = tmp_path_factory.mktemp("models") / f"{architecture}-{is_tied}"
        model = newborn.create_model(
            architecture,
            len(tokenizer),
            7,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            max_position_embeddings=1024,
            tie_word_embeddings=is_tied,
            **({"rope_parameters": LLAMA_3_1} if architecture == "llama" else {}),
        )
        models.save_model(model, tokenizer, folder)
        return str(folder)

    return {kind: make(*kind) for kind in {kind[:2] for kind in STUDENTS.values()}}


@pytest.fixture(scope="module")
def everyday(tmp_path_factory):
    """Questions without an answer, as UltraFeedback has them."""
    path = tmp_path_factory.mktemp("data") / "everyday.jsonl"
    rows = [{"instruction": row["query"], "source": "ultrachat"} for row in talk()]
    path.write_text("\n".join(map(json.dumps, rows)))
    return {
        "name": "file",
        "path": str(path),
        "question": "instruction",
        "answer": "source",
        "verifier": "exact",
        "domain": "source",
    }


def two_steps(path, model):
    """Overrides that make every training of a recipe one of two steps, and all else small."""
    few = {
        "sft": {"batch_size": 25, "num_epochs": 1.0, "context": None, "rope_theta": None},
        "grpo": {"num_steps": 2, "questions_per_step": 2, "num_samples": 2, "steps_per_round": 2},
        "evaluate": {"num_samples": 1},
        "reward_model": {"batch_size": 2},
    }
    few["grpo"] |= {"max_tokens": 12, "engine": None, "batch_rows": 8}
    found = {"machine.threads": 1}
    for stage in recipes.load(path, size="ci").stages:
        settings = dict(few.get(stage.verb, {}))
        if "model" in type(stage.config).model_fields and not stage.config.model.startswith("./"):
            settings["model"] = model
        if stage.verb == "evaluate":
            written_by = stage.config.engine.knobs["model"]
            written_by = written_by if written_by.startswith("./") else model
            settings |= {"max_tokens": 12, "engine": {"name": "local", "model": written_by}}
        found |= {f"{stage.name}.{name}": value for name, value in settings.items()}
    return found


def steps_of(run, name):
    return store.read_jsonl(run.path / name / "metrics.jsonl")


@pytest.mark.parametrize("size", ["", "ci"])
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_is_planned_with_memory_time_and_money(path, size, tmp_path):
    found = api.estimate(path, size=size, run=tmp_path)
    assert {each.step.state for each in found.stages} == {"new"}
    if path.stem in ("exams", "mix"):
        return
    trained = [each for each in found.stages if each.step.stage.verb in ("sft", "distill", "grpo")]
    assert trained
    for each in trained:
        assert not each.notes, each.notes
        for figure in (each.flops, each.memory, each.seconds, each.cost):
            assert figure > 0
            assert not isnan(figure)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_has_the_papers_hyperparameters(name):
    config = next(s for s in recipes.load(FOLDER / f"{name}.yaml").stages if s.name == name).config
    assert config.lr == STUDENTS[name][2] == config.peak_lr(0)[0]
    assert (config.final_lr_ratio, config.batch_size, config.max_length) == (0.1, 64, 32_768)
    assert config.num_epochs in (2.0, 3.0)


def test_reinforcement_has_the_papers_hyperparameters():
    stages = {stage.name: stage.config for stage in recipes.load(FOLDER / "r1.yaml").stages}
    for name in ("r1_zero", "dev2", "scenarios", "r1"):
        config = stages[name]
        assert (config.num_samples, config.questions_per_step, config.steps_per_round) == (
            16,
            32,
            16,
        )
        assert (config.kl, config.reference_steps, config.max_tokens) == (0.001, 400, 32_768)
        assert config.objective.knobs["clip"] == 10.0
        assert config.temperature == (0.7 if name in ("scenarios", "r1") else 1.0)
        assert config.lr == (2e-6 if name == "r1_zero" else 3e-6)
    assert stages["scenarios"].num_steps + stages["r1"].num_steps == 1700
    assert (stages["dev1"].lr, stages["dev1"].final_lr_ratio) == (5e-5, 0.1)
    assert (stages["helpful"].lr, stages["helpful"].batch_size) == (6e-6, 256)
    whole = recipes.load(FOLDER / "r1_zero.yaml", size="v3_base")
    zero = {stage.name: stage.config for stage in whole.stages}
    assert zero["r1_zero"].num_steps + zero["longer"].num_steps == 10_400
    assert zero["r1_zero"].lr == zero["longer"].lr == 3e-6


def test_the_six_students_learn_from_rows_that_are_made_once(tmp_path, shrunken):
    folder = tmp_path / "run"
    for name, (architecture, is_tied, _) in STUDENTS.items():
        path = FOLDER / f"{name}.yaml"
        settings = two_steps(path, shrunken[architecture, is_tied])
        if name == "qwen_1_5b":
            settings |= {f"{name}.context": 2048, f"{name}.rope_theta": 300_000.0}
        before = (folder / "mix" / "stage.json").stat().st_mtime if folder.exists() else None
        run = limbeck.run(path, settings, size="ci", run=folder)
        made = (folder / "mix" / "stage.json").stat().st_mtime
        assert before in (None, made)
        summary = {row["stage"]: row["summary"] for row in run.stages()}[name]
        assert summary["num_steps"] == 2
        config = store.read_json(folder / name / "model" / "config.json")
        assert config["model_type"] == architecture
        assert config["tie_word_embeddings"] == is_tied
        told = run.compared()
        assert name in {row["name"] for row in told["results"]}
        beside = {(row["paper_name"], row["split"]) for row in told["published"]}
        paper = name.replace("_1_5b", "_1.5b").replace("_", "-")
        assert {(model.lower(), split) for model, split in beside} == {
            (f"deepseek-r1-distill-{paper}", "aime_2024"),
            (f"deepseek-r1-distill-{paper}", "math_500"),
        }
        forgotten = {(row["after"], row["before"]) for row in told["forgetting"]}
        assert forgotten == ({("qwen_1_5b", "base")} if name == "qwen_1_5b" else set())
    stretched = store.read_json(folder / "qwen_1_5b" / "model" / "config.json")
    assert stretched["max_position_embeddings"] == 2048
    assert stretched["rope_parameters"]["rope_theta"] == 300_000.0


def test_r1_zero_and_then_r1_stage_by_stage(tmp_path, shrunken, everyday):
    model = shrunken["qwen2", False]
    path = FOLDER / "r1_zero.yaml"
    questions = {"questions.source": PUZZLES, "questions.more": [], "questions.num": 12}
    settings = two_steps(path, model) | questions
    zero = limbeck.run(path, settings, size="ci", run=tmp_path / "run")
    rollouts = zero.table("r1_zero/rollouts")
    assert rollouts.num_rows == 8
    assert {row["name"] for row in zero.results()} == {"r1_zero"}

    path = FOLDER / "r1.yaml"
    worked = {"engine": "worked", "num_samples": 2}
    small = {
        "cold_questions": {"source": {**PUZZLES, "seed": 1}, "num": 30},
        "zero_traces": worked,
        "rewritten": {"engine": "readable"},
        "dev1": {"batch_size": 15},
        "dev3": {"batch_size": 12},
        "dev2_traces": worked,
        "general": {
            "source": {"name": "file", "path": str(FOLDER / "talk.jsonl")},
            "messages": None,
            "question": "query",
            "answer": "response",
            "engine": "tests.e2e.everyday:answerer",
            "num": 12,
        },
        "everyday": {"source": everyday, "num": 12},
        "everyday_answers": {"engine": "tests.e2e.everyday:answerer"},
        "pairs": {"judge": "tests.e2e.everyday:judge"},
        "all_questions": {"source": everyday, "more": [PUZZLES], "num": 16},
    }
    settings = two_steps(path, model) | questions
    settings |= {
        f"{stage}.{key}": value for stage, own in small.items() for key, value in own.items()
    }
    run = limbeck.run(path, settings, size="ci", run=tmp_path / "run")
    assert {row["name"] for row in run.results()} == {"zero", "dev1", "dev2", "dev3", "r1"}
    summary = {row["stage"]: row["summary"] for row in run.stages()}
    for name in ("dev1", "dev2", "dev3", "helpful", "scenarios", "r1"):
        assert summary[name]["num_steps"] == 2, name
    asked = {row["rewards"].get("reward_model") is None for row in steps_of(run, "r1")}
    assert asked == {False}, "everyday questions earn what the reward model says"


def test_a_student_is_made_smaller_judged_and_given_out(tmp_path, shrunken):
    path = FOLDER / "compress.yaml"
    settings = two_steps(path, shrunken["qwen2", False]) | {
        "narrow.method": {"name": "width", "heads": False, "multiple": 8},
        "int4.group_size": 8,
    }
    run = limbeck.run(path, settings, size="ci", run=tmp_path / "run")
    summary = {row["stage"]: row["summary"] for row in run.stages()}
    assert summary["narrow"]["sparsity"] == pytest.approx(0.2)
    assert summary["sparse"]["sparsity"] == 0.5
    assert summary["narrow_again"]["num_steps"] == summary["sparse_again"]["num_steps"] == 2
    assert (summary["pruned"]["chosen"], summary["quantized"]["chosen"]) == ("narrow", "int4")
    bits = {name: summary[name]["bits_per_weight"] for name in ("int4", "int8", "fp8")}
    assert bits["int4"] < bits["int8"] < 16
    assert bits["int4"] < bits["fp8"] < 16
    files = sorted(file.stem for file in (run.path / "gguf" / "gguf").glob("*.gguf"))
    assert files == ["f16", "q4_0", "q8_0"]
    assert (run.path / "folder" / "model" / "README.md").exists()
    config = store.read_json(run.path / "folder" / "model" / "config.json")
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    names = {"original", "narrow", "sparse", "int4", "int8", "fp8"}
    assert {row["name"] for row in run.results()} == names
    assert {(row["a"], row["b"]) for row in run.compared()["tests"]} == {
        (name, "original") for name in names - {"original"}
    }
