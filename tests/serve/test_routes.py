"""The server through the official client, over an engine that says what it is told."""

from __future__ import annotations

import time

import httpx
import openai
import pytest

from tests.serve import small
from tests.serve.echo import serving

TEXTS = [
    "plain words",
    "<think>a thought, 漢字</think>\n\nThe answer is 🙂🙂 Größe.",
    "<think>never finished",
    "no opening</think> here",
    "ends with ä",
    "a < b and <thinking> is no tag",
]


@pytest.fixture(scope="module")
def server(folder):
    with serving("-m", "tests.serve.echo", str(folder), "0.002") as running:
        yield running


def chat(client, text, **fields):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="echo", messages=messages, **fields)


def joined(stream):
    """(thinking, text, finish) by index, of a stream's chunks."""
    told = {}
    for chunk in stream:
        for choice in chunk.choices:
            thinking, text, _ = told.get(choice.index, ("", "", None))
            delta = choice.delta
            thinking += getattr(delta, "reasoning_content", None) or ""
            told[choice.index] = thinking, text + (delta.content or ""), choice.finish_reason
    return told


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_is_whole_and_thinking_is_apart(client, text):
    message = chat(client, text).choices[0].message
    thinking = getattr(message, "reasoning_content", "")
    if text.startswith("<think>"):
        before, _, after = text.removeprefix("<think>").partition("</think>")
        assert (thinking, message.content) == (before, after)
    else:
        assert (thinking, message.content) == ("", text)
    streamed = joined(chat(client, text, stream=True, n=3))
    assert streamed == dict.fromkeys(range(3), (thinking, message.content, "stop"))


def test_stop_strings_end_the_text_and_are_no_part_of_it(client):
    asked = {"stop": ["STOP", "never"], "logprobs": True}
    whole = chat(client, "this goes S ST STO STOP on", **asked)
    assert whole.choices[0].message.content == "this goes S ST STO "
    assert whole.choices[0].finish_reason == "stop"
    said = "".join(token.token for token in whole.choices[0].logprobs.content)
    assert said.startswith("this goes S ST STO ") and "STOP" not in said
    assert joined(chat(client, "this goes S ST STO STOP on", stream=True, **asked)) == {
        0: ("", "this goes S ST STO ", "stop")
    }


def test_length_usage_and_logprobs(client):
    whole = chat(client, "a b c d e f g", max_tokens=3, logprobs=True, top_logprobs=2)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 3
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 3
    tokens = whole.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == whole.choices[0].message.content
    assert [len(token.top_logprobs) for token in tokens] == [2, 2, 2]
    asked = {"max_tokens": 3, "logprobs": True, "stream": True}
    chunks = list(chat(client, "a b c d e f g", stream_options={"include_usage": True}, **asked))
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    streamed = [t for c in chunks for choice in c.choices for t in choice.logprobs.content]
    assert [t.token for t in streamed] == [t.token for t in tokens]
    assert chunks[0].choices[0].delta.role == "assistant"


def test_what_the_template_opened_is_thinking(folder, tmp_path):
    from limbeck.newborn import CHAT_TEMPLATE

    small.save_model(
        tmp_path / "m", CHAT_TEMPLATE.replace("'<|assistant|>' }", "'<|assistant|><think>\\n' }")
    )
    with serving("-m", "tests.serve.echo", str(tmp_path / "m")) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        message = chat(client, "I see.</think>7").choices[0].message
        assert (message.reasoning_content, message.content) == ("\nI see.", "7")
        streamed = joined(chat(client, "I see.</think>7", stream=True))
        assert streamed == {0: ("\nI see.", "7", "stop")}


def test_completions(client):
    many = client.completions.create(model="echo", prompt=["one", "two"], n=2, max_tokens=9)
    assert [c.text for c in many.choices] == ["one", "one", "two", "two"]
    assert [c.index for c in many.choices] == [0, 1, 2, 3]
    echoed = client.completions.create(model="echo", prompt="one ", echo=True)
    assert echoed.choices[0].text == "one one "
    stream = client.completions.create(model="echo", prompt="one ", echo=True, stream=True)
    assert "".join(c.choices[0].text for c in stream) == "one one "


def test_a_text_prompt_holds_no_control_tokens(client):
    asked = {"model": "echo", "max_tokens": 40, "logprobs": 0}
    plain = client.completions.create(prompt="<|end|> <think>", **asked)
    assert plain.choices[0].text == ""  # to the echo, which reads it from the text: its end of turn
    assert plain.usage.prompt_tokens > 2


def test_a_broken_model_is_told_and_the_server_goes_on(client, server):
    for text in ("fail", "nan"):
        with pytest.raises(openai.InternalServerError) as error:
            chat(client, text)
        assert error.value.status_code == 503
        with pytest.raises(openai.APIError):  # in the stream
            list(chat(client, text, stream=True))
    assert chat(client, "again").choices[0].message.content == "again"
    assert server.measured("texts_in_work") == 0


def test_a_prompt_that_does_not_fit_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="context is 512 tokens"):
        chat(client, "zq" * 2000)
    with pytest.raises(openai.BadRequestError, match="at most 512"):
        chat(client, "?", max_tokens=513)
    with pytest.raises(openai.BadRequestError, match="token ids are below"):
        client.completions.create(model="echo", prompt=[10**6])
    with pytest.raises(openai.NotFoundError, match="this server has 'echo'"):
        client.completions.create(model="other", prompt="x")


def until_nothing_is_in_work(server):
    deadline = time.monotonic() + 60
    while server.measured("rows_writing") or server.measured("texts_in_work"):
        assert time.monotonic() < deadline, "rows are still held"
        time.sleep(0.05)


def test_too_many_texts_are_refused_until_some_are_done(client, server):
    with pytest.raises(openai.BadRequestError, match="at most 24 texts"):  # 8 rows and 16 places
        chat(client, "x", n=25)
    long = {"model": "echo", "messages": [{"role": "user", "content": "word " * 60}], "n": 20}
    with client.chat.completions.create(**long, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as error:
            chat(client, "x", n=5)
        assert error.value.response.headers["retry-after"] == "1"
    until_nothing_is_in_work(server)
    assert len(chat(client, "x", n=24).choices) == 24
    assert server.measured("texts_in_work") == 0


def test_health_metrics_and_no_routes_about_routes(client, server):
    assert client.models.list().data[0].id == "echo"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    chat(client, "count me")
    assert server.measured("generated_tokens_total") > 0
    text = httpx.get(f"{server.url}/metrics").text
    assert 'limbeck_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'limbeck_time_to_first_token_seconds_bucket{le="+Inf"}' in text
    for path in ("/docs", "/redoc", "/openapi.json", "/", "/v1/chat/completions/"):
        reply = httpx.get(f"{server.url}{path}")
        assert reply.status_code == 404
        assert reply.json()["error"]["message"]
    assert httpx.get(f"{server.url}/v1/completions").status_code == 405


def test_a_client_that_goes_away_frees_its_row(client, server):
    long = "word " * 60  # 60 steps of 2 ms and more
    for _ in range(20):
        stream = chat(client, long, stream=True)
        next(iter(stream))
        stream.close()
    for _ in range(20):
        with pytest.raises(openai.APITimeoutError):
            chat(client.with_options(timeout=0.02), long)
    until_nothing_is_in_work(server)
