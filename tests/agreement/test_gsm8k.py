"""GSM8K: lm_eval over Limbeck's server, and Limbeck's own evaluation, of the same answers.

The answers are those of a model of 175 billion parameters with a verifier (Cobbe et al. 2021,
arXiv:2110.14168), 58 % of them right. They end in `A: 5`; here, as in the data set's own solutions
and as lm_eval's strict match wants it, in `#### 5`.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest
import yaml

import limbeck
from limbeck import newborn, tables
from tests.serve.echo import serving

from . import recorded

pytestmark = recorded.needs("gsm8k")
PROMPT = "Question: {question}\nAnswer:"  # lm_eval's
MODEL, NUM = "175b_verification", 120
FILTERS = ("strict-match", "flexible-extract")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """(questions with their gold solutions, the table of what was answered, labels by question)."""
    folder = tmp_path_factory.mktemp("gsm8k")
    golds = recorded.read("gsm8k/test.jsonl.gz")
    said = [r for r in recorded.read("gsm8k/model_solutions.jsonl.gz") if r["model"] == MODEL][:NUM]
    rows = [
        {
            "asked": PROMPT.format(question=row["question"]),
            "text": row["solution"].replace("\nA: ", "\n#### "),
        }
        for row in said
    ]
    asked = recorded.write(folder / "asked.jsonl", [golds[row["idx"]] for row in said])
    labels = {row["question"]: row["is_correct"] for row in said}
    return asked, recorded.write(folder / "said.jsonl", rows), labels


@pytest.fixture(scope="module")
def ours(answers, tmp_path_factory):
    """Limbeck's verdict on the answer to each question."""
    asked, said, _ = answers
    stages = {
        "collect": {"source": {"name": "gsm8k", "path": asked, "prompt": PROMPT}, "num": NUM},
        "evaluate": {
            "engine": {"name": "replay", "path": said, "problem": "asked"},
            "problems": {"gsm8k": "./collect/problems"},
            "num_samples": 0,
        },
    }
    run = limbeck.run({"stages": stages}, run=tmp_path_factory.mktemp("ours") / "run")
    problems = {p.id: p.question for p in tables.read_problems(run.path / "collect" / "problems")}
    scores = tables.read_table(run.path / "evaluate" / "scores").to_pylist()
    return {
        problems[row["problem_id"]]: row["value"] == 1.0
        for row in scores
        if row["metric"] == "greedy"
    }


@pytest.fixture(scope="module")
def theirs(answers, tmp_path_factory):
    """lm_eval's verdict by its filters and the question, and what the server told it."""
    lm_eval = pytest.importorskip("lm_eval")
    asked, said, _ = answers
    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    task |= {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": asked}},
        "num_fewshot": 0,
    }
    for key in ("tag", "training_split", "fewshot_split"):
        task.pop(key)
    folder = tmp_path_factory.mktemp("played")
    texts = (text for row in recorded.read("gsm8k/test.jsonl.gz")[:200] for text in row.values())
    newborn.train_tokenizer(texts, 1000).save_pretrained(folder / "tokenizer")
    with serving("-m", "tests.agreement.played", str(folder / "tokenizer"), said) as server:
        results = lm_eval.simple_evaluate(
            model="local-chat-completions",
            model_args={
                "model": "played",
                "base_url": f"{server.url}/v1/chat/completions",
                "num_concurrent": 8,
                "max_retries": 1,
            },
            gen_kwargs={"max_gen_toks": 1024},
            tasks=[task],
            apply_chat_template=True,
            log_samples=True,
            bootstrap_iters=0,
        )
    return results["samples"]["gsm8k"]


def test_the_server_says_what_was_recorded(theirs, answers):
    _, said, _ = answers
    written = {row["asked"]: row["text"] for row in recorded.read(said)}
    for sample in theirs:
        question = PROMPT.format(question=sample["doc"]["question"])
        assert sample["resps"][0][0].strip() == written[question].strip()


@pytest.mark.parametrize("name", FILTERS)
def test_both_agree_on_every_answer(ours, theirs, name):
    found = {
        PROMPT.format(question=sample["doc"]["question"]): sample["exact_match"] == 1
        for sample in theirs
        if sample["filter"] == name
    }
    assert len(found) == NUM
    assert found == ours


def test_a_third_to_two_thirds_are_right_as_they_are_labelled(ours, answers):
    _, _, labels = answers
    assert {PROMPT.format(question=question): right for question, right in labels.items()} == ours
    assert 0.3 < fmean(ours.values()) < 0.7
