"""How the openai engine asks, paces itself and reads: parameters, outages, tokens, large bodies."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from urllib.parse import urlsplit

import pytest

from limbeck.engines import openai as engine_file
from limbeck.engines.http import answers, client, faults, questions
from limbeck.engines.http.pace import OUT_AFTER, Pace
from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling, Trace

from .faulty_server import FaultyServer, Reply, completion, failure

pytest.importorskip("openai")

EMPTY = Trace("r", "p", 0, "", "error", "teacher")


@pytest.fixture(autouse=True)
def _quick_and_keyed(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_WAIT_S", 0.002)
    monkeypatch.setattr(faults, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def connect(server, **knobs):
    return engine_file.connect(model="teacher", base_url=server.url, **knobs)


def requests(num=1):
    problem = make_problem("1+1?", "2", verifier="exact")
    return [Request(f"r{i}", problem, i, seed=i) for i in range(num)]


def until(engine, match):
    """The traces that an engine gives before it stops, which it must, with these words."""
    written = []

    def write():
        for trace in engine.generate(requests(30), Sampling()):
            written.append(trace)

    with pytest.raises(UserError, match=match):
        write()
    return written


# -- what is asked ------------------------------------------------------------------------------


def test_every_knob_of_sampling_is_sent_and_what_is_not_set_is_not():
    drawn = Sampling(0.6, 0.95, 64, top_k=20, min_p=0.1, stop=("\n\n", "END"))
    with FaultyServer() as server:
        engine = connect(server)
        engine.extra_body = {"return_token_ids": True}
        list(engine.generate(requests(), drawn))
    (sent,) = server.requests
    assert {k: sent[k] for k in ("top_k", "min_p", "stop")} == {
        "top_k": 20,
        "min_p": 0.1,
        "stop": ["\n\n", "END"],
    }
    assert sent["return_token_ids"] is True
    plain = questions.parameters(Sampling(), 0, logprobs=False)
    assert plain.keys() == {"temperature", "top_p", "max_tokens", "seed"}


class Particular(FaultyServer):
    """Objects to parameters that it does not know, as OpenAI and Mistral word it."""

    def __init__(self, *unknown: str, wording: str = "Unsupported parameter: '{}' is ...") -> None:
        super().__init__()
        self.unknown, self.wording = unknown, wording

    def reply_to(self, body, key):
        super().reply_to(body, key)
        found = [name for name in self.unknown if name in body]
        return failure(400, self.wording.format(found[0])) if found else completion()


def test_a_server_that_wants_max_completion_tokens_gets_them():
    with Particular("max_tokens", "top_p", "seed") as server:
        traces = list(connect(server, concurrency=2).generate(requests(20), Sampling()))
    assert {trace.finish for trace in traces} == {"stop"}
    assert server.requests[-1].keys() == {
        "model",
        "messages",
        "temperature",
        "max_completion_tokens",
    }
    assert server.requests[-1]["max_completion_tokens"] == 1024
    assert len(server.requests) <= 20 + 3 * 2  # it is learned once


def test_what_changes_the_answers_is_never_left_out():
    with Particular("temperature", "top_k") as server:
        engine = connect(server, concurrency=2)
        with pytest.raises(UserError, match=r"none of 2 requests got an answer: .*temperature"):
            list(engine.generate(requests(9), Sampling(0.6, top_k=3)))


def test_too_large_a_limit_is_no_unknown_parameter():
    wording = "max_tokens is too large: 1024 with {}. This model takes at most 512"
    with Particular("max_tokens", wording=wording) as server:
        engine = connect(server, concurrency=1)
        with pytest.raises(UserError, match="max_tokens is too large"):
            list(engine.generate(requests(9), Sampling()))
    assert all("max_tokens" in body for body in server.requests)


def test_a_proxy_of_the_environment_is_used(monkeypatch):
    with FaultyServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        engine = engine_file.connect(model="teacher", base_url="http://teacher.invalid/v1")
        (trace,) = engine.generate(requests(), Sampling())
    assert (trace.finish, len(proxy.requests)) == ("stop", 1)


def test_as_many_are_in_flight_as_may_be():
    num = 150  # more than one pool holds, and more than the client keeps alive by itself
    with FaultyServer(default=completion(delay_s=2.0)) as server:
        list(connect(server, concurrency=num).generate(requests(num), Sampling()))
    assert server.most_at_once == num


# -- pace ---------------------------------------------------------------------------------------


def test_the_limit_halves_once_for_those_sent_before_and_grows_slowly_back():
    mine, begun = Pace(64), time.monotonic()
    for _ in range(10):
        mine.failed(begun, is_busy=True, reason="429")
    assert mine.limit == 32
    mine.failed(time.monotonic(), is_busy=True, reason="429")
    assert mine.limit == 16
    mine.failed(time.monotonic(), is_busy=False, reason="HTML")
    assert mine.limit == 16
    mine.answered()
    assert mine.limit == 16.5
    for _ in range(1000):
        mine.answered()
    assert mine.limit == 64


def test_a_server_is_out_only_after_it_has_answered_and_then_only_failed():
    mine, begun = Pace(64), time.monotonic()
    for is_out in (False, True):
        for _ in range(OUT_AFTER - 1):
            mine.failed(begun, is_busy=False, reason="HTML")
        assert mine.out_since is None
        mine.failed(begun, is_busy=False, reason="HTML")
        assert (mine.out_since is not None) is is_out
        if is_out:
            assert mine.limit == 1
        mine.answered()
        assert mine.out_since is None


def test_turns_are_given_in_order_and_within_the_limit():
    mine, given = Pace(3), []

    async def work(number):
        async with mine.turn():
            assert mine.in_flight <= 3
            given.append(number)
            await asyncio.sleep(0.001)

    async def everybody():
        await asyncio.gather(*(work(number) for number in range(20)))

    asyncio.run(everybody())
    assert (given, mine.in_flight) == (list(range(20)), 0)


def test_who_no_longer_waits_takes_no_turn():
    mine = Pace(1)

    async def holds(event):
        async with mine.turn():
            await event.wait()

    async def everybody():
        event = asyncio.Event()
        first, second, third = (asyncio.create_task(holds(event)) for _ in range(3))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        event.set()
        await asyncio.gather(first, third)
        assert second.cancelled()

    asyncio.run(everybody())
    assert mine.in_flight == 0


def test_a_busy_server_gets_fewer_at_once():
    with FaultyServer([failure(429)] * 30, default=completion(delay_s=0.005)) as server:
        engine = connect(server, concurrency=16, max_attempts=40)
        traces = list(engine.generate(requests(60), Sampling()))
        assert engine.pace.limit < 16
    assert [t.finish for t in traces] == ["stop"] * 60


def test_an_outage_is_waited_for_with_one_request_at_a_time(caplog):
    """Far more failures than all requests have attempts: none of them is given up."""
    good, bad = [completion()] * 8, [Reply("<html>", 503)] * 150
    with FaultyServer([*good, *bad]) as server:
        engine = connect(server, concurrency=4, max_attempts=6)
        traces = list(engine.generate(requests(30), Sampling()))
    assert [t.finish for t in traces] == ["stop"] * 30
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == 2
    assert f"teacher at {urlsplit(server.url).netloc} is out (InternalServerError" in said[0]
    assert "answers again, after" in said[1]


def test_an_outage_that_does_not_end_stops_the_run_and_loses_nothing(monkeypatch):
    monkeypatch.setattr(engine_file, "LONGEST_OUTAGE_S", 0.05)
    with FaultyServer([completion()] * 8, default=Reply(hangs_up=True)) as server:
        written = until(connect(server, concurrency=4), "has not answered for 0 minutes: ")
    assert [t.finish for t in written] == ["stop"] * 8


def test_one_request_that_always_fails_is_no_outage():
    with FaultyServer([completion()], default=failure(500)) as server:
        engine = connect(server, concurrency=1, max_attempts=OUT_AFTER // 2)
        traces = list(engine.generate(requests(2), Sampling()))
    assert [t.finish for t in traces] == ["stop", "error"]
    assert len(server.requests) == 1 + OUT_AFTER // 2


def test_what_is_in_flight_when_all_stop_is_still_given():
    """A quota ends while three long answers are being written: they are paid for."""
    slow = completion("slow", delay_s=0.2)
    with FaultyServer([slow, slow, slow], default=failure(402, "pay")) as server:
        written = until(connect(server, concurrency=4), "pay")
    assert [t.text for t in written] == ["slow"] * 3
    assert len(server.requests) == 4


# -- what is read -------------------------------------------------------------------------------


def body(content="<think>t</think>2", usage=(7, 3), **choice):
    message = {"role": "assistant", "content": content}
    told = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": told}


def entries(*numbers):
    return {"content": [{"token": "x", "logprob": number} for number in numbers]}


def test_token_ids_and_log_probabilities_are_kept_where_they_are_of_every_token():
    whole = body(token_ids=[5, 6, 7], logprobs=entries(-0.5, -1, -0.25))
    trace = answers.filled(EMPTY, whole, has_logprobs=True)
    assert (trace.token_ids, trace.logprobs) == ((5, 6, 7), (-0.5, -1.0, -0.25))
    assert answers.filled(EMPTY, whole).logprobs is None


@pytest.mark.parametrize(
    "choice",
    [
        {"logprobs": entries(-0.5, -1)},  # without the end of turn, or the thinking
        {"logprobs": entries(-0.5, -1, float("-inf"))},
        {"logprobs": entries(-0.5, -1, "0")},
        {"logprobs": {"content": [None] * 3}},
        {"logprobs": {"content": None}},
        {"logprobs": None},
        {},
        {"token_ids": [1, 2], "logprobs": entries(-0.5, -1, -2)},
    ],
)
def test_log_probabilities_that_are_not_of_every_token_are_none(choice):
    assert answers.filled(EMPTY, body(**choice), has_logprobs=True).logprobs is None


@pytest.mark.parametrize("ids", [[1, True], [1.0], ["1"], [-1], [2**31], "12", {"1": 2}])
def test_token_ids_that_are_none(ids):
    assert answers.filled(EMPTY, body(token_ids=ids)).token_ids is None


def test_log_probabilities_are_those_of_what_was_drawn_from():
    reply = Reply(json.dumps(body(logprobs=entries(-1, -2, -3))))
    with FaultyServer(default=reply) as server:
        (trace,) = connect(server, logprobs=True).generate(requests(), Sampling())
    assert server.requests[0]["logprobs"] is True
    assert trace.logprobs == (-1, -2, -3)


@pytest.mark.parametrize(
    "sampling", [Sampling(0.6), Sampling(top_p=0.9), Sampling(top_k=5), Sampling(min_p=0.1)]
)
def test_log_probabilities_of_another_distribution_are_refused_before_anything_is_asked(sampling):
    with (
        FaultyServer() as server,
        pytest.raises(UserError, match="set temperature to 1 and leave out top_p"),
    ):
        list(connect(server, logprobs=True).generate(requests(), sampling))
    assert server.requests == []


@pytest.mark.parametrize(
    ("told", "counted"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, (7, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}, (7, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 90}, (7, 83)),
        ({"prompt_tokens": 7}, None),
        ({"prompt_tokens": -1, "completion_tokens": 3}, None),
        ({"prompt_tokens": True, "completion_tokens": 3}, None),
        ({"prompt_tokens": 7, "completion_tokens": 2**40}, None),
        (None, None),
    ],
)
def test_usage(told, counted):
    assert answers.usage({"usage": told}) == counted


def test_an_answer_without_its_reasoning_is_an_error_of_a_teacher_that_reasons(caplog):
    replies = [
        completion("2"),
        completion("<think>\n</think>2"),
        completion("<think>1+1</think>2"),
        completion("", reasoning="1+1"),
    ]
    with FaultyServer(replies) as server:
        engine = connect(server, reasons=True, concurrency=1)
        traces = list(engine.generate(requests(4), Sampling()))
    assert [(t.finish, t.text != "") for t in traces] == [
        ("error", False),
        ("error", False),
        ("stop", True),
        ("stop", True),
    ]
    assert traces[0].completion_tokens == 11  # paid for
    assert "came without reasoning" in caplog.text


def test_reasoning_that_is_billed_and_not_shown_is_told(caplog):
    hidden = json.loads(completion("2").body)
    hidden["usage"]["completion_tokens_details"] = {"reasoning_tokens": 9}
    with FaultyServer(default=Reply(json.dumps(hidden))) as server:
        traces = list(connect(server).generate(requests(3), Sampling()))
    assert [(t.finish, t.text) for t in traces] == [("stop", "2")] * 3
    assert caplog.text.count("reasoning is billed and not shown") == 1


@pytest.mark.parametrize("status", [200, 500])
def test_a_body_without_end_fills_no_memory(monkeypatch, caplog, status):
    huge = "a" * 50 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with FaultyServer([Reply(huge, status)]) as server:
        (trace,) = connect(server).generate(requests(), Sampling())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (trace.finish, len(server.requests)) == ("error", 1)  # it may have cost: not again
    assert "the body is longer than 16 MiB" in caplog.text
    assert grown < 3 * 50 * 1024  # the server, in this process, holds it twice


def test_a_long_answer_is_no_body_without_end():
    said = "a" * (client.MOST_BODY_BYTES - 10_000)
    with FaultyServer([completion(said)]) as server:
        (trace,) = connect(server).generate(requests(), Sampling())
    assert trace.text == said


@pytest.mark.parametrize(
    "fault",
    [
        Reply("[" * 100_000),
        Reply(completion().body, headers={"Content-Encoding": "gzip"}),
        Reply(completion().body, headers={"Content-Length": "9999"}, hangs_up=True),
        Reply("<html>", headers={"Content-Type": "text/html; charset=klingon"}),
    ],
)
def test_a_broken_body_is_asked_again(fault):
    with FaultyServer([fault]) as server:
        (trace,) = connect(server).generate(requests(), Sampling())
    assert trace.finish == "stop"


def test_why_nobody_answers_is_told():
    engine = engine_file.connect(model="m", base_url="http://127.0.0.1:9/v1", concurrency=1)
    with pytest.raises(UserError, match=r"from ConnectError: .*(refused|attempts failed)"):
        list(engine.generate(requests(3), Sampling()))
