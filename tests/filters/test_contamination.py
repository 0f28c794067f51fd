"""Decontamination: planted questions, MATH-500 inside MATH's test set, prompts, hits by name."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from limbeck import progress, tables
from limbeck.filters.contamination import Evaluation, decontaminated
from limbeck.problems import make_problem

HELD = (
    "A train of length $120$ meters passes a pole in 8 seconds; how fast is it in km per hour?",
    "Compute $\\sqrt{2x+3}$ for $x = 11$.",  # 7 words
    "What is $2+3$?",  # 4 words
    "如图，在三角形ABC中，AB=3，BC=4，求AC的长",
)
PLAIN = "Fred has twelve red apples and gives a third of them to each of his two younger sisters."


@pytest.fixture
def held(tmp_path):
    return table(tmp_path / "held", HELD)


def table(folder, questions):
    problems = [asdict(make_problem(q, "4", verifier="number")) for q in dict.fromkeys(questions)]
    tables.write_part(folder, tables.to_table("problems", problems))
    return str(folder)


def batch(questions, texts):
    names = [f"t{number}" for number in range(len(questions))]
    columns = {"id": names, "problem_id": names, "question": questions, "text": texts}
    return pa.record_batch({k: pa.array(v, pa.string()) for k, v in columns.items()})


def said(questions, texts, **knobs):
    (reasons,) = decontaminated([batch(questions, texts)], **knobs)
    return [reason is not None for reason in reasons]


@pytest.mark.parametrize(
    "question",
    [
        HELD[0],
        HELD[0].upper().replace(" ", "\n"),
        "Answer in a box.  " + HELD[0].replace("$", "").replace(";", " --") + " Think first.",
        HELD[0].replace("120$ meters", "120\\,\\text{meters}$"),
        "So: a train of length 120 meters passes a pole in 8 s, and then?",  # 11 words of it
        HELD[1],
        "Compute \\(\\sqrt{2 x + 3}\\,\\) for x=11",
        "Please solve. " + HELD[1] + " Put it in a box.",
        HELD[2],
        "what is 2+3",
        "如图, 在三角形 $ABC$ 中, $AB=3$, $BC=4$, 求 $AC$ 的长",
    ],
)
def test_questions_that_were_seen(held, question):
    assert said([PLAIN, question], ["", ""], problems=[held]) == [False, True]


@pytest.mark.parametrize(
    "question",
    [
        PLAIN,
        "A train of length 300 meters passes a bridge in 8 seconds; how long is the bridge?",
        "Compute $\\sqrt{2x+3}$ for $x = 12$.",
        "What is $2+3+4$?",  # too short a question to be looked for in another
        "",
    ],
)
def test_questions_of_ones_own(held, question):
    assert said([question], [""], problems=[held]) == [False]


def test_texts(held):
    texts = [f"<think>The task: {HELD[0]} Well.</think>54", f"So {HELD[1]} is 5", "4", ""]
    questions = [PLAIN] * 4
    assert said(questions, texts, problems=[held]) == [True, False, False, False]
    assert said(questions, texts, problems=[held], of="question") == [False] * 4
    assert said([HELD[0]] * 2, texts[1:3], problems=[held], of="text") == [False] * 2


def test_the_first_hits_are_told_by_name(held, monkeypatch):
    told = []
    monkeypatch.setattr(progress, "say", told.append)
    questions = [PLAIN, HELD[0], *[HELD[1]] * 9]
    list(decontaminated([batch(questions, questions)] * 2, problems=[held]))
    ids = [make_problem(question, "4", verifier="number").id for question in HELD]
    assert len(told) == 5
    assert "trace t1 " in told[0] and ids[0] in told[0]
    assert "trace t2 " in told[1] and ids[1] in told[1]


def test_nothing_to_compare_with(tmp_path):
    empty = table(tmp_path / "empty", ["???"])
    assert said([PLAIN, "???"], [PLAIN, ""], problems=[empty]) == [False, False]
    assert list(decontaminated([], problems=[empty])) == []


def test_a_prompt_that_all_share_contaminates_nobody(tmp_path):
    prompt = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    asked = [f"How many of the {n} {thing} are left over?" for n in range(9) for thing in "abcdef"]
    held = table(tmp_path / "held", [prompt.format(question) for question in [*asked, HELD[0]]])
    mine = [prompt.format(PLAIN), prompt.format(asked[7]), asked[7], HELD[0]]
    assert said(mine, [""] * 4, problems=[held]) == [False, True, True, True]


def test_a_turn_of_phrase_that_several_share_contaminates_nobody(tmp_path):
    end = (
        "The result is $m/n$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
    )
    asked = ["A die is cast twice.", "Two circles touch.", "Let $x$ be real.", "A cube is cut."]
    held = table(tmp_path / "held", [f"{start} {end}" for start in [*asked, "A coin is bent."]])
    mine = [f"{start} {end}" for start in ["Six towns lie on a ring.", *asked]]
    assert said(mine, [""] * 5, problems=[held]) == [False, True, True, True, True]


# -- real questions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    if "LIMBECK_TEST_DATA" not in os.environ:
        pytest.skip("LIMBECK_TEST_DATA is not set: no real questions here")
    return Path(os.environ["LIMBECK_TEST_DATA"])


def rows_of(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(("n", "least_precision"), [(10, 0.65), (13, 0.8)])
def test_math_500_in_the_test_set_of_math(data, tmp_path, n, least_precision):
    held = table(tmp_path / "held", [r["problem"] for r in rows_of(data / "math/math500.jsonl")])
    rows = rows_of(data / "math/math_test.jsonl.gz")
    hidden = np.array([row["in_math500"] for row in rows])
    hits = Evaluation([held], n).hits_of_questions(pa.array([r["problem"] for r in rows])) >= 0
    precision = hidden[hits].mean()
    print(f"n {n}: recall {hits[hidden].mean():.4f}, precision {precision:.4f}")
    assert hits[hidden].all()
    # The others share whole phrases with it: MATH asks the same of many numbers and figures.
    assert precision >= least_precision


def test_other_peoples_questions_and_traces(data, tmp_path):
    held = table(tmp_path / "held", [r["problem"] for r in rows_of(data / "math/math500.jsonl")])
    evaluation = Evaluation([held], 10)
    school = [row["question"] for row in rows_of(data / "gsm8k/train.jsonl.gz")]
    assert np.mean(evaluation.hits_of_questions(pa.array(school)) >= 0) <= 0.001
    traces = [r["response"] for r in rows_of(data / "reasoning_traces/r1_distill_general.jsonl.gz")]
    assert np.mean(evaluation.hits(pa.array(traces[::5])) >= 0) <= 0.02
    repeated = pa.array([f"{trace[:900]} {HELD[0]} {trace[900:]}" for trace in traces[:50]])
    assert (Evaluation([table(tmp_path / "own", HELD)], 10).hits(repeated) >= 0).all()
