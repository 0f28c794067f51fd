"""Sources of problems, and the split that no look-alike crosses."""

from __future__ import annotations

import gzip
import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import UserError
from limbeck.problems import collision_key, file, heldout_fraction, hub, make_problem, reasoning_gym

TASKS = {"chain_sum": {"min_terms": 2, "max_terms": 3}, "spell_backward": {}, "leg_counting": {}}
ROWS = [
    {"question": "2 and 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4", "subject": "sums"},
    {"question": "3 and 3?", "answer": "3 + 3 = <<3+3=6>>6\n#### 6", "subject": "sums"},
]


def first(num, **knobs):
    return list(islice(reasoning_gym.read(**knobs), num))


def test_id_is_the_content():
    a = make_problem("2 + 2?", "4", verifier="exact")
    assert a.id == make_problem("2 + 2?", "4", verifier="number", meta={"x": 1}).id
    assert a.id != make_problem("2 + 2?", "5", verifier="exact").id
    assert len(a.id) == 16
    assert a.question == "2 + 2?"


def test_families_take_turns_and_the_same_seed_gives_the_same_problems():
    problems = first(600, tasks=TASKS, seed=3)
    assert [p.domain for p in problems[:4]] == [*sorted(TASKS), "chain_sum"]
    assert problems == first(600, tasks=TASKS, seed=3)
    for problem in problems:
        assert problem.verifier == "exact"
        assert problem.question == problem.question.strip()
        assert problem.meta["family"] == problem.meta["template"] == problem.domain
        json.dumps(problem.meta)


def test_close_seeds_share_no_more_problems_than_distant_ones():
    tasks = {"chain_sum": {"min_digits": 4, "max_digits": 4, "min_terms": 4}}
    here, there = (first(600, tasks=tasks, seed=seed) for seed in (0, 1))
    assert not {p.id for p in here} & {p.id for p in there}
    assert len({p.id for p in here}) == 600


def test_a_family_with_a_size_ends_and_the_others_go_on():
    tasks = {"chain_sum": {"size": 2}, "spell_backward": {"size": 4}}
    problems = list(reasoning_gym.read(tasks=tasks))
    assert [p.domain[0] for p in problems] == list("cscsss")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"chain_sums": {}}, "did you mean chain_sum"),
        ({"chain_sum": {"min_term": 2}}, r"tasks.chain_sum.min_term.*min_terms"),
        ({"chain_sum": {"min_terms": 9, "max_terms": 2}}, "refuses"),
        ({"chain_sum": {"seed": 2}}, "no such knob"),
    ],
)
def test_wrong_tasks_are_named_before_the_first_problem(tasks, message):
    with pytest.raises(UserError, match=message):
        reasoning_gym.read(tasks=tasks)


def test_families_that_seed_numpy_get_a_seed_it_takes():
    assert len(first(2, tasks={"pool_matrix": {}})) == 2


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def table(request, tmp_path):
    path = tmp_path / request.param
    lines = "\n".join(map(json.dumps, ROWS)) + "\n"
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


def test_file(table):
    prompt = r"{question} Put your final answer within \boxed{}."
    problems = list(
        file.read(path=str(table), answer_after="####", prompt=prompt, domain="subject")
    )
    assert [p.answer for p in problems] == ["4", "6"]
    assert problems[0].question == r"2 and 2? Put your final answer within \boxed{}."
    assert {p.domain for p in problems} == {"sums"}
    assert problems[0].verifier == "number"


def test_hub_reads_as_file_does(table, tmp_path):
    from_file = list(file.read(path=str(table), answer_after="####"))
    assert list(hub.read(dataset=str(tmp_path), answer_after="####")) == from_file


@pytest.mark.parametrize(
    ("content", "knobs", "message"),
    [
        ('{"question": "a", "answer": "1"}\n{"question"', {}, "rows.jsonl:2"),
        ('{"question": "a", "answer": "1"}\n\n[1]', {}, "rows.jsonl:3.*not list"),
        ('{"question": "a"}', {}, "rows.jsonl:1.*'answer'.*question"),
        ('{"question": "a", "answer": ""}', {}, "rows.jsonl:1.*empty"),
        ('{"question": "a", "answer": "1"}', {"answer_after": "####"}, "rows.jsonl:1.*####"),
        ('{"question": "a", "answer": "1"}', {"prompt": "solve"}, "{question}"),
        ('{"question": "a", "answer": "1"}', {"question": "problem"}, "'problem'"),
    ],
)
def test_file_names_the_line(tmp_path, content, knobs, message):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        list(file.read(path=str(tmp_path / "rows.jsonl"), **knobs))


@pytest.mark.parametrize("name", ["no.jsonl", "rows.xml", "torn.jsonl.gz", "torn.parquet"])
def test_file_that_cannot_be_read(tmp_path, name):
    if name != "no.jsonl":
        (tmp_path / name).write_bytes(b"\x1f\x8b nothing that was ever written")
    with pytest.raises(UserError, match=name):
        list(file.read(path=str(tmp_path / name)))


def test_hub_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        list(hub.read(dataset=str(tmp_path / "nowhere")))


def ask(question, **meta):
    return make_problem(question, "0", verifier="exact", meta=meta)


def test_collision_key_sees_through_wording_where_the_template_is_known():
    a, b = ask("State: 3 + 4 =", template="sum"), ask("Now, what is 3 + 4 = ?", template="sum")
    assert collision_key(a) == collision_key(b)
    assert collision_key(a) != collision_key(ask("State: 4 + 3 =", template="sum"))
    assert collision_key(a) != collision_key(ask("State: 3 + 4 =", template="product"))


def test_collision_key_of_free_text():
    a = "Ann has 3 apples and 1,000 pears."
    assert collision_key(ask(a)) == collision_key(ask("ann  HAS 3 apples and 1000 pears."))
    assert collision_key(ask(a)) != collision_key(ask("Bob has 3 apples and 1000 pears."))
    assert collision_key(ask("Spell: Sun")) == collision_key(ask("spell:  sun"))
    assert collision_key(ask("Spell: sun")) != collision_key(ask("Spell: moon"))


def test_heldout_fraction_is_the_contents_own_and_uniform():
    problems = first(3000, tasks=TASKS, seed=0)
    fractions = [heldout_fraction(p) for p in problems]
    assert fractions == [heldout_fraction(p) for p in problems]
    assert all(0 <= f < 1 for f in fractions)
    keys = {collision_key(p): f for p, f in zip(problems, fractions, strict=True)}
    assert sum(f < 0.2 for f in keys.values()) / len(keys) == pytest.approx(0.2, abs=0.03)
    heldout = {key for key, f in keys.items() if f < 0.2}
    train = [p for p in first(1500, tasks=TASKS, seed=9) if heldout_fraction(p) >= 0.2]
    assert not heldout & {collision_key(p) for p in train}
