"""Plain instruction data as rows: what is read, drawn, thought and refused."""

import json
import os
from pathlib import Path

import pytest

import limbeck
from limbeck import card
from limbeck.engines.thinking import asked, unreadable
from limbeck.errors import UserError, UserErrors
from limbeck.stages import general
from limbeck.types import Trace

ASKED = []  # what the engine below was asked, by whoever asked
ROWS = [{"question": f"Who wrote book {i}?", "answer": f"Author {i}."} for i in range(60)]


class Thinker:
    name = "thinker"
    num_parameters = None
    costs_money = True

    def generate(self, requests, sampling):
        for request in requests:
            ASKED.append(request.problem.question)
            number = int(request.problem.question.partition("book ")[2].partition("?")[0])
            text, finish = f"<think>hm</think>I remember book {number}.", "stop"
            if number % 10 == 1:
                text = "The given answer says so."
            if number % 10 == 2:
                text, finish = "I rem", "length"
            if number % 10 == 3:
                text, finish = "", "error"
            yield Trace(
                request.id, request.problem.id, request.index, text, finish, "thinker", 5, 5
            )


def thinker():
    return Thinker()


def conversations():
    """Rows of one's own: (where, row)."""
    yield "mine:1", {"turns": [
        {"from": "system", "value": ""},
        {"from": "human", "value": "Who are you?"},
        {"from": "gpt", "value": "I am {name}, made by {author}."},
    ]}  # fmt: skip
    yield "mine:2", {"turns": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No more."},
    ]}  # fmt: skip
    yield "mine:3", {"turns": [{"role": "user", "content": "Hello"}]}
    yield "mine:4", {"turns": [{"role": "assistant", "content": "Hello"}]}
    yield "mine:5", {"turns": None}
    yield "mine:6", {"turns": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4"},
    ]}  # fmt: skip
    yield "mine:7", {"turns": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>two and two</think>4"},
    ]}  # fmt: skip
    yield "mine:8", {"turns": [
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": "<think>two and"},
    ]}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "books.jsonl").write_text("\n".join(lines) + "\n")
    ASKED.clear()


def run(folder="run", **settings):
    settings = {"source": {"name": "file", "path": "books.jsonl"}, "num": 100, **settings}
    made = limbeck.run({"name": "r", "stages": {"general": settings}}, run=Path(folder))
    summary = made.stages()[0]["summary"]
    return summary, made.table("general/dataset").to_pylist()


MINE = {"source": f"{__name__}:conversations", "messages": "turns"}


def last(row):
    return row["messages"][-1]["content"]


def test_rows_are_as_the_source_has_them():
    summary, rows = run(licence="CC0-1.0")
    assert [[m["content"] for m in r["messages"]] for r in rows] == [
        [r["question"], r["answer"]] for r in ROWS
    ]
    assert {(r["domain"], r["source"], r["teacher"], r["weight"]) for r in rows} == {
        ("general", "books.jsonl", "", 1.0)
    }
    assert summary["accounts"]["ok"] == 60
    assert card.read_licences(Path("run/general/dataset")) == {"books.jsonl": "CC0-1.0"}
    assert "license: cc0-1.0" in Path("run/general/dataset/README.md").read_text()


def test_conversations_of_any_layout_and_why_some_are_refused():
    summary, rows = run(**MINE, num=9, fill={"{name}": "Ada", "{author}": "us"})
    assert [last(r) for r in rows] == [
        "I am Ada, made by us.", "No more.", "<think>two and two</think>4"
    ]  # fmt: skip
    assert [m["role"] for m in rows[0]["messages"]] == ["user", "assistant"]
    assert summary["refused"] == {"no answer": 3, "no question": 1, "unknown role": 1}
    assert summary["accounts"] == {
        "inputs": 8, "ok": 3, "rejected": 5, "failed": 0, "poison": 0
    }  # fmt: skip


def test_empty_thinking_before_answers_that_have_none():
    _, rows = run(**MINE, num=9, thinking="empty")
    assert [last(r) for r in rows] == [
        "<think>\n\n</think>\n\nI am {name}, made by {author}.",
        "No more.",  # of several turns
        "<think>two and two</think>4",
    ]


def test_a_larger_draw_has_the_rows_of_a_smaller_one():
    drawn = []
    for num in (5, 20, 45):
        summary, rows = run(num=num)  # in one folder: extended
        drawn.append({r["id"] for r in rows})
        assert len(drawn[-1]) == num
        assert summary["refused"] == {"not drawn": 60 - num}
    assert drawn[0] < drawn[1] < drawn[2]
    _, rows = run("other", num=5, seed=1)
    assert {r["problem_id"] for r in rows} != {r["problem_id"] for r in run("new", num=5)[1]}
    assert [r["problem_id"] for r in rows] == sorted(
        (r["problem_id"] for r in rows),
        key=[r["problem_id"] for r in run("all")[1]].index,
    )


def test_what_stands_twice_is_one_row():
    lines = [json.dumps(row) for row in [*ROWS[:3], *ROWS[:2], {**ROWS[0], "answer": "Nobody."}]]
    Path("books.jsonl").write_text("\n".join(lines) + "\n")
    summary, rows = run()
    assert len(rows) == 4
    assert summary["refused"] == {"seen before": 2}


def test_alpaca_and_domains_by_column():
    rows = [
        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "kind": "words"},
        {"instruction": "Sing.", "input": "", "output": "La", "kind": "art"},
        {"instruction": "Be silent.", "input": "", "output": " ", "kind": "art"},
    ]
    Path("books.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    columns = {"question": "instruction", "context": "input", "answer": "output"}
    summary, found = run(**columns, domain_column="kind")
    assert [r["messages"][0]["content"] for r in found] == ["Translate.\n\nGuten Tag", "Sing."]
    assert [r["domain"] for r in found] == ["words", "art"]
    assert summary["refused"] == {"no answer": 1}


@pytest.mark.parametrize("column", ["question", "context", "answer", "messages", "domain_column"])
def test_a_column_that_is_not_there(column):
    with pytest.raises(UserError, match=r"books.jsonl:1: no 'nothing'; name one of question"):
        run(**{column: "nothing"})


def test_a_data_set_as_the_hub_has_it():
    pytest.importorskip("datasets")
    source = {"name": "hub", "dataset": "set"}
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}]
    Path("set").mkdir()
    Path("set/train.jsonl").write_text(json.dumps({"messages": turns, "source": "x"}) + "\n")
    _, rows = run(source=source, messages="messages", domain_column="source")
    assert [(r["messages"], r["domain"], r["source"]) for r in rows] == [(turns, "x", "set")]


def test_numbers_are_answers_and_halves_of_characters_are_refused():
    rows = [
        {"question": "1 - 1?", "answer": 0},
        {"question": "Broken \ud800?", "answer": "Yes."},
        {"question": "Nothing?", "answer": None},
    ]
    Path("books.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, (only,) = run()
    assert last(only) == "0"
    assert summary["refused"] == {"half a character": 1, "no answer": 1}


def test_what_was_filled_in_is_not_filled_again():
    rows = [
        {"question": "Ada, meet Ada's Bob", "answer": "{who}"},
        {"question": "?", "answer": "x"},
    ]
    Path("books.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary, (only,) = run(fill={"Ada": "Bob", "Bob": "Ada", "{who}": "", "x": "Ada"})
    assert last(only) == "Ada"
    assert summary["refused"] == {"no answer": 1}
    _, (first, _) = run("again", fill={"Ada": "Bob", "Ada's Bob": "me", "Bob": "Ada"})
    assert first["messages"][0]["content"] == "Bob, meet me"


def test_a_source_without_anything_to_learn():
    Path("books.jsonl").write_text('{"question": "", "answer": "x"}\n')
    with pytest.raises(UserError, match=r"gave no rows \(1 no question\)"):
        run()


WRITTEN = {"thinking": "written", "engine": f"{__name__}:thinker"}


def test_thinking_is_written_before_the_answers_and_what_is_unreadable_is_dropped():
    summary, rows = run(**WRITTEN)
    texts = {r["messages"][0]["content"]: last(r) for r in rows}
    assert texts["Who wrote book 7?"] == ("<think>\nI remember book 7.\n</think>\n\nAuthor 7.")
    assert {r["teacher"] for r in rows} == {"thinker"}
    assert summary["refused"] == {
        "thinking speaks of the answer it was shown": 6,
        "thinking unfinished": 6,
        "engine failed": 6,
    }
    assert summary["accounts"] == {
        "inputs": 60, "ok": 42, "rejected": 12, "failed": 6, "poison": 0
    }  # fmt: skip
    assert len(ASKED) == 60
    assert all(f"Author {i}." in ASKED[i] for i in range(60))
    assert "| thinker | 42 | 100.0% |" in Path("run/general/dataset/README.md").read_text()


def test_what_was_paid_for_is_not_asked_again():
    run(num=10, **WRITTEN)
    assert len(ASKED) == 10
    summary, rows = run(num=30, **WRITTEN)
    assert len(ASKED) == len(set(ASKED)) == 30
    assert summary["accounts"]["inputs"] == 60
    assert len(rows) + sum(n for why, n in summary["refused"].items() if why != "not drawn") == 30


def test_a_stage_that_was_killed_goes_on_with_what_was_paid(monkeypatch):
    def dies(self, requests, sampling):
        for number, trace in enumerate(whole(self, requests, sampling)):
            if number == 25:
                raise KeyboardInterrupt
            yield trace

    whole = Thinker.generate
    monkeypatch.setattr(Thinker, "generate", dies)
    with pytest.raises(KeyboardInterrupt):
        run(**WRITTEN)
    monkeypatch.setattr(Thinker, "generate", whole)
    before = len(ASKED)
    summary, rows = run(**WRITTEN)
    assert len(ASKED) - before == 60 - 25
    assert len(rows) == summary["accounts"]["ok"] == 42
    monkeypatch.setattr(Thinker, "generate", None)
    assert run(**WRITTEN)[1] == rows


def test_conversations_of_several_turns_are_not_thought_about():
    _, rows = run(num=9, source=f"{__name__}:two_turns", messages="turns", **WRITTEN)
    assert [last(r) for r in rows] == ["No more."]
    assert ASKED == []


def two_turns():
    for where, row in conversations():
        if where == "mine:2":
            yield where, row


def odd(batches):
    """A filter of everything that looks one batch ahead."""
    before = None
    for batch in batches:
        assert set(batch.schema.names) == {"id", "problem_id", "question", "text", "domain"}
        if before:
            yield before
        before = [
            "odd" if int(q.split("book ")[1].strip("?")) % 2 else None
            for q in batch["question"].to_pylist()
        ]
    yield before


def test_filters_of_everything(monkeypatch):
    monkeypatch.setattr(general, "ROWS_FILTERED", 7)
    summary, rows = run(keep=[f"{__name__}:odd"])
    assert summary["refused"] == {"odd": 30}
    assert [r["messages"][0]["content"] for r in rows] == [
        r["question"] for r in ROWS if int(r["question"].split("book ")[1][:-1]) % 2 == 0
    ]


def deaf(batches):
    for _ in batches:
        return
    yield


def test_a_filter_that_stops_early_is_named():
    with pytest.raises(UserError, match=f"filter {__name__}:deaf: left a batch unanswered"):
        run(keep=[f"{__name__}:deaf"])


def trace(text, finish="stop"):
    return Trace("t", "p", 0, text, finish, "m")


@pytest.mark.parametrize(
    "text",
    [
        "As the reference answer says, 4.",
        "The answer that was provided is 4.",
        "Because the expected response is short, I stay short.",
        "Die Frage ist leicht. the answer is given: 4",
        "根据参考答案，结果是四。",
    ],
)
def test_thinking_that_has_seen_the_answer(text):
    assert unreadable(trace(text)) == "thinking speaks of the answer it was shown"


@pytest.mark.parametrize(
    "text",
    [
        "So the answer is 4.",
        "Of the given answer options, B fits.",
        "The given information is enough to answer.",
        "The correct answer must be even.",
        "He provided an answer in 1905.",
    ],
)
def test_thinking_that_thinks(text):
    assert unreadable(trace(text)) is None


def test_thinking_that_is_none():
    assert unreadable(trace("")) == unreadable(trace("<think>a</think> ")) == "no thinking"
    assert unreadable(trace("a<think>b")) == "no thinking"
    assert unreadable(trace("a", "length")) == "thinking unfinished"
    assert unreadable(trace("a", "error")) == "engine failed"


def test_a_question_may_speak_of_placeholders():
    prompt = r"{question} / {answer} / \boxed{}"
    assert asked(prompt, "{answer}?", "{question}!") == r"{answer}? / {question}! / \boxed{}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thinking": "written"}, "set both, or neither"),
        ({"engine": f"{__name__}:thinker"}, "set both, or neither"),
        ({"keep": ["correct"]}, "correct is a filter of traces"),
        ({"keep": [{"name": "decontaminated", "problems": []}]}, "at least 1 item"),
        ({"fill": {"": "x"}}, "at least 1 character"),
        ({"prompt": "{question}"}, r"lacks \{question\} or \{answer\}"),
        ({"source": {"name": "file", "path": "nowhere.jsonl"}}, "nowhere"),
        ({"source": {"name": "fil", "path": "books.jsonl"}}, "did you mean 'file'"),
        ({"source": {"name": "file", "path": "books.jsonl", "verifier": "x"}}, "unknown key"),
    ],
)
def test_mistakes_are_told_by_plan(settings, message):
    base = {"source": {"name": "file", "path": "books.jsonl"}, "num": 1}
    with pytest.raises(UserErrors, match=message):
        limbeck.plan({"name": "r", "stages": {"general": {**base, **settings}}})


@pytest.mark.skipif("LIMBECK_TEST_DATA" not in os.environ, reason="set LIMBECK_TEST_DATA")
def test_real_answers_with_and_without_thinking():
    data = Path(os.environ["LIMBECK_TEST_DATA"])
    path = data / "ifeval" / "responses_qwen2.5_1.5b_gptq_int4.jsonl.gz"
    source = {"name": "file", "path": str(path)}
    summary, rows = run(source=source, question="prompt", answer="response", num=200)
    assert len(rows) == 200
    assert all(r["messages"][0]["content"].strip() and last(r).strip() for r in rows)
    assert summary["accounts"]["inputs"] > 500
