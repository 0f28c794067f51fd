"""The local engine against transformers: same greedy texts, same log-probabilities, any company."""

from __future__ import annotations

import itertools

import pytest
import torch

from limbeck import chat, memory, models, newborn, sharding
from limbeck.engines import local, pool
from limbeck.engines.decoder import kernel, plain
from limbeck.engines.foreign import ForeignEngine
from limbeck.engines.local_engine import LocalEngine
from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling, Scored

torch.set_num_threads(1)

GREEDY = Sampling(temperature=0.0, max_tokens=20)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 80,
    "initializer_range": 0.3,  # texts that differ from each other
}
GPT2_SIZES = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 80, "initializer_range": 0.3}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 20}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": 9,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
# name: (architecture, what is special about it)
MODELS = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    "untied": ("qwen2", {"tie_word_embeddings": False}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "a key for each head": ("llama", {"num_key_value_heads": 4}),
    "one key for all": ("qwen2", {"num_key_value_heads": 1}),
    "windows": ("qwen2", WINDOWS),
    "windows 3": ("qwen3", {**WINDOWS, "head_dim": 16}),
    "odd widths": ("llama", {"hidden_size": 60, "num_attention_heads": 5, "head_dim": 12,
                             "num_key_value_heads": 1}),
    "yarn": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "llama3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}}),
    "linear": ("llama", {"rope_parameters": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "scaled by depth": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return newborn.train_tokenizer(
        (f"{a} plus {b} is {a + b} legs" for a in range(9) for b in range(9)), 300
    )


def tiny(name, tokenizer, **more):
    architecture, special = MODELS.get(name, (name, {}))
    sizes = GPT2_SIZES if architecture == "gpt2" else SIZES
    model = newborn.create_model(
        architecture,
        len(tokenizer),
        0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**sizes, **special, **more},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for key, weight in model.named_parameters():
            if "norm" in key or "ln_" in key or "bias" in key:  # made 1 and 0, which hides mistakes
                weight.data += 0.3 * torch.randn_like(weight)
    return model.eval()


def ragged_requests(num=32, samples=1):
    questions = ["legs " * (1 + i % 7) + f"{i} plus {i * i}" for i in range(num)]
    problems = [make_problem(q, "0", verifier="exact") for q in questions]
    return [
        Request(f"{p.id}/{i}", p, i, seed=997 * n + i)
        for n, p in enumerate(problems)
        for i in range(samples)
    ]


def prompts_of(requests, tokenizer):
    return {r.id: chat.prompt_ids(tokenizer, r.problem.messages) for r in requests}


def texts(engine, requests, sampling):
    return {t.id: t.token_ids for t in engine.generate(requests, sampling)}


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny("qwen2", tokenizer)


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    return LocalEngine(model, tokenizer, name="tiny")


def test_the_kernel_is_there_to_be_tested(engine):
    assert isinstance(engine.operations, kernel.Kernel)


@pytest.mark.parametrize("compiler", [None, "/bin/false"])
def test_without_a_compiler_torch_writes_the_same(compiler, model, tokenizer, monkeypatch, caplog):
    expected = texts(LocalEngine(model, tokenizer, name="tiny"), ragged_requests(4), GREEDY)
    monkeypatch.setattr(kernel.shutil, "which", lambda name: compiler)
    kernel.load.cache_clear()
    engine = LocalEngine(model, tokenizer, name="tiny")
    kernel.load.cache_clear()  # the next test finds the machine as it is
    assert not isinstance(engine.operations, kernel.Kernel)
    assert "decoding is slower" in caplog.text
    assert texts(engine, ragged_requests(4), GREEDY) == expected


def test_the_kernel_is_built_where_only_its_user_can_write(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = kernel._cache_folder()
    assert own == tmp_path / "limbeck"
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(0o777)  # where others can write, they could leave code
    assert kernel._cache_folder() != own


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_what_transformers_writes(name, compiled, tokenizer):
    model = tiny(name, tokenizer)
    engine = LocalEngine(model, tokenizer, name="tiny", batch_rows=9, compiled=compiled)
    requests = ragged_requests()
    prompts = prompts_of(requests, tokenizer)
    assert len({len(ids) for ids in prompts.values()}) > 8
    written = texts(engine, requests, GREEDY)
    assert len(written) == len(requests)
    assert len(set(written.values())) > 20
    for request in requests:
        ids = torch.tensor([prompts[request.id]])
        expected = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
        assert list(written[request.id]) == expected.tolist()


# What a whole forward of the same model says. In float32 both sum the same products in another
# order (1e-4 is several times what 3 layers showed); in bfloat16 every product is rounded to 8
# bits, ours between float32 norms and sums, theirs not: measured against float32 weights of the
# same values, ours is no further off than theirs.
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "gpt2", "windows"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.7, 1.0, 20), Sampling(1.0, 0.8, 20)])
def test_logprobs_are_those_of_a_whole_forward(name, sampling, compiled, tokenizer):
    model = tiny(name, tokenizer)
    engine = LocalEngine(model, tokenizer, name="tiny", batch_rows=5, compiled=compiled)
    requests = ragged_requests(6, samples=2)
    prompts = prompts_of(requests, tokenizer)
    num_far = 0
    for trace in engine.generate(requests, sampling):
        expected = forward_logprobs(model, prompts[trace.id], trace.token_ids, sampling)
        num_far += ((torch.tensor(trace.logprobs) - expected).abs() > 1e-4).sum().item()
    # A token on the nucleus's border, which rounding lets in or not, shifts all others' shares:
    # of 240 tokens that may befall one or two, and only where there is a nucleus.
    assert num_far <= (2 if sampling.top_p < 1 else 0)


def forward_logprobs(model, prompt, written, sampling):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *written]])).logits[0, len(prompt) - 1 : -1]
    shares = (logits.float() / (sampling.temperature or 1)).softmax(-1)
    if sampling.temperature and sampling.top_p < 1:
        order = shares.sort(-1, descending=True)
        before = order.values.cumsum(-1) - order.values
        inside = torch.zeros_like(shares).scatter(
            -1, order.indices, (before < sampling.top_p) * 1.0
        )
        shares = shares * inside / (shares * inside).sum(-1, keepdim=True)
    return shares.gather(1, torch.tensor(written)[:, None])[:, 0].log()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "gpt2"])
def test_bfloat16_is_as_near_to_the_truth_as_transformers(name, compiled, tokenizer):
    rounded = tiny(name, tokenizer, initializer_range=0.15).to(torch.bfloat16)
    exact = tiny(name, tokenizer).float()
    exact.load_state_dict(rounded.state_dict())
    engine = LocalEngine(rounded, tokenizer, name="tiny", compiled=compiled)
    requests, sampling = ragged_requests(8, samples=2), Sampling(1.0, 1.0, 20)
    prompts = prompts_of(requests, tokenizer)
    ours, theirs = [], []
    for trace in engine.generate(requests, sampling):
        truth = forward_logprobs(exact, prompts[trace.id], trace.token_ids, sampling)
        peer = forward_logprobs(rounded, prompts[trace.id], trace.token_ids, sampling)
        ours += (torch.tensor(trace.logprobs) - truth).abs().tolist()
        theirs += (peer - truth).abs().tolist()
    # Means of some 300 errors each; a systematic mistake would be many times the rounding.
    assert torch.tensor(ours).mean() < 1.2 * torch.tensor(theirs).mean()
    assert max(ours) < 1.5 * max(theirs) + 0.05


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("batch_rows", [1, 7, 64])
def test_texts_do_not_depend_on_the_batch(model, tokenizer, batch_rows, compiled):
    requests, sampling = ragged_requests(10, samples=3), Sampling(1.0, 0.9, 24)
    whole = LocalEngine(model, tokenizer, name="tiny", compiled=compiled)
    some = LocalEngine(model, tokenizer, name="tiny", batch_rows=batch_rows, compiled=compiled)
    expected = texts(whole, requests, sampling)
    written = texts(some, requests[::-1], sampling)
    # Matrix products of other shapes round otherwise, and a draw within rounding of a border may
    # fall on its other side: once in 720 tokens is luck, twice would be a leak between rows.
    assert sum(written[key] != expected[key] for key in expected) <= 1
    assert len(set(expected.values())) > 10


def test_the_kernel_writes_what_torch_writes(model, tokenizer):
    requests = ragged_requests(10, samples=3)
    compiled, uncompiled = (
        LocalEngine(model, tokenizer, name="tiny", compiled=it) for it in (True, False)
    )
    for sampling in (Sampling(1.0, 1.0, 24), Sampling(1.2, 0.9, 24, 20, 0.02)):
        one, other = (texts(it, requests, sampling) for it in (compiled, uncompiled))
        assert sum(one[key] != other[key] for key in one) <= 1  # for the reason above


def test_refilled_rows_write_what_a_batch_writes(engine):
    """Greedy, where rounding hardly decides: 96 texts in 5 rows equal 96 in a row each."""
    requests = ragged_requests(32, samples=3)
    few = engine.pool(5, longest_prompt=60, longest_own=20)
    many = engine.pool(96, longest_prompt=60, longest_own=20)
    prompts = prompts_of(requests, engine.tokenizer)
    results = []
    for rows in (few, many):
        drafts = []
        for request in requests:  # ends at other times, so that rows refill at all times
            sampling = Sampling(0.0, max_tokens=1 + request.seed % 20)
            drafts.append(pool.Draft(tuple(prompts[request.id]), request.seed, sampling))
            rows.add(drafts[-1])
        most = 0
        while rows.num_waiting or rows.num_writing:
            most = max(most, len(rows.step()))
        assert most == min(rows.num_rows, 96)
        results.append([draft.ids for draft in drafts])
        assert not rows.prompts
        assert sorted(rows.free_rows) == list(range(rows.num_rows))
    assert results[0] == results[1]


def test_rows_that_share_a_prompt_or_nothing_sit_as_they_like(model, tokenizer, monkeypatch):
    """Torch's operations copy keys or read them in place: the same texts either way."""
    many, few = ragged_requests(2, samples=20), ragged_requests(14)[2:]
    requests, sampling = [*many, *few], Sampling(1.0, 1.0, 16)
    engine = LocalEngine(model, tokenizer, name="tiny", compiled=False)
    results = []
    for full in (0.0, 0.3, 2.0):
        monkeypatch.setattr(plain, "SHARED_FULL", full)
        monkeypatch.setattr(plain, "ALONE_FULL", full)
        results.append(texts(engine, requests, sampling))
    for other in results[1:]:
        assert sum(other[key] != results[0][key] for key in other) <= 1  # rounding, as above


def test_a_dropped_draft_frees_its_row(engine):
    rows = engine.pool(2, longest_prompt=10, longest_own=20)
    drafts = [pool.Draft((1, 2, 3 + n), n, Sampling(1.0, max_tokens=20)) for n in range(4)]
    for draft in drafts:
        rows.add(draft)
    rows.step()
    assert (rows.num_writing, rows.num_waiting) == (2, 2)
    rows.drop(drafts[0])
    rows.drop(drafts[3])
    rows.drop(drafts[3])
    assert (rows.num_writing, rows.num_waiting) == (1, 1)
    while rows.num_waiting or rows.num_writing:
        rows.step()
    assert [draft.finish is None for draft in drafts] == [True, False, False, True]


def test_long_prompts_are_read_in_parts(engine, monkeypatch):
    requests, sampling = ragged_requests(8, samples=2), Sampling(1.5, 1.0, 30)
    expected = texts(engine, requests, sampling)
    monkeypatch.setattr(pool, "PREFILL_TOKENS", 40)
    monkeypatch.setattr(pool, "DRAW_NUMBERS", 900)
    assert texts(engine, requests, sampling) == expected


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


def test_a_stop_string_ends_a_text_before_it(engine):
    requests, sampling = ragged_requests(8, samples=2), Sampling(1.0, 1.0, 40)
    whole = {t.id: t for t in engine.generate(requests, sampling)}
    text = max((t.text for t in whole.values()), key=len)
    stops = (text[10:12], text[20:21])
    cut = {t.id: t for t in engine.generate(requests, Sampling(1.0, 1.0, 40, stop=stops))}
    for key, trace in cut.items():
        places = [p for stop in stops if (p := whole[key].text.find(stop)) >= 0]
        assert trace.text == whole[key].text[: min(places, default=None)]
        assert trace.finish == ("stop" if places else whole[key].finish)
        assert len(trace.logprobs) == len(trace.token_ids) <= len(whole[key].token_ids)
    assert sum(cut[key].text != whole[key].text for key in cut) > 1


def test_a_full_context_ends_a_text_and_a_longer_prompt_is_an_error(tokenizer):
    model = tiny("qwen2", tokenizer, max_position_embeddings=24)
    problems = [make_problem("legs " * n + "?", "0", verifier="exact") for n in (2, 8, 40)]
    requests = [Request(p.id, p, 0, seed=i) for i, p in enumerate(problems)]
    for engine in (
        LocalEngine(model, tokenizer, name="tiny"),
        LocalEngine(model, tokenizer, name="tiny", compiled=False),
        ForeignEngine(model, tokenizer, name="tiny"),
    ):
        traces = {t.id: t for t in engine.generate(requests, GREEDY)}
        short, near, over = (traces[p.id] for p in problems)
        most = min(20, 24 - short.prompt_tokens)
        assert short.finish == "stop" or short.completion_tokens == most
        assert near.finish == "stop" or near.prompt_tokens + near.completion_tokens == 24
        assert (over.finish, over.text, over.completion_tokens) == ("error", "", 0)


def test_memory_bounds_the_rows(engine, monkeypatch):
    each = engine.decoder.cache_bytes(torch.float32) * 80
    monkeypatch.setattr(memory, "left", lambda device: int(7.5 * each / 0.7))
    assert engine.pool().num_rows == 7
    monkeypatch.setattr(memory, "left", lambda device: each // 2)
    with pytest.raises(UserError, match="no memory for keys and values of one text of 80 tokens"):
        engine.pool()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gpt2", "windows"])
def test_scores_are_those_of_a_whole_forward(name, compiled, tokenizer):
    model = tiny(name, tokenizer)
    engine = LocalEngine(model, tokenizer, name="tiny", compiled=compiled)
    sequences = [[*range(5, 5 + n)] for n in (12, 1, 40, 3, 25)]
    scored = list(engine.score(sequences, num_top=4))
    assert len(scored) == 5
    for ids, found in zip(sequences, scored, strict=True):
        with torch.no_grad():
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert found.logprobs[0] is None
        assert found.top_ids[0] == found.top_logprobs[0] == ()
        for place in range(1, len(ids)):
            expected = table[place - 1]
            assert found.logprobs[place] == pytest.approx(expected[ids[place]].item(), abs=1e-4)
            top = expected.topk(4)
            assert list(found.top_ids[place]) == top.indices.tolist()
            assert found.top_logprobs[place] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert list(engine.score([], num_top=2)) == []
    assert list(engine.score([[]])) == [Scored((), (), ())]
    assert len(next(engine.score([[5, 6]], num_top=10_000)).top_ids[1]) == len(tokenizer)
    for wrong in ([5] * 81, [5, 10_000], [-1]):
        with pytest.raises(UserError, match="cannot score"):
            list(engine.score([wrong]))


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gpt2", "tied", "untied", "biased"])
def test_new_weights_write_as_the_model_that_has_them(name, tokenizer):
    old, new = tiny(name, tokenizer), tiny(name, tokenizer)
    with torch.no_grad():
        for weight in new.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.manual_seed(3))
    requests, sampling = ragged_requests(6, samples=2), Sampling(1.0, 1.0, 20)
    engine = LocalEngine(old, tokenizer, name="tiny")
    before = texts(engine, requests, sampling)
    expected = texts(LocalEngine(new, tokenizer, name="tiny"), requests, sampling)
    assert before != expected
    engine.load_weights(new.state_dict())
    assert texts(engine, requests, sampling) == expected
    engine.load_weights(dict(old.named_parameters()))  # tied weights are named once
    assert texts(engine, requests, sampling) == before


@pytest.mark.parametrize("kind", [LocalEngine, ForeignEngine])
def test_weights_that_do_not_fit_are_refused_before_anything_changes(kind, tokenizer):
    model = tiny("qwen2", tokenizer)
    engine, requests = kind(model, tokenizer, name="tiny"), ragged_requests(4)
    before = texts(engine, requests, GREEDY)
    for change in (
        lambda named: named.pop("model.layers.1.mlp.down_proj.weight"),
        lambda named: [named.pop(f"model.layers.1.self_attn.{x}_proj.bias") for x in "qkv"],
        lambda named: named.update({"model.norm.weight": torch.ones(7)}),
        lambda named: named.update({"model.norm.weight": torch.full((64,), float("nan"))}),
    ):
        named = dict(model.state_dict())
        change(named)
        with pytest.raises(UserError, match=r"cannot take the new weights|is not finite"):
            engine.load_weights(named)
        assert texts(engine, requests, GREEDY) == before


def test_training_the_model_leaves_the_engine_as_it_was(tokenizer):
    for name in ("qwen2", "gpt2", "untied"):
        model = tiny(name, tokenizer)
        engine = LocalEngine(model, tokenizer, name="tiny")
        requests = ragged_requests(4)
        before = texts(engine, requests, GREEDY)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
        assert texts(engine, requests, GREEDY) == before


FOREIGN = {
    "gpt_neox": {**SIZES, "max_position_embeddings": 80},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_architectures_run_through_transformers_and_say_so(name, tokenizer, tmp_path, caplog):
    architecture = "llama" if name == "dynamic" else name
    sizes = {k: v for k, v in FOREIGN[name].items() if k != "num_key_value_heads"}
    more = {} if architecture == "llama" else {"hidden_size": 64}
    model = (
        tiny("llama", tokenizer, **sizes)
        if architecture == "llama"
        else newborn.create_model(
            architecture,
            len(tokenizer),
            0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **{**sizes, **more},
        ).eval()
    )
    models.save_model(model, tokenizer, tmp_path / "model")
    engine = local.connect(model=str(tmp_path / "model"), batch_rows=10, device="cpu")
    assert isinstance(engine, ForeignEngine)
    assert "transformers' own generate, several times slower" in caplog.text
    requests = ragged_requests()
    prompts = prompts_of(requests, tokenizer)
    for request, written in zip(requests, _in_order(engine, requests, GREEDY), strict=True):
        ids = torch.tensor([prompts[request.id]])
        expected = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
        assert list(written) == expected.tolist()
    sampling = Sampling(0.8, 1.0, 15)
    for trace in engine.generate(requests[:6], sampling):
        expected = forward_logprobs(model, prompts[trace.id], trace.token_ids, sampling)
        torch.testing.assert_close(torch.tensor(trace.logprobs), expected, atol=1e-4, rtol=0)


def _in_order(engine, requests, sampling):
    written = texts(engine, requests, sampling)
    return [written[request.id] for request in requests]


def test_the_foreign_engine_stays_in_its_context_and_has_no_knobs_of_the_models(tokenizer):
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.3}
    model = tiny("gpt2", tokenizer, **sizes)  # learned positions: there is nothing behind the last
    requests, sampling = ragged_requests(12, samples=2), Sampling(0.0, max_tokens=1000)
    expected = texts(LocalEngine(model, tokenizer, name="tiny"), requests, sampling)
    assert len({len(ids) for ids in expected.values()}) > 4
    model.generation_config.repetition_penalty = 1.7
    model.generation_config.no_repeat_ngram_size = 2
    engine = ForeignEngine(model, tokenizer, name="tiny")
    assert texts(engine, requests, sampling) == expected


def test_the_foreign_engine_draws_as_the_decoder_does(model, tokenizer):
    ours = LocalEngine(model, tokenizer, name="tiny")
    theirs = ForeignEngine(model, tokenizer, name="tiny", batch_rows=7)
    requests = ragged_requests(10, samples=2)
    text = max((t.text for t in ours.generate(requests, Sampling(1.0, 1.0, 24))), key=len)
    for sampling in (
        Sampling(1.0, 1.0, 24),
        Sampling(0.9, 0.8, 24, 12, 0.05),
        Sampling(1.0, 1.0, 24, stop=(text[5:8],)),
    ):
        one, other = (
            {t.id: (t.token_ids, t.text, t.finish) for t in engine.generate(requests, sampling)}
            for engine in (ours, theirs)
        )
        assert sum(one[key] != other[key] for key in one) <= 1  # rounding, as above


def test_a_device_that_is_not_there_is_told():
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device cuda: this machine or this torch has none"):
            sharding.pick_device("cuda")
    with pytest.raises(UserError, match="cuda:99"):
        sharding.pick_device("cuda:99")


def test_connect_reads_a_folder(model, engine, tokenizer, tmp_path):
    models.save_model(model, tokenizer, tmp_path / "model")
    loaded = local.connect(model=str(tmp_path / "model"), batch_rows=4, device="cpu")
    requests = ragged_requests(3)
    assert texts(loaded, requests, GREEDY) == texts(engine, requests, GREEDY)
    assert loaded.num_parameters == models.num_parameters(model)


def test_alternatives_are_those_of_the_model(engine, model):
    rows = engine.pool(3, longest_prompt=10, longest_own=8)
    plain = pool.Draft((5, 6, 7), 1, Sampling(0.5, 0.9, 8))
    told = pool.Draft((5, 6, 7), 2, Sampling(0.5, 0.9, 8), num_top=3)
    for draft in (plain, told):
        rows.add(draft)
    while rows.num_waiting or rows.num_writing:
        rows.step()
    assert plain.tops == []
    with torch.no_grad():
        table = model(torch.tensor([[5, 6, 7, *told.ids]])).logits[0, 2:-1].log_softmax(-1)
    top = table.topk(3)
    ids = [[token for token, _ in pairs] for pairs in told.tops]
    assert ids == top.indices.tolist()
    logprobs = [logp for _, logp in itertools.chain(*told.tops)]
    assert logprobs == pytest.approx(top.values.flatten().tolist(), abs=1e-4)
