"""The audit: labels read, errors counted, peers asked, and a verdict on the verifiers."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from limbeck import audit
from limbeck.audit import hostile, labelled, peers
from limbeck.audit.result import Audit, Row, Score
from limbeck.audit.sets import SETS
from limbeck.errors import UserError
from limbeck.verifiers.judging import judge

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")

MODEL_ANSWERS = [
    {"gold": "5", "prediction": "5", "equal": True},
    {"gold": "5", "prediction": "6", "equal": False},
    {"gold": "5", "prediction": "7", "equal": True},
    {"gold": r"29,\!322", "prediction": "29322", "equal": False},
    {"gold": "5", "prediction": "5.0", "equal": False},
    {"gold": "5", "prediction": "8", "equal": None},
]
SKY = [
    ("<|begin_of_thought|>1<|end_of_thought|><|begin_of_solution|>5<|end_of_solution|>", True),
    ("<|begin_of_thought|>it is 5", False),
]
GSM8K = [("16 + 2 = <<16+2=18>>18\nA: 18", True), ("16 - 3 = <<16-3=13>>13\nA: 13", False)]
MMLU = [
    ("mathstral-7B", "The answer is (B).", "B"),
    ("mathstral-7B", "and so on", "B"),
    ("Mixtral", "and so on", None),
]


@pytest.fixture
def data(tmp_path):
    """A folder laid out as the real one, with a few rows of some sets."""
    answers = [{"source": "s", "trace_id": f"a{n}", **row} for n, row in enumerate(MODEL_ANSWERS)]
    write(tmp_path / "verifier_pairs" / "model_answers.jsonl", answers)
    traces = [
        {"id": f"s{n}", "problem": "?", "gold": "5", "response": text, "correct_checked": label}
        for n, (text, label) in enumerate(SKY)
    ]
    write(tmp_path / "reasoning_traces" / "sky_t1_aime24.jsonl.gz", traces)
    solutions = [
        {
            "idx": n,
            "model": "m",
            "question": "?",
            "ground_truth": "6 * 3 = 18\nA: 18",
            "solution": text,
            "is_correct": label,
        }
        for n, (text, label) in enumerate(GSM8K)
    ]
    write(tmp_path / "gsm8k" / "model_solutions.jsonl.gz", solutions)
    outputs = [
        {
            "question_id": n,
            "question": "?",
            "options": ["1", "2"],
            "answer": "B",
            "model": model,
            "generated_text": text,
            "pred": letter,
        }
        for n, (model, text, letter) in enumerate(MMLU)
    ]
    write(tmp_path / "mmlu_pro_outputs" / "outputs.jsonl.gz", outputs)
    return tmp_path


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(peers, "installed", list)


NAMES = ["model_answers", "sky_t1_aime24", "gsm8k", "mmlu_pro_outputs"]


def test_errors_are_counted_and_listed(data, alone):
    found = audit.run(data, sets=NAMES)
    rows = {(row.verifier, row.set): row for row in found.counts}
    answers = rows["math", "model_answers"]
    assert answers.ours == Score(5, false_accepts=2, false_rejects=1, undecided=0)
    assert answers.disputed["ours"] == Score(1, false_accepts=1)
    assert answers.unlabelled == 1
    assert rows["math", "sky_t1_aime24"].ours == Score(2)
    assert rows["number", "gsm8k"].ours == rows["math", "gsm8k"].ours == Score(2)
    assert rows["choice", "mmlu_pro_outputs"].ours == Score(1)
    assert rows["choice", "mmlu_pro_outputs"].unlabelled == 2
    missed = {(miss.id, miss.extracted, miss.label, miss.disputed) for miss in found.misses}
    assert missed == {
        ("a2", "7", True, False),
        ("a3", "29322", False, True),
        ("a4", "5.0", False, False),
    }
    assert found.listing().count("\n") == 2
    assert "gold '5'  extracted '7'  wrong, labelled right" in found.listing()


def test_the_table_tells_what_was_not_asked(data, alone):
    found = audit.run(data, sets=NAMES)
    assert found.holds() is None
    text = found.text()
    assert "all checked labels" in text
    assert "cannot be told from these sets" in text
    row = found.rows[0]
    assert (row["verifier"], row["set"], row["rows"]) == ("math", "model_answers", 5)
    assert row["math_verify"] is None
    assert row["trl"] is None
    json.dumps(found.rows)


def test_peers_are_asked_about_mathematics_only(data, monkeypatch):
    asked = []

    def accepts(peer, problem, trace):
        asked.append((peer, trace.id))
        return {"math_verify": True, "trl": None}[peer]

    monkeypatch.setattr(peers, "installed", lambda: ["math_verify", "trl"])
    monkeypatch.setattr(peers, "accepts", accepts)
    found = audit.run(data, sets=["model_answers", "mmlu_pro_outputs"])
    assert len(asked) == 12
    row = found.counts[0]
    assert row.peers["math_verify"] == Score(5, false_accepts=3)
    assert row.peers["trl"] == Score(5, false_rejects=2, undecided=5)
    assert not found.counts[1].peers
    assert found.rows[0]["trl"]["undecided"] == 5


def test_a_model_is_measured_as_a_judge(data):
    told = list(audit.judged(data, "tests.stages.scripted_judge:connect", ["gsm8k"]))
    assert len(told) == 1
    assert told[0].startswith("gsm8k: ")


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("nope", "judge: no engine is called 'nope'"),
        ("openai", "judge: model: is required; add it"),
        ("[1]", "judge: is no engine"),
        ("{name: openai", "judge:1: is not valid YAML"),
    ],
)
def test_a_judge_that_there_is_not_is_the_users_mistake(data, engine, says):
    with pytest.raises(UserError, match=f"^{re.escape(says)}"):
        list(audit.judged(data, engine, ["gsm8k"]))


@pytest.mark.parametrize("peer", peers.PACKAGES)
def test_a_peer_reads_the_whole_response(peer):
    pytest.importorskip("math_verify")
    pytest.importorskip(peer)

    def ask(gold, text):
        problem, trace, _ = labelled.labelled("id", "?", gold, text, True)
        return peers.accepts(peer, problem, trace)

    assert ask(r"\frac{1}{2}", r"<think>x</think> so \boxed{0.5}") is True
    assert ask(r"\$36", r"\boxed{36}") is True
    assert ask("$x+1$", r"\boxed{x+2}") is False


def row(accepts, rejects, peer, checked=True, hostile=False):
    found = Row("math", "s", "", checked, hostile, ours=Score(9, accepts, rejects))
    if peer:
        found.peers["math_verify"] = Score(9, *peer)
    return found


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ([row(1, 2, (2, 4)), row(0, 3, None, False, True)], True),
        ([row(2, 2, (2, 4)), row(0, 0, None, False, True)], False),
        ([row(1, 3, (2, 4)), row(0, 0, None, False, True)], False),
        ([row(0, 0, (2, 4)), row(1, 0, None, False, True)], False),
        ([row(0, 0, (2, 4)), row(9, 9, (0, 0), False), row(0, 0, None, False, True)], True),
        ([row(0, 0, (2, 4))], None),
        ([row(0, 0, None), row(0, 0, None, False, True)], None),
        ([row(0, 0, (2, 4)), row(0, 0, None), row(0, 0, None, False, True)], None),
    ],
)
def test_the_target(rows, holds):
    assert Audit(rows, []).holds() is holds


def test_hostile_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(hostile, "FOLDER", tmp_path)
    rows = [
        {"id": "1", "family": "spam", "verifier": "number", "gold": "5", "expect": "reject",
         "text": r"{repeat}\boxed{6}", "repeat": {"what": r"\boxed{5} ", "times": 1000}},
        {"id": "2", "family": "fair", "verifier": {"name": "exact", "ignore_case": True},
         "gold": "sun", "text": "SUN", "expect": "accept"},
        {"id": "3", "family": "cut", "verifier": "choice", "gold": "B", "text": "The answer is A",
         "finish": "length", "problem": {"meta": {"choices": ["1", "2"]}}, "expect": "reject"},
    ]  # fmt: skip
    write(tmp_path / "answers.jsonl", rows)
    cases = list(hostile.answers(tmp_path))
    assert [(problem.domain, label) for problem, _, label in cases] == [
        ("spam", False),
        ("fair", True),
        ("cut", False),
    ]
    assert [judge(problem, trace).reason for problem, trace, _ in cases] == [
        "wrong",
        "correct",
        "truncated",
    ]
    assert len(cases[0][1].text) > 9000
    tests = [{"stdin": "", "stdout": "1"}]
    write(
        tmp_path / "programs.jsonl",
        [{"id": "4", "family": "exit", "tests": tests, "program": "exit(0)", "expect": "reject"}],
    )
    [(problem, trace, label)] = hostile.programs(tmp_path)
    assert (problem.verifier, problem.meta["tests"], trace.text) == ("code", tests, "exit(0)")
    assert label is False


def test_families_stand_in_rows_of_their_own(data, monkeypatch, alone):
    def answers(_):
        for family, gold, text in (("one", "5", "6"), ("two", "5", "5"), ("one", "5", "5")):
            problem, trace, _ = labelled.labelled("id", "?", gold, text, False, "number")
            yield problem.__class__(**{**vars(problem), "domain": family}), trace, False

    hostile_set = next(found for found in SETS if found.name == "hostile_answers")
    monkeypatch.setattr(audit, "choose", lambda *_: [hostile_set.__class__(
        "hostile_answers", "", answers, (), peers=False, hostile=True
    )])  # fmt: skip
    found = audit.run(data)
    assert {row.family: row.ours for row in found.counts} == {
        "one": Score(2, 1),
        "two": Score(1, 1),
    }
    assert found.holds() is False
    assert "hostile set, by family" in found.text()


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["gsm9k"], "did you mean 'gsm8k'"),
        (["pairs"], "has no verifier_pairs/pairs.jsonl"),
    ],
)
def test_a_set_that_is_not_to_be_had(data, sets, says):
    with pytest.raises(UserError, match=says):
        audit.run(data, sets=sets)


def test_a_folder_without_sets(tmp_path):
    with pytest.raises(UserError, match="set LIMBECK_TEST_DATA"):
        audit.run(tmp_path)


def test_the_folder_is_named_or_set(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_TEST_DATA", str(tmp_path))
    assert audit.folder(None) == tmp_path
    with pytest.raises(UserError, match="is no folder"):
        audit.folder(tmp_path / "nowhere")
    monkeypatch.delenv("LIMBECK_TEST_DATA")
    with pytest.raises(UserError, match="set LIMBECK_TEST_DATA"):
        audit.folder(None)


@needs_data
def test_every_set_can_be_read():
    for found in SETS:
        if (DATA / found.path).exists() and not found.hostile:
            problem, trace, label = next(iter(found.read(DATA)))
            assert trace.text.strip()
            assert problem.answer
            assert label in (True, False, None)


@needs_data
def test_answers_in_another_notation(alone):
    [found] = audit.run(DATA, sets=["math500_gpt_answers"]).counts
    assert (found.ours.rows, found.unlabelled, found.ours.false_accepts) == (483, 17, 0)
    assert found.ours.false_rejects <= 6  # half of math-verify's
