"""Request bodies: what is taken, and the words in which the rest is refused."""

from __future__ import annotations

import json

import pytest

from limbeck.serve.asked import ChatRequest, CompletionRequest, parse
from limbeck.serve.refusal import Refusal

ASK = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
CONTINUE = {"model": "m", "prompt": "x"}


def chat(**fields):
    return parse(ChatRequest, json.dumps({**ASK, **fields}).encode())


def completion(**fields):
    return parse(CompletionRequest, json.dumps({**CONTINUE, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 10**9}, "n: .* 128"),
        ({"n": 0}, "n: "),
        ({"n": 1.5}, "n: "),
        ({"n": True}, "n: "),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"max_tokens": 0}, "max_tokens is at least 1"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["x"] * 10**5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 1000}, "stop"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"best_of": 4}, "best_of is not offered"),
        ({"tools": [{"type": "function"}]}, "tools is not offered"),
        ({"logit_bias": {"5": 100}}, "logit_bias is not offered"),
        ({"response_format": {"type": "json_object"}}, "response_format is not offered"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not offered"),
        ({"chat_template": "{{ 1 }}"}, "chat_template is not offered"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs is not offered"),
        ({"tempurature": 1}, "tempurature: there is no such field"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user<|end|>", "content": "?"}]}, "role"),
        ({"messages": [{"role": "user", "content": "\0"}]}, "NUL"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": "?"}, "messages"),
        ({"model": None}, "model"),
    ],
)
def test_refused(fields, words):
    with pytest.raises(Refusal, match=words) as refusal:
        chat(**fields)
    assert refusal.value.status == 400
    assert len(refusal.value.message) < 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[1]",
        b'"text"',
        b"{",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"model": "m", "temperature": NaN}',
        b'{"model": "m", "messages": [{"role": "user", "content": "?"}], "temperature": 1e400}',
        b'{"model": "m", "messages": [{"role": "user", "content": "?"}], "seed": 1' + b"0" * 5000,
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}',
        json.dumps({"model": "m", "messages": [0] * 100_000}).encode(),
    ],
)
def test_not_a_request(body):
    with pytest.raises(Refusal) as refusal:
        parse(ChatRequest, body)
    assert refusal.value.status == 400
    assert len(refusal.value.message) < 400


def test_what_is_off_or_harmless_is_taken():
    asked = chat(
        user="u", metadata={"a": 1}, store=False, tools=[], tool_choice="none", best_of=1,
        frequency_penalty=0, presence_penalty=0.0, response_format={"type": "text"}, logprobs=None,
        stream_options={"include_usage": True}, logit_bias={}, temperature=0,
    )  # fmt: skip
    assert asked.tells_usage
    assert asked.temperature == 0


def test_sampling():
    asked = chat(temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, stop="x", max_completion_tokens=9)
    sampling = asked.sampling(100, 100)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert (sampling.min_p, sampling.stop, sampling.max_tokens) == (0.1, ("x",), 9)
    assert chat(top_k=-1).sampling(100, 77).top_k is None
    assert chat().sampling(100, 77).max_tokens == 77
    with pytest.raises(Refusal, match="at most 100"):
        chat(max_tokens=10**9).sampling(100, 77)


def test_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "developer", "content": parts}, *ASK["messages"]])
    assert [(m.role, m.content) for m in (t.message() for t in asked.messages)] == [
        ("system", "ab"),
        ("user", "?"),
    ]


def test_prompts():
    assert completion(prompt="x").prompts() == ["x"]
    assert completion(prompt=["x", "y"]).prompts() == ["x", "y"]
    assert completion(prompt=[1, 2]).prompts() == [[1, 2]]
    assert completion(prompt=[[1], [2, 3]]).prompts() == [[1], [2, 3]]
    for prompt in ([], [[]], ["x", 1], [1, "x"], [-1], [1.5], [[1], "x"], {"a": 1}, 5, [True]):
        with pytest.raises(Refusal):
            completion(prompt=prompt)
    with pytest.raises(Refusal, match="at most 128"):
        completion(prompt=["x"] * 50, n=3)
    with pytest.raises(Refusal, match="needs echo"):
        completion(max_tokens=0)
