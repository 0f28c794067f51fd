"""The local engine against transformers: same greedy texts, same log-probabilities, exact draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from limbeck import models
from limbeck.engines import decode, draw
from limbeck.engines.decode import LocalEngine
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling

torch.set_num_threads(1)

GREEDY = Sampling(temperature=0.0, max_tokens=20)
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # texts that differ from each other
}


@pytest.fixture(scope="module")
def tokenizer():
    return models.train_tokenizer(
        (f"{a} plus {b} is {a + b} legs" for a in range(9) for b in range(9)), 300
    )


def tiny(architecture, tokenizer, **sizes):
    sizes = {**SIZES, **sizes}
    if architecture == "qwen3":
        sizes["head_dim"] = 12
    model = models.create_model(
        architecture,
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    return model.eval()


def ragged_requests(num=16, samples=1):
    questions = ["legs " * (1 + i % 7) + f"{i} plus {i * i}" for i in range(num)]
    problems = [make_problem(q, "0", verifier="exact") for q in questions]
    return [
        Request(f"{p.id}/{i}", p, i, seed=997 * n + i)
        for n, p in enumerate(problems)
        for i in range(samples)
    ]


@pytest.fixture(scope="module")
def engine(tokenizer):
    return LocalEngine(tiny("qwen2", tokenizer), tokenizer, name="tiny")


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_greedy_is_what_transformers_writes(architecture, tokenizer):
    engine = LocalEngine(tiny(architecture, tokenizer), tokenizer, name="tiny")
    requests = ragged_requests()
    traces = {t.id: t for t in engine.generate(requests, GREEDY)}
    assert len(traces) == len(requests)
    for request in requests:
        ids = torch.tensor([decode.chat.prompt_ids(tokenizer, request.problem.messages)])
        written = engine.model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
        assert list(traces[request.id].token_ids) == written.tolist()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.7, 1.0, 20), Sampling(1.0, 1.0, 20)])
def test_logprobs_are_those_of_a_whole_forward(engine, tokenizer, sampling):
    requests = ragged_requests(6, samples=2)
    prompts = {r.id: decode.chat.prompt_ids(tokenizer, r.problem.messages) for r in requests}
    for trace in engine.generate(requests, sampling):
        prompt, ids = prompts[trace.id], list(trace.token_ids)
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        logp = (logits / (sampling.temperature or 1)).log_softmax(-1)
        expected = logp.gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(trace.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_rows", [1, 7, 64])
def test_texts_do_not_depend_on_the_batch(engine, tokenizer, batch_rows):
    requests, sampling = ragged_requests(10, samples=3), Sampling(1.0, 0.9, 24)
    expected = {t.id: t.text for t in engine.generate(requests, sampling)}
    other = LocalEngine(engine.model, tokenizer, name="tiny", batch_rows=batch_rows)
    shuffled = requests[::-1]
    texts = {t.id: t.text for t in other.generate(shuffled, sampling)}
    # Matrix products of other shapes round otherwise, and a draw within rounding of a border may
    # fall on its other side: once in 720 tokens is luck, twice would be a leak between rows.
    assert sum(texts[key] != expected[key] for key in expected) <= 1
    assert len(set(expected.values())) > 10


def test_rows_that_ended_leave_and_long_prompts_are_read_in_parts(engine, tokenizer, monkeypatch):
    requests, sampling = ragged_requests(8, samples=2), Sampling(1.5, 1.0, 30)
    expected = {t.id: t.token_ids for t in engine.generate(requests, sampling)}
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 40)
    monkeypatch.setattr(decode, "GROW_COLUMNS", 1)
    monkeypatch.setattr(decode, "KEEP_SHARE", 0.0)
    assert {t.id: t.token_ids for t in engine.generate(requests, sampling)} == expected
    monkeypatch.setattr(decode, "KEEP_SHARE", 1.0)
    assert {t.id: t.token_ids for t in engine.generate(requests, sampling)} == expected


def test_ends_with_the_stop_token_or_says_length(tokenizer):
    engine = LocalEngine(tiny("qwen2", tokenizer, initializer_range=0.02), tokenizer, name="tiny")
    traces = list(engine.generate(ragged_requests(8, samples=16), Sampling(3.0, 1.0, 40)))
    stopped = [t for t in traces if t.finish == "stop"]
    assert stopped
    assert any(t.finish == "length" for t in traces)
    for trace in traces:
        assert (trace.token_ids[-1] in engine.stops) == (trace.finish == "stop")
        assert not any(token in engine.stops for token in trace.token_ids[:-1])
        assert trace.completion_tokens == len(trace.token_ids) == len(trace.logprobs) <= 40
        assert trace.completion_tokens == 40 or trace.finish == "stop"
    text = stopped[0].text
    assert not text.endswith("<|end|>")
    assert tokenizer.decode(stopped[0].token_ids[:-1]) == text


def test_a_full_context_ends_a_text_and_a_longer_prompt_is_an_error(tokenizer):
    model = tiny("qwen2", tokenizer, max_position_embeddings=24)
    engine = LocalEngine(model, tokenizer, name="tiny")
    problems = [make_problem("legs " * n + "?", "0", verifier="exact") for n in (2, 8, 40)]
    requests = [Request(p.id, p, 0, seed=i) for i, p in enumerate(problems)]
    traces = {t.id: t for t in engine.generate(requests, GREEDY)}
    short, near, over = (traces[p.id] for p in problems)
    assert short.finish == "stop" or short.completion_tokens == min(20, 24 - short.prompt_tokens)
    assert near.finish == "stop" or near.prompt_tokens + near.completion_tokens == 24
    assert (over.finish, over.text, over.completion_tokens) == ("error", "", 0)


def test_a_model_in_training_stays_as_it_was(engine):
    model = engine.model
    before = model.config._attn_implementation
    model.train()
    next(iter(engine.generate(ragged_requests(1), GREEDY)))
    assert model.training
    assert model.config._attn_implementation == before
    model.eval()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_draws_have_exactly_the_distribution(temperature, top_p):
    logits = torch.tensor([1.0, 0.8, 0.5, 0.0, -1.0, -4.0])
    num = 40_000
    uniforms = torch.from_numpy(draw.uniform(np.arange(num, dtype=np.uint64), 3))
    tokens, logp = draw.draw(logits.expand(num, -1), uniforms, Sampling(temperature, top_p))
    expected = (logits / temperature).softmax(-1).double()
    before = expected.cumsum(0) - expected  # logits are in descending order
    expected = torch.where(before < top_p, expected, 0.0)
    expected /= expected.sum()
    counts = torch.bincount(tokens, minlength=6)
    inside = expected > 0
    assert not counts[~inside].any()
    assert chisquare(counts[inside], expected[inside] * num).pvalue > 1e-3
    torch.testing.assert_close(logp.double(), expected[tokens].log(), atol=1e-5, rtol=0)


def test_nucleus_is_found_beyond_the_first_64_tokens():
    flat = torch.full((2, 1000), 1 / 1000)
    sums, order = draw.nucleus(flat, 0.5)
    assert order.shape == (2, 1000)
    assert sums[0, -1].item() == pytest.approx(0.5, abs=2e-3)


def test_uniforms_are_uniform_and_independent_between_neighbours():
    seeds = np.arange(100_000, dtype=np.uint64)
    here, there = draw.uniform(seeds, 0), draw.uniform(seeds, 1)
    counts = np.histogram(here, bins=64, range=(0, 1))[0]
    assert chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(here, there)[0, 1]) < 0.02
    assert abs(np.corrcoef(here[1:], there[:-1])[0, 1]) < 0.02
    assert draw.splitmix64(np.array([0], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF


def test_connect_reads_a_folder(engine, tokenizer, tmp_path):
    from limbeck.engines import local

    models.save_model(engine.model, tokenizer, tmp_path / "model")
    loaded = local.connect(model=str(tmp_path / "model"), batch_rows=4, device="cpu")
    requests = ragged_requests(3)
    texts = {t.id: t.text for t in loaded.generate(requests, GREEDY)}
    assert texts == {t.id: t.text for t in engine.generate(requests, GREEDY)}
    assert loaded.num_parameters == models.num_parameters(engine.model)
