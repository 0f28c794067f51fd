"""The server over the local engine: what it says is what the model says."""

from __future__ import annotations

import pytest
import torch

from limbeck import chat, models
from limbeck.types import Message
from tests.serve.echo import serving

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server(folder):
    with serving("-m", "limbeck", "serve", str(folder), "--port", "0") as running:
        yield running


@pytest.fixture(scope="module")
def name(client):
    return client.models.list().data[0].id


def test_greedy_text_is_transformers(client, folder, name):
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    question = "3 plus 4 is <|end|>?"
    ids = torch.tensor([chat.prompt_ids(tokenizer, [Message("user", question)])])
    written = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
    messages = [{"role": "user", "content": question}]
    asked = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 24}
    answer = client.chat.completions.create(**asked)
    assert answer.usage.prompt_tokens == ids.shape[1]
    assert answer.choices[0].message.content == tokenizer.decode(written)


def test_texts_that_end_at_different_times_are_all_told_whole(client, name):
    prompts = ["3 plus 4", "a", "legs", "plus plus", "12"]
    asked = {"model": name, "prompt": prompts, "seed": 5, "max_tokens": 40, "temperature": 2}
    whole = client.completions.create(**asked, logprobs=0)
    lengths = [len(choice.logprobs.tokens) for choice in whole.choices]
    assert sum(lengths) == whole.usage.completion_tokens
    assert len(set(lengths)) > 1
    streamed = dict.fromkeys(range(5), "")
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == [*streamed.values()]


def test_a_temperature_next_to_nothing_is_greedy_and_harms_nobody(client, name):
    asked = {"model": name, "prompt": "3 plus 4", "max_tokens": 12}
    cold = client.completions.create(**asked, temperature=1e-39)
    assert cold.choices[0].text == client.completions.create(**asked, temperature=0).choices[0].text


def test_a_seed_gives_the_same_texts_in_any_company(client, name):
    messages = [{"role": "user", "content": "3 plus 4 is?"}]
    asked = {"model": name, "messages": messages, "max_tokens": 16, "seed": 7, "n": 4}
    texts = [c.message.content for c in client.chat.completions.create(**asked).choices]
    assert len(set(texts)) == 4
    again = [c.message.content for c in client.chat.completions.create(**asked).choices]
    assert again == texts
    streamed = dict.fromkeys(range(4), "")
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert list(streamed.values()) == texts
    other = client.chat.completions.create(**{**asked, "seed": 8, "n": 1})
    assert other.choices[0].message.content != texts[0]
    free = [
        client.chat.completions.create(**{**asked, "seed": None, "n": 1}).choices[0].message.content
        for _ in range(2)
    ]
    assert free[0] != free[1]


def test_echoed_logprobs_are_those_of_a_forward_pass(client, folder, name):
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    ids = tokenizer("3 legs plus 4 is 7 legs", add_special_tokens=False).input_ids
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for max_tokens in (0, 1):
        echoed = client.completions.create(
            model=name, prompt=ids, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
        ).choices[0]
        told = echoed.logprobs
        assert len(told.tokens) == len(ids) + max_tokens
        assert echoed.text == "".join(told.tokens)
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        expected = logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(told.token_logprobs[1 : len(ids)]), expected, atol=1e-4, rtol=0
        )
        likeliest = [max(top.values()) for top in told.top_logprobs[1 : len(ids)]]
        torch.testing.assert_close(
            torch.tensor(likeliest), logp[:-1].max(-1).values, atol=1e-4, rtol=0
        )
        places = told.text_offset
        assert [
            echoed.text[a:][: len(t)] for a, t in zip(places, told.tokens, strict=True)
        ] == told.tokens
