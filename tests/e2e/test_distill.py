"""recipes/distill.yaml with its names replaced by small things: every line of it runs."""

import gzip
import json
import os
from pathlib import Path

import pytest

import limbeck
from limbeck import store
from tests.engines.faulty_server import FaultyServer, completion

pytest.importorskip("torch")
pytest.importorskip("openai")

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere"))
GSM8K = DATA / "gsm8k" / "train.jsonl.gz"
needs_data = pytest.mark.skipif(
    not GSM8K.exists(), reason="set LIMBECK_TEST_DATA to the test data (gsm8k is not there)"
)
R1_TEMPLATE = (  # as DeepSeek ships its distilled models: the prompt already opens the thinking
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


def gsm8k(num):
    with gzip.open(GSM8K, "rt", encoding="utf-8") as file:
        return [json.loads(next(file)) for _ in range(num)]


def small_model(folder, architecture, template=None):
    from limbeck import models, newborn

    texts = [row["question"] + row["answer"] for row in gsm8k(200)]
    tokenizer = newborn.train_tokenizer(iter(texts), 512)
    if template:
        tokenizer.chat_template = template
    model = newborn.create_model(
        architecture,
        len(tokenizer),
        7,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        tie_word_embeddings=architecture != "llama",
    )
    models.save_model(model, tokenizer, folder)
    return str(folder)


def overrides(teacher, student):
    source = {"name": "file", "path": str(GSM8K), "answer_after": "####", "verifier": "number"}
    prompt = "{question}\n\nPut your final answer within \\boxed{}."
    return {
        "collect.source": {**source, "prompt": prompt},
        "collect.more": [],
        "collect.num": 12,
        "heldout.source": {
            **source, "path": str(GSM8K).replace("train", "test"), "prompt": prompt
        },
        "heldout.num": 4,
        "sample.engine": teacher,
        "sample.num_samples": 2,
        "sample.max_tokens": 64,
        "distilled.model": student,
        "distilled.batch_size": 4,
        "distilled.num_epochs": 1.0,
        "distilled.context": 1024,
        "eval_start.engine.model": student,
        "eval_start.num_samples": 1,
        "eval_start.max_tokens": 24,
        "eval_distilled.num_samples": 1,
        "eval_distilled.max_tokens": 24,
        "machine.threads": 1,
    }  # fmt: skip


class Gsm8kTeacher(FaultyServer):
    """A served reasoning teacher: the worked solution as reasoning; every other answer is wrong."""

    def reply_to(self, body, key):
        super().reply_to(body, key)
        asked = body["messages"][-1]["content"]
        row = next(row for row in gsm8k(12) if row["question"].strip() in asked)
        steps, _, answer = row["answer"].partition("####")
        wrong = body["seed"] % 2
        said = f"The answer is \\boxed{{{answer.strip()}{'7' if wrong else ''}}}."
        return completion(said, reasoning_content=steps.strip())


@needs_data
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_the_recipe_distills_a_served_teacher_into_a_small_student(tmp_path, architecture):
    student = small_model(tmp_path / "student", architecture)
    with Gsm8kTeacher() as server:
        teacher = {"name": "openai", "model": "r1", "base_url": server.url}
        settings = overrides(teacher, student)
        run = limbeck.run(ROOT / "recipes/distill.yaml", settings, run=tmp_path / "run")
        assert len(server.requests) == 24
        limbeck.run(ROOT / "recipes/distill.yaml", settings, run=tmp_path / "run")
        assert len(server.requests) == 24, "what was paid for is not asked again"
    said = {row["stage"]: row["summary"] for row in run.stages()}
    wrong = said["verify"]["reasons"].get("wrong", 0)
    assert said["verify"]["reasons"] == {"correct": 24 - wrong, "wrong": wrong}
    assert 0 < wrong < 24
    assert said["curate"]["dropped"]["wrong"] == wrong
    texts = [row[-1]["content"] for row in run.table("curate/dataset")["messages"].to_pylist()]
    assert all(text.startswith("<think>") and "\\boxed{" in text for text in texts)
    assert {row["name"] for row in run.results()} == {"distilled", "start"}
    tuned = store.read_json(run.path / "distilled/model/config.json")
    assert tuned["max_position_embeddings"] == 1024
    assert tuned["rope_parameters"]["rope_theta"] == 300000.0


@needs_data
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_a_local_teacher_whose_template_opens_the_thinking(tmp_path, architecture):
    teacher = small_model(tmp_path / "teacher", architecture, R1_TEMPLATE)
    settings = overrides({"name": "local", "model": teacher}, teacher)
    settings["curate.keep"] = []  # a random model is never right
    run = limbeck.run(ROOT / "recipes/distill.yaml", settings, run=tmp_path / "run")
    traces = run.table("sample/traces").to_pylist()
    assert len(traces) == 24
    assert all(trace["text"].startswith("<think>\n") for trace in traces)
    reasons = {row["stage"]: row["summary"] for row in run.stages()}["verify"]["reasons"]
    assert set(reasons) <= {"truncated", "wrong", "unparsed"}
    assert run.results()
