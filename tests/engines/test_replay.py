"""Recorded answers: whose they are, which of them is played, and what is said where none is."""

from __future__ import annotations

import gzip
import json

import pytest

from limbeck import tables
from limbeck.engines import replay
from limbeck.errors import UserError
from limbeck.plugins import EngineChoice
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling, Trace

FIRST = make_problem("What is 1 + 1?", "2", verifier="number", meta={"task": "sums/0", "tests": []})
SECOND = make_problem("What is 1 + 2?", "3", verifier="number", meta={"task": "sums/1", "key": 17})


def requests(problem, *indices):
    return [Request(f"{problem.id}/{index}", problem, index, seed=index) for index in indices]


def played(engine, *asked):
    return [trace.text for trace in engine.generate([r for rs in asked for r in rs], Sampling())]


def written(path, rows):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FIRST.id, SECOND.id),
        (FIRST.question, SECOND.question),
        ("sums/0", "sums/1"),
        ("sums/0", 17),
        (FIRST.id, "sums/1"),
    ],
)
def test_an_answer_is_found_by_id_question_or_meta(tmp_path, first, second):
    rows = [{"of": second, "said": "b"}, {"of": first, "said": "a"}, {"of": second, "said": "c"}]
    path = written(tmp_path / "said.jsonl.gz", rows)
    engine = replay.connect(path=path, problem="of", text="said")
    assert engine.name == "said"
    for _ in range(2):  # nothing is used up
        asked = requests(FIRST, 0), requests(SECOND, 1, 0)
        assert played(engine, *asked) == ["a", "c", "b"]


def test_traces_of_before_are_played_with_their_finish(tmp_path):
    traces = [
        Trace("x", FIRST.id, 0, "<think>1 + 1", "length", "student"),
        Trace("y", FIRST.id, 1, "<think>1 + 1</think>2", "stop", "student"),
    ]
    tables.write_part(tmp_path / "traces", tables.to_table("traces", traces))
    (part,) = tables.parts(tmp_path / "traces")
    engine = replay.connect(path=str(part), finish="finish", model="student")
    again = list(engine.generate(requests(FIRST, 0, 1), Sampling(max_tokens=1)))
    assert [(t.text, t.finish, t.model, t.index) for t in again] == [
        (t.text, t.finish, t.model, t.index) for t in traces
    ]
    assert [t.id for t in again] == [f"{FIRST.id}/0", f"{FIRST.id}/1"]


def test_an_answer_ends_before_the_first_stop_string(tmp_path):
    path = written(tmp_path / "said.jsonl", [{"problem_id": FIRST.id, "text": "a\ndef b\nprint"}])
    engine = replay.connect(path=path)
    for stop, text in ((("\nprint", "\ndef"), "a"), (("\nclass",), "a\ndef b\nprint")):
        (trace,) = engine.generate(requests(FIRST, 0), Sampling(stop=stop))
        assert (trace.text, trace.finish) == (text, "stop")


def test_an_answer_that_is_missing_is_a_mistake_or_fails(tmp_path):
    path = written(tmp_path / "said.jsonl", [{"problem_id": FIRST.id, "text": "2"}])
    engine = replay.connect(path=path)
    assert played(engine, requests(FIRST, 0)) == ["2"]
    for asked in (requests(FIRST, 1), requests(SECOND, 0)):
        with pytest.raises(UserError, match=r"said\.jsonl.* missing: fail") as mistake:
            played(engine, asked)
        assert mistake.value.where == f"problem {asked[0].problem.id}"
    lenient = replay.connect(path=path, missing="fail")
    both = lenient.generate([*requests(FIRST, 0), *requests(SECOND, 0)], Sampling())
    assert [(t.text, t.finish) for t in both] == [("2", "stop"), ("", "error")]


@pytest.mark.parametrize(
    ("row", "knobs", "what"),
    [
        ({"text": "2"}, {}, "no 'problem_id'; name one of text"),
        ({"problem_id": "a"}, {}, "no 'text'"),
        ({"problem_id": "a", "text": None}, {}, "no 'text'"),
        ({"problem_id": "a", "text": "2"}, {"finish": "ended"}, "no 'ended'"),
        ({"problem_id": "a", "text": "2", "ended": "eos"}, {"finish": "ended"}, "'eos' is no way"),
    ],
)
def test_a_table_of_another_layout_is_refused_before_anything_runs(tmp_path, row, knobs, what):
    path = written(tmp_path / "said.jsonl", [row])
    checked = {"problem": "problem_id", "text": "text", "finish": None, **knobs}
    with pytest.raises(UserError, match=what) as mistake:
        replay.check(path=path, **checked)
    assert mistake.value.where == f"{path}:1"


def test_files_that_hold_no_answers_are_refused(tmp_path):
    knobs = {"problem": "problem_id", "text": "text", "finish": None}
    with pytest.raises(UserError, match="holds no rows"):
        replay.check(path=written(tmp_path / "none.jsonl", []), **knobs)
    with pytest.raises(UserError, match="not a table known here"):
        replay.check(path=written(tmp_path / "said.txt", []), **knobs)


def test_its_knobs_are_checked_like_those_of_any_engine():
    (kind,) = EngineChoice.__metadata__
    plugin = kind.parse({"name": "replay", "path": "said.jsonl", "problem": "question"})
    assert plugin.knobs["text"] == "text"
    with pytest.raises(ValueError, match="wrong knobs"):
        kind.parse({"name": "replay", "path": "said.jsonl", "missing": "ignore"})


def test_what_names_several_problems_names_none(tmp_path):
    """Rows were numbered, and so are levels of difficulty."""
    path = written(tmp_path / "said.jsonl", [{"of": n, "said": "a"} for n in range(9)])
    easy, hard, again = (
        make_problem(f"What is 1 + {n}?", "2", verifier="number", meta={"level": level})
        for n, level in ((1, 3), (2, 5), (3, 3))
    )
    engine = replay.connect(path=path, problem="of", text="said")
    assert played(engine, requests(easy, 0), requests(hard, 0), requests(easy, 0)) == ["a"] * 3
    with pytest.raises(UserError, match=rf"and problem {easy.id} are both '3' .* tells them apart"):
        played(engine, requests(again, 0))
