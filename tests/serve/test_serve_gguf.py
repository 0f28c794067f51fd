"""The server over a GGUF file: what it says is what llama.cpp writes, and who leaves is let go."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import openai
import pytest
import torch

from limbeck.chat import OPEN
from limbeck.engines import llama_cpp
from limbeck.newborn import CHAT_TEMPLATE
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling
from tests.engines.gguf_file import written
from tests.serve import small
from tests.serve.echo import serving

torch.set_num_threads(1)

QUESTION = "3 plus 4 is <|end|>?"
ASK = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def file(folder):
    return written(folder)


@pytest.fixture(scope="module")
def server(file):
    with serving("-m", "limbeck", "serve", str(file), "--port", "0", "--rows", "4") as running:
        yield running


@pytest.fixture(scope="module")
def name(client):
    return client.models.list().data[0].id


@pytest.fixture(scope="module")
def traced(file):
    """What the engine writes to the same question, greedily."""
    engine = llama_cpp.connect(model=str(file), batch_rows=1, threads=1)
    problem = make_problem(QUESTION, "0", verifier="exact")
    (trace,) = engine.generate([Request("r", problem, 0, 0)], Sampling(0.0, max_tokens=40))
    engine.close()
    return trace


def test_greedy_text_is_the_engines(client, name, traced, file):
    asked = {"model": name, "messages": ASK, "temperature": 0, "max_tokens": 40}
    answer = client.chat.completions.create(**asked)
    assert answer.model == f"{file.parent.name}/{file.name}"
    assert answer.usage.prompt_tokens == traced.prompt_tokens
    assert answer.usage.completion_tokens == traced.completion_tokens
    assert answer.choices[0].finish_reason == traced.finish
    assert answer.choices[0].message.content.strip("\ufffd") == traced.text.strip("\ufffd")


def test_a_stream_says_the_same_and_counts_it(client, name, traced):
    asked = {"model": name, "messages": ASK, "temperature": 0, "max_tokens": 40}
    about = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked, **about))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said.strip("\ufffd") == traced.text.strip("\ufffd")
    assert chunks[-1].usage.completion_tokens == traced.completion_tokens


def test_a_stop_string_ends_a_text_and_is_no_part_of_it(client, name, traced):
    whole = traced.text
    stop = next(p for i in range(5, 30) if "\ufffd" not in (p := whole[i : i + 2]))
    asked = {"model": name, "messages": ASK, "temperature": 0, "max_tokens": 40, "stop": stop}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == whole[: whole.find(stop)]
    streamed = client.chat.completions.create(**asked, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert said == choice.message.content


def test_many_texts_at_once_are_those_of_their_seeds(client, name):
    asked = {"model": name, "messages": ASK, "max_tokens": 12, "seed": 7, "n": 9}
    texts = [c.message.content for c in client.chat.completions.create(**asked).choices]
    assert len(set(texts)) > 4
    again = client.chat.completions.create(**asked)
    assert [c.message.content for c in again.choices] == texts


def test_a_prompt_may_be_echoed_but_has_no_scores(client, name):
    asked = {"model": name, "prompt": "3 plus 4", "max_tokens": 2, "echo": True}
    assert client.completions.create(**asked).choices[0].text.startswith("3 plus 4")
    with pytest.raises(openai.BadRequestError, match="logprobs are not offered"):
        client.completions.create(**asked, logprobs=0)
    with pytest.raises(openai.BadRequestError, match="logprobs are not offered"):
        client.chat.completions.create(model=name, messages=ASK, logprobs=True)


def test_too_long_a_prompt_is_refused(client, name):
    with pytest.raises(openai.BadRequestError, match="context is 512 tokens"):
        client.completions.create(model=name, prompt="plus " * 600, max_tokens=2)


def test_who_leaves_is_written_for_no_longer(client, server, name):
    tokens_before = server.measured("generated_tokens_total")
    asked = {"model": name, "prompt": "a", "max_tokens": 480, "temperature": 0.1}
    num_texts = 128  # so many that a busy machine has not written all before it hears of the leave
    stream = client.completions.create(**asked, n=num_texts, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 60
    while server.measured("rows_writing"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    written_by_then = server.measured("generated_tokens_total")
    assert written_by_then < tokens_before + num_texts * 480 / 2
    quick = client.completions.create(model=name, prompt="b", max_tokens=3)  # rows are free again
    assert quick.usage.completion_tokens <= 3
    assert server.measured("generated_tokens_total") <= written_by_then + 3


def test_thinking_is_told_apart(tmp_path):
    small.save_model(
        tmp_path / "model",
        CHAT_TEMPLATE.replace("'<|assistant|>'", f"'<|assistant|>{OPEN}'"),
    )
    file = written(tmp_path / "model")
    with serving("-m", "limbeck", "serve", str(file), "--port", "0", "--rows", "1") as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        name = client.models.list().data[0].id
        asked = {"model": name, "messages": ASK, "max_tokens": 8, "temperature": 0}
        message = client.chat.completions.create(**asked).choices[0].message
    assert message.reasoning_content
    assert not message.content


def test_an_exported_folder_is_served_by_its_one_file(tmp_path, file):
    from limbeck.errors import UserError
    from limbeck.evaluation.subjects import gguf_in, subject

    (tmp_path / "export" / "gguf").mkdir(parents=True)
    (tmp_path / "export" / "gguf" / "q8_0.gguf").write_bytes(file.read_bytes())
    found = gguf_in(str(tmp_path / "export"))
    assert found == tmp_path / "export" / "gguf" / "q8_0.gguf"
    asked = subject(str(tmp_path / "export"), None, None)
    assert asked.engine == {"name": "llama_cpp", "model": str(found)}
    assert asked.longest == 512
    (tmp_path / "export" / "gguf" / "f16.gguf").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"f16\.gguf, q8_0\.gguf; name one"):
        gguf_in(str(tmp_path / "export"))
    assert gguf_in(str(file.parent / "model")) is None


def test_a_run_is_no_model_and_names_one_that_it_has(tmp_path):
    from limbeck.errors import UserError
    from limbeck.evaluation.subjects import model_in

    (tmp_path / "run" / "sft" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no config\.json.*run/sft say"):
        model_in(str(tmp_path / "run"))
    assert model_in(str(tmp_path / "run" / "sft")) == tmp_path / "run" / "sft" / "model"


def test_the_service_ends_with_llama_cpp(client, name, server, file):  # the last of this server
    told = subprocess.run(["pgrep", "-f", f"child.py.*{file}"], capture_output=True, text=True)
    assert told.stdout.split()
    asked = {"model": name, "prompt": "a", "max_tokens": 480, "temperature": 0.1}
    stream = client.completions.create(**asked, n=64, stream=True)  # more than any pause writes
    next(iter(stream))
    for pid in told.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="could not write"):
        list(stream)
    assert server.process.wait(60) == 2
