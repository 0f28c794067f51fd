"""SQuAD by its official rules, and its questions from the official files."""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck import scoring
from limbeck.engines import gold
from limbeck.errors import UserError
from limbeck.problems import heldout_fraction, make_problem
from limbeck.problems.squad import around, check, read, sentence_bounds
from limbeck.stages import evaluate
from limbeck.types import Request, Sampling, Trace
from limbeck.verifiers import squad
from limbeck.verifiers.judging import gradable, judge

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere")) / "squad"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="set LIMBECK_TEST_DATA to the test data")
GOLDS = ["the Denver Broncos", "Denver Broncos", "Broncos"]


def verify(answer, golds=GOLDS, finish="stop", **knobs):
    problem = make_problem("?", golds[0], verifier="squad", meta={"answers": list(golds)})
    return squad.verify(problem, Trace("t", "p", 0, answer, finish, "model"), **knobs)


@pytest.mark.parametrize(
    ("answer", "correct", "score"),
    [
        ("Denver Broncos", True, 1.0),
        (" an  denver-broncos!", False, 0.0),  # the hyphen goes, and leaves one word
        ("THE Broncos.", True, 1.0),
        ("<think>Carolina?</think>The Denver Broncos", True, 1.0),
        ("<think>Denver Broncos</think>Carolina", False, 0.0),
        ("the Denver team", False, 0.5),  # of 2 words 1 is right; so is 1 of Denver Broncos' 2
        ("Broncos Broncos", False, 2 / 3),  # a word counts as often as it is in both
        ("It was the Denver Broncos that won", False, 0.5),  # holding a gold answer is not enough
        ("Denver", False, 2 / 3),  # nor is being held by one
    ],
)
def test_the_official_rules_over_all_gold_answers(answer, correct, score):
    verdict = verify(answer)
    assert (verdict.correct, verdict.score) == (correct, pytest.approx(score))
    assert verdict.reason == ("correct" if correct else "wrong")


def test_each_gold_answer_counts_and_not_only_the_first():
    assert all(verify(gold).correct for gold in GOLDS)
    assert not verify("Broncos", golds=GOLDS[:1]).correct
    assert verify("Broncos", golds=GOLDS[:1]).score == pytest.approx(2 / 3)
    assert verify("Broncos", golds=GOLDS[:2]).score == pytest.approx(2 / 3)


@pytest.mark.parametrize("answer", ["", "  \n", "\u200b", "<think>Denver Broncos</think>"])
def test_no_answer_is_a_wrong_one(answer):
    verdict = verify(answer)
    assert (verdict.correct, verdict.score, verdict.reason) == (False, 0.0, "unparsed")


def test_what_was_not_finished_or_not_written():
    cut_off = verify("Denver Broncos", finish="length")
    assert (cut_off.correct, cut_off.score, cut_off.reason) == (False, 0.0, "truncated")
    assert verify("Denver Broncos", finish="length", answer_in="anywhere").correct
    failed = verify("", finish="error")
    assert (failed.correct, failed.score, failed.reason) == (None, None, "error")
    assert verify("x", golds=[" "]).reason == "bad_gold"


@pytest.fixture(scope="module")
def dev():
    return [*read(path=str(DATA / "dev-v1.1.json.gz"))]


@needs_data
@pytest.mark.parametrize(
    ("name", "exact", "f1"),
    [("bert", 86.2062, 92.1956), ("logistic_regression_baseline", 40.1419, 50.9815)],
)
def test_systems_get_their_published_scores(name, exact, f1, dev):
    packed = (DATA / f"predictions_{name}.json.gz").read_bytes()
    predictions = json.loads(gzip.decompress(packed))
    verdicts = [
        squad.verify(problem, Trace("", "", 0, predictions.get(problem.meta["id"], ""), "stop", ""))
        for problem in dev
    ]
    assert len(verdicts) == 10_570
    assert round(100 * sum(bool(v.correct) for v in verdicts) / len(verdicts), 4) == exact
    assert round(100 * sum(v.score for v in verdicts) / len(verdicts), 4) == f1


@needs_data
def test_answers_are_all_kept_and_stand_in_what_contexts_are_cut_to(dev):
    whole = {problem.meta["id"]: problem.meta["answers"] for problem in dev}
    cut = [*read(path=str(DATA / "dev-v1.1.json.gz"), sentences=1)]
    assert all(problem.meta["answers"] == whole[problem.meta["id"]] for problem in cut)
    assert all(problem.answer in problem.question for problem in cut)
    assert all(gradable(problem).correct for problem in cut[::50])
    assert sum(len(p.question) for p in cut) < 0.4 * sum(len(p.question) for p in dev)


@needs_data
def test_pages_ask_for_the_text_itself():
    path = str(DATA / "train_subset.parquet")
    page, asked = (next(read(path=path, sentences=1, repeat=again)) for again in (True, False))
    context = asked.question.split("\n\n")[0]
    assert page.question == f"{context}\n\nRepeat the text."
    assert (page.answer, page.meta["answers"]) == (context, [context])


@needs_data
def test_an_article_is_on_one_side_of_a_split():
    shares = defaultdict(set)
    for problem in read(path=str(DATA / "train_subset.parquet"), sentences=2):
        shares[problem.meta["group"]].add(heldout_fraction(problem))
    assert len(shares) == 36 and all(len(found) == 1 for found in shares.values())
    assert len({share for found in shares.values() for share in found}) == 36


CONTEXT = "Dr. J. Smith of the U.S. Army met him in No. 5. He left, e.g. by car! It cost 3.5 m. So."


def test_sentences():
    found = [CONTEXT[begin:end] for begin, end in sentence_bounds(CONTEXT)]
    assert "".join(found) == CONTEXT
    assert [text[:6] for text in found] == ["Dr. J.", "He lef", "It cos"]  # `m. So` may be a name
    assert sentence_bounds("") == [(0, 0)]
    assert [*map(len, ("A cat? Yes!", "no end"))] == [11, 6]
    assert sentence_bounds("A cat? Yes!") == [(0, 7), (7, 11)]


def test_a_context_is_cut_around_its_answer():
    text = "One is here. Two is here. Three is here. Four is here."
    begin = text.index("Three")
    assert around(text, begin, begin + 5, 1) == "Three is here."
    assert around(text, begin, begin + 5, 2) == "Two is here. Three is here."
    assert around(text, begin, begin + 5, 3) == "Two is here. Three is here. Four is here."
    assert around(text, begin, begin + 5, 9) == text
    across = text.index("Two")
    assert around(text, across, begin + 5, 1) == "Two is here. Three is here."
    assert around(text, 0, 3, 2) == "One is here. Two is here."


def question(number, **more):
    answers = {"text": ["Two", "Two is"], "answer_start": [13, 13]}
    return {"id": f"q{number}", "question": f"Which {number}?", "answers": answers, **more}


TEXT = "One is here. Two is here. See {question} here."


@pytest.fixture(params=["parquet", "jsonl", "json.gz"])
def file(request, tmp_path):
    """The same three questions on two articles, in each layout."""
    path = tmp_path / f"squad.{request.param}"
    rows = [
        question(1, title="A", context=TEXT),
        question(2, title="A", context=TEXT),
        question(3, title="B", context=TEXT + " "),
    ]
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        data = []
        for title in "AB":
            mine = [row for row in rows if row["title"] == title]
            for row in mine:
                texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
                pairs = zip(texts, starts, strict=True)
                row["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
            paragraph = {"context": mine[0]["context"], "qas": mine}
            data.append({"title": title, "paragraphs": [paragraph]})
        path.write_bytes(gzip.compress(json.dumps({"data": data, "version": "1.1"}).encode()))
    return str(path)


def test_layouts(file):
    problems = [*read(path=file, prompt="Q: {question} C: {context}")]
    assert [problem.meta["id"] for problem in problems] == ["q1", "q2", "q3"]
    assert problems[0].question == f"Q: Which 1? C: {TEXT}"  # what a text says is left alone
    assert problems[0].answer == "Two" and problems[0].verifier == "squad"
    assert problems[0].meta["answers"] == ["Two", "Two is"]
    assert [problem.meta["group"] for problem in problems] == ["A", "A", "B"]
    assert next(read(path=file, sentences=1)).question == "Two is here.\n\nWhich 1?"
    assert len([*read(path=file, questions_per_context=1)]) == 2


def test_the_hubs_copy_reads_alike(tmp_path):
    pytest.importorskip("datasets")
    rows = [question(1, title="A", context=TEXT), question(2, title="B", context=TEXT)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    found = [*read(dataset=str(tmp_path))]
    (tmp_path / "train.parquet").rename(tmp_path / "local.parquet")
    local = [*read(path=str(tmp_path / "local.parquet"))]
    assert [problem.id for problem in found] == [problem.id for problem in local]
    assert found[0].meta["answers"] == ["Two", "Two is"]


@pytest.mark.parametrize(
    ("content", "knobs", "message"),
    [
        ({"data": [{"title": "A"}]}, {}, "is not laid out as SQuAD is"),
        ({"data": []}, {"prompt": "{context}"}, "has no {question}"),
        ([], {}, "it holds no object but list"),
    ],
)
def test_a_file_of_another_layout(tmp_path, content, knobs, message):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        list(read(path=str(path), **knobs))
    with pytest.raises(UserError, match=message):
        check(path=str(path), **{"prompt": "{question}", **knobs})


def test_a_row_whose_answer_stands_elsewhere(tmp_path):
    path = tmp_path / "squad.jsonl"
    answers = {"text": ["Two"], "answer_start": [12]}
    path.write_text(json.dumps(question(1, title="A", context=TEXT) | {"answers": answers}))
    with pytest.raises(UserError, match=r"squad\.jsonl:1: the answer 'Two' does not stand at 12"):
        list(read(path=str(path)))
    path.write_text(json.dumps({"question": "?", "context": "x"}))
    with pytest.raises(UserError, match="is no question of SQuAD's layout"):
        list(read(path=str(path)))


def test_a_question_without_an_answer_is_left_out(tmp_path):
    path = tmp_path / "squad.jsonl"
    nothing = {"text": [], "answer_start": []}
    rows = [question(1, context=TEXT) | {"answers": nothing}, question(2, context=TEXT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [problem.meta["id"] for problem in read(path=str(path))] == ["q2"]
    check(path=str(path), prompt="{question}")
    path.write_text(json.dumps(rows[0]))
    with pytest.raises(UserError, match="holds no question with an answer"):
        check(path=str(path), prompt="{question}")


def test_partial_credit_of_greedy_answers_is_a_metric_of_its_own():
    told = ["Denver Broncos", "the Denver team", ""]
    problems = [
        make_problem(f"{n}?", GOLDS[0], verifier="squad", meta={"answers": GOLDS}) for n in range(3)
    ]
    other = make_problem("2 + 2?", "4", verifier="number")
    traces = [
        Trace(f"t{n}", problem.id, 0, text, "error" if n == 2 else "stop", "model")
        for n, (problem, text) in enumerate(zip(problems, told, strict=True))
    ] + [Trace("t3", other.id, 0, "4", "stop", "model")]
    verdicts = {t.id: judge(p, t) for p, t in zip([*problems, other], traces, strict=True)}
    split = {"heldout": [*problems, other]}
    answered = scoring.gathered(split, traces, verdicts, None)
    config = evaluate.Config(engine="gold", problems={"heldout": "./collect/heldout"})
    rows = evaluate.score(config, {"greedy": answered})
    assert [row["value"] for row in rows if row["metric"] == "greedy"] == [1.0, 0.0, 0.0, 1.0]
    credit = {row["problem_id"]: row["value"] for row in rows if row["metric"] == "f1"}
    # what failed counts as wrong, and a problem whose verifier knows no credit has none
    assert credit == {p.id: score for p, score in zip(problems, [1.0, 0.5, 0.0], strict=True)}
    drawn = evaluate.score(config, {"pass_at_1": answered})
    assert {row["metric"] for row in drawn} == {"pass_at_1"}


def test_gold_answers_are_an_author():
    problem = make_problem("?", GOLDS[1], verifier="squad", meta={"answers": GOLDS})
    (trace,) = gold.connect().generate([Request("r", problem, 3, 0)], Sampling())
    assert (trace.id, trace.index, trace.text) == ("r", 3, "Denver Broncos")
    assert judge(problem, trace).correct
