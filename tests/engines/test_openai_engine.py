"""The openai engine against a server that fails by script: one trace a request, never the key."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from email.utils import formatdate

import pytest

from limbeck import plugins, sealed
from limbeck.chat import split_think
from limbeck.config import split_fields
from limbeck.engines import openai as engine_file
from limbeck.engines.http import faults
from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling

from .faulty_server import FaultyServer, Reply, completion, failure

pytest.importorskip("openai")

CANARY = "sk-canary-0123456789abcdef"
SAMPLING = Sampling(temperature=0.6, top_p=0.95, max_tokens=64)
HTML = Reply("<html>welcome</html>", headers={"Content-Type": "text/html"})
NO_CHOICES = Reply('{"choices": []}')
NO_TEXT = completion(None)


@pytest.fixture(autouse=True)
def _quick_and_keyed(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 0.002)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def connect(server, **knobs):
    return engine_file.connect(model="teacher", base_url=server.url, **knobs)


def requests(num=1):
    problem = make_problem("1+1?", "2", verifier="exact")
    return [Request(f"r{i}", problem, i, seed=2**40 + i) for i in range(num)]


def only_trace(server, **knobs):
    (trace,) = connect(server, **knobs).generate(requests(), SAMPLING)
    return trace


def test_a_request_becomes_a_chat_completion_and_that_a_trace():
    with FaultyServer() as server:
        trace = only_trace(server)
    assert server.keys == [CANARY]
    assert server.requests == [
        {
            "model": "teacher",
            "messages": [{"role": "user", "content": "1+1?"}],
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 64,
            "seed": 2**40 % 2**31,
        }
    ]
    assert (trace.id, trace.problem_id, trace.index) == ("r0", requests()[0].problem.id, 0)
    assert (trace.text, trace.finish, trace.model) == ("<think>1+1=2</think>2", "stop", "teacher")
    assert (trace.prompt_tokens, trace.completion_tokens) == (7, 11)


def test_thinking_is_the_same_wherever_the_server_puts_it():
    replies = [
        completion("<think>t</think>a"),
        completion("t</think>a"),  # the server's chat template wrote the opening tag
        completion("a", reasoning="t"),
        completion("a", reasoning_content="t"),
        completion("a", thinking="t"),
        completion("a", reasoning="", reasoning_content="t"),
        completion("a", reasoning="t", reasoning_content="t"),
        completion("<think>t</think>a", reasoning="t"),
    ]
    with FaultyServer(replies, default=failure(404)) as server:
        traces = list(connect(server, concurrency=1).generate(requests(len(replies)), SAMPLING))
    assert [t.text for t in traces] == ["<think>t</think>a"] * len(replies)


@pytest.mark.parametrize("content", [None, ""])
def test_thinking_that_met_the_limit_stays_open(content):
    with FaultyServer([completion(content, reasoning="t", finish="length")]) as server:
        trace = only_trace(server)
    assert (trace.text, trace.finish) == ("<think>t", "length")
    assert split_think(trace.text).answer is None


def test_finish_reasons():
    replies = [
        completion("plain"),
        completion("cut", finish="length"),
        completion("half", finish="content_filter"),
        completion(None, finish="stop", reasoning="t"),
        completion("\ud83d"),
    ]
    with FaultyServer(replies) as server:
        traces = list(connect(server, concurrency=1).generate(requests(5), SAMPLING))
    assert [(t.text, t.finish) for t in traces] == [
        ("plain", "stop"),
        ("cut", "length"),
        ("", "error"),
        ("<think>t</think>", "stop"),
        ("?", "stop"),
    ]
    assert traces[2].completion_tokens == 11  # filtered, and paid for


FAULTS = {
    "408": failure(408),
    "409": failure(409),
    "429": failure(429, retry_after="0.01"),
    "500": failure(500),
    "HTML 503": Reply("<html>busy</html>", 503, {"Content-Type": "text/html"}),
    "HTML 200": HTML,
    "HTML called JSON": Reply("<html>"),
    "cut JSON": Reply('{"choices": [{"message"'),
    "other JSON": Reply("[1]"),
    "no choices": NO_CHOICES,
    "no text": NO_TEXT,
    "text in pieces": completion([{"type": "text"}]),
    "cut by the server": completion("ha", finish="insufficient_system_resource"),
    "unfinished": completion("ha", finish=None),
    "hung up": Reply(hangs_up=True),
    "too late": completion(delay_s=0.6),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_asked_again(fault):
    with FaultyServer([FAULTS[fault]]) as server:
        trace = only_trace(server, timeout_s=0.3)
    assert (trace.finish, len(server.requests)) == ("stop", 2)


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [(failure(500), 3), (HTML, 3), (NO_CHOICES, 3), (failure(400, "{key} too long"), 1)],
)
def test_who_gives_up_leaves_an_empty_trace_and_its_reason(fault, attempts, caplog):
    with FaultyServer(default=fault) as server:
        trace = only_trace(server, max_attempts=3)
    assert (trace.text, trace.finish) == ("", "error")
    assert len(server.requests) == attempts
    assert f"r0: no answer in {attempts} attempt" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "refusal",
    [
        failure(401, "Incorrect API key provided: {key}."),
        failure(402, "pay {key}"),
        failure(403, "not for {key}"),
        failure(404, "no model for {key}"),
        failure(429, "{key} has no money", code="insufficient_quota"),
    ],
)
def test_what_no_request_survives_stops_at_once(refusal, caplog):
    caplog.set_level(logging.DEBUG)
    with FaultyServer(default=refusal) as server:
        engine = connect(server, concurrency=4)
        with pytest.raises(
            UserError, match=r"^teacher at 127\.0\.0\.1:\d+: .*OPENAI_API_KEY"
        ) as info:
            list(engine.generate(requests(100), SAMPLING))
    assert len(server.requests) <= 4
    assert "\n" not in str(info.value)
    assert "[key]" in str(info.value)
    assert CANARY not in f"{info.getrepr(chain=True)}{info.value!r}{engine!r}{caplog.text}"


def test_a_server_that_never_answers_stops_the_run():
    with FaultyServer(default=failure(400, "unsupported parameter")) as server:
        engine = connect(server, concurrency=4)
        with pytest.raises(UserError, match=r"none of 4 requests .*unsupported parameter"):
            list(engine.generate(requests(100), SAMPLING))


def test_a_key_is_found_however_a_server_escapes_it(monkeypatch):
    key = 'abcdefgh/ijkl"mnop\\qrst=='
    monkeypatch.setenv("OPENAI_API_KEY", key)
    escaped = "".join(f"\\u{ord(c):04x}" for c in key)
    for told in (json.dumps(key)[1:-1], json.dumps(key)[1:-1].replace("/", "\\/"), escaped):
        reply = Reply(completion("you are HERE").body.replace("HERE", told))
        with FaultyServer(default=reply) as server:
            assert only_trace(server).text == "you are [key]"


def test_a_dead_server_is_told_however_few_are_asked():
    with FaultyServer(default=failure(500)) as server:
        engine = connect(server, concurrency=64, max_attempts=1)
        with pytest.raises(UserError, match=r"none of 5 requests got an answer"):
            list(engine.generate(requests(5), SAMPLING))


def test_an_exam_that_the_server_quotes_is_in_no_log(caplog):
    caplog.set_level(logging.DEBUG, logger="limbeck")
    exam = make_problem("zyzzyva?", "2", verifier="exact", meta={sealed.MARK: True})
    with FaultyServer([completion(), failure(400, "bad prompt: zyzzyva?")]) as server:
        asked = [Request(f"r{i}", exam, i, seed=i) for i in range(2)]
        traces = list(connect(server, concurrency=1).generate(asked, SAMPLING))
    assert [trace.finish for trace in traces] == ["stop", "error"]
    assert "r1: no answer in 1 attempt: BadRequestError" in caplog.text
    assert "zyzzyva" not in caplog.text


def test_a_key_that_the_server_echoes_enters_no_trace():
    with FaultyServer(default=completion("you are {key}", reasoning="{key}?")) as server:
        assert only_trace(server).text == "<think>[key]?</think>you are [key]"


def test_a_placeholder_for_a_key_is_no_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with FaultyServer(default=completion("none of them")) as server:
        assert only_trace(server).text == "none of them"


def test_requests_in_flight_are_bounded_and_the_bound_is_used():
    with FaultyServer(default=completion(delay_s=0.02)) as server:
        traces = list(connect(server, concurrency=5).generate(requests(40), SAMPLING))
    assert sorted(t.index for t in traces) == list(range(40))
    assert server.most_at_once == 5


def test_traces_come_as_they_finish_whoever_was_first():
    with FaultyServer([completion("slow", delay_s=0.3)]) as server:
        traces = list(connect(server, concurrency=2).generate(requests(6), SAMPLING))
    assert traces[-1].text == "slow"
    assert {t.id for t in traces} == {f"r{i}" for i in range(6)}


def test_leaving_early_waits_for_nobody():
    with FaultyServer([completion()], default=completion(delay_s=20.0)) as server:
        traces = connect(server, concurrency=3).generate(requests(9), SAMPLING)
        next(traces)
        start = time.perf_counter()
        traces.close()
        assert time.perf_counter() - start < 10


def test_a_notebook_has_a_loop_of_its_own():
    async def cell():
        return only_trace(server)

    with FaultyServer() as server:
        assert asyncio.run(cell()).finish == "stop"


def test_nothing_is_asked_for_no_requests():
    with FaultyServer() as server:
        assert list(connect(server).generate([], SAMPLING)) == []
    assert server.requests == []


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://[::1]:1/v1", "http://gpu-3/v1"])
def test_a_near_server_needs_no_key(monkeypatch, url):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert engine_file.connect(model="m", base_url=url).name == "m"


def test_a_far_server_needs_the_key_of_its_variable(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    knobs = {"model": "m", "base_url": "https://api.example.com/v1", "key_variable": "TEACHER_KEY"}
    with pytest.raises(UserError, match=r"TEACHER_KEY: holds no key for api\.example\.com"):
        engine_file.connect(**knobs)
    monkeypatch.setenv("TEACHER_KEY", f"{CANARY}\nand a second line")
    with pytest.raises(UserError, match="TEACHER_KEY") as info:
        engine_file.connect(**knobs)
    assert CANARY not in str(info.value)
    monkeypatch.setenv("TEACHER_KEY", f"{CANARY}\n")
    assert engine_file.connect(**knobs).key == CANARY


def test_an_address_without_a_scheme_is_the_users_mistake():
    with pytest.raises(UserError, match="localhost:8000/v1"):
        engine_file.connect(model="m", base_url="localhost:8000/v1")


@pytest.mark.parametrize(
    ("header", "wished"),
    [
        ("2.5", 2.5),
        ("3600", 60),
        ("inf", 60),
        ("-4", 0),
        ("nan", 0),
        ("soon", 0),
        ("", 0),
    ],
)
def test_retry_after(header, wished):
    assert faults.wished_s(header) == wished


def test_retry_after_may_be_a_date():
    soon, past = (formatdate(time.time() + s, usegmt=True) for s in (30, -30))
    assert 20 < faults.wished_s(soon) <= 30
    assert faults.wished_s(past) == 0


def test_waits_grow_and_scatter():
    waits = [faults.wait_s(n, TimeoutError()) for n in (1, 2, 3, 2000)]
    assert waits == sorted(waits)
    assert len({faults.wait_s(3, TimeoutError()) for _ in range(9)}) > 1
    assert waits[-1] <= faults.LONGEST_WAIT_S


def test_the_planner_reads_its_knobs():
    model = plugins.knobs_model(engine_file.connect)
    assert model.model_validate({"model": "m", "timeout_s": 5}).concurrency == 64
    with pytest.raises(ValueError, match="concurrency"):
        model.model_validate({"model": "m", "concurrency": 0})
    plugin = plugins.Kind("engine", "limbeck.engines", "connect").parse(
        {"name": "openai", "model": "m", "concurrency": 8}
    )
    # How many at once is how it is run: part of no key.
    assert split_fields(plugin) == ({"name": "openai", "model": "m"}, {})
