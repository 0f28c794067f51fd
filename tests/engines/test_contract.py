"""One contract for every engine: the same cases, for whatever an engine says that it can do.

vLLM itself needs a GPU; a stand-in answers for it, and for the servers of the openai engine.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck import chat, models
from limbeck.engines import gold, llama_cpp, local, openai, readable, replay, vllm, worked
from limbeck.errors import UserError
from limbeck.plugins import EngineChoice
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling

from .gguf_file import written
from .vllm_stand_in import StandIn, small_model

pytest.importorskip("openai")
torch.set_num_threads(1)

CAN = {
    "worked": set(),
    "gold": set(),
    "readable": set(),
    "replay": set(),
    "local": {"draw", "tokens", "whole", "score", "learn"},
    "llama_cpp": {"draw", "tokens", "whole"},
    "openai": {"draw"},
    "vllm": {"draw", "tokens", "whole", "score", "learn"},
}
CONTEXT = 96
NEAR = {"llama_cpp": 0.02}  # log-probabilities: it keeps keys and values as float16
HALF = "\ufffd"  # a character of which a token holds a part
RAW = {"thinking": "1+2=3", "answer": "3"}  # what there is to rewrite
GREEDY = Sampling(temperature=0.0, max_tokens=16)
DRAWS = [
    Sampling(1.0, 1.0, 12),
    Sampling(0.7, 0.8, 12),
    Sampling(1.3, 0.9, 12, top_k=20),
    Sampling(1.0, 1.0, 12, top_k=40, min_p=0.05),
    GREEDY,
]


def engines_that(can: str | None = None):
    names = [name for name in CAN if can is None or can in CAN[name]]
    return pytest.mark.parametrize("engine", names, indirect=True)


@pytest.fixture(scope="module", autouse=True)
def _environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("VLLM_API_KEY", raising=False)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("contract") / "model", CONTEXT)


@pytest.fixture(scope="module")
def opening_folder(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("opening") / "model", CONTEXT, "<think>\\n")


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return models.load_tokenizer(folder)


@pytest.fixture(scope="module")
def server(folder):
    with StandIn(folder, logprobs_mode="processed_logprobs", dev_mode=True) as stand_in:
        yield stand_in


def connect(name, model, server):
    match name:
        case "worked":
            return worked.connect()
        case "gold":
            return gold.connect()
        case "readable":
            return readable.connect()
        case "replay":
            return replay.connect(path=str(recorded(model.parent / "said.jsonl")), problem="asked")
        case "local":
            return local.connect(model=str(model), device="cpu")
        case "llama_cpp":
            return llama_cpp.connect(model=str(written(model)), batch_rows=4, threads=1)
        case "openai":
            return openai.connect(model=server.name, base_url=server.url)
        case "vllm":
            return vllm.connect(model=str(model), base_url=server.url)
    raise AssertionError(name)


@pytest.fixture(scope="module")
def connected(folder, server):
    return functools.cache(lambda name: connect(name, folder, server))


@pytest.fixture
def engine(request, connected):
    return connected(request.param)


def sums(num, samples=1):
    """Requests of ragged length that any engine can answer, the worked one included."""
    questions = [" + ".join(str(7 * i + j) for j in range(2 + i % 4)) for i in range(num)]
    problems = [
        make_problem(f"{q} = ?", "0", verifier="exact", meta={"family": "chain_sum", **RAW})
        for q in questions
    ]
    return [
        Request(f"{p.id}/{i}", p, i, seed=2**40 + 101 * n + i)
        for n, p in enumerate(problems)
        for i in range(samples)
    ]


def recorded(path):
    """What was once said to `sums`: three answers each."""
    rows = [{"asked": r.problem.question, "text": f"sample {r.index}"} for r in sums(6, samples=3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(engine, requests, sampling):
    """Traces by request id, exactly one for each."""
    traces = list(engine.generate(requests, sampling))
    by_id = {trace.id: trace for trace in traces}
    assert len(traces) == len(by_id) == len(requests)
    assert set(by_id) == {request.id for request in requests}
    return by_id


def prompt_of(tokenizer, request):
    return chat.prompt_ids(tokenizer, request.problem.messages)


def greedy_ids(reference, tokenizer, request, num=16):
    prompt = torch.tensor([prompt_of(tokenizer, request)])
    return reference.generate(prompt, do_sample=False, max_new_tokens=num)[0, prompt.shape[1] :]


def drawn_from(logits, sampling):
    """Log-probabilities (N, V) of what tokens are drawn from, by the words of `Sampling`."""
    if sampling.temperature == 0:
        return logits.log_softmax(-1)
    probabilities = (logits.double() / sampling.temperature).softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = 0
    ordered /= ordered.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
    ordered[ordered < sampling.min_p * ordered[:, :1]] = 0
    ordered /= ordered.sum(-1, keepdim=True)
    return torch.zeros_like(ordered).scatter(-1, order, ordered).log()


@torch.inference_mode()
def forward(reference, ids):
    return reference(torch.tensor([ids])).logits[0]


@engines_that()
def test_every_request_gets_its_one_trace(engine):
    requests = sums(5, samples=3)
    traces = write(engine, requests, Sampling(max_tokens=6))
    for request in requests:
        trace = traces[request.id]
        assert (trace.problem_id, trace.index) == (request.problem.id, request.index)
        assert trace.model == engine.name
        assert trace.finish in ("stop", "length")
        assert trace.text


@engines_that()
def test_no_requests_give_no_traces(engine):
    assert list(engine.generate([], Sampling())) == []


@engines_that("draw")
def test_greedy_is_what_transformers_writes(engine, reference, tokenizer, request):
    is_whole = "whole" in CAN[request.node.callspec.params["engine"]]
    requests = sums(6)
    traces = write(engine, requests, GREEDY)
    for asked in requests:
        ids = greedy_ids(reference, tokenizer, asked).tolist()
        said = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        expected = tokenizer.decode(said, skip_special_tokens=not is_whole)
        assert traces[asked.id].text == expected


@engines_that("draw")
def test_top_k_of_one_is_greedy(engine):
    requests = sums(4)
    greedy = write(engine, requests, GREEDY)
    drawn = write(engine, requests, Sampling(1.0, 1.0, 16, top_k=1))
    assert {t.id: t.text for t in drawn.values()} == {t.id: t.text for t in greedy.values()}


@engines_that("draw")
def test_a_text_ends_with_its_turn_or_at_max_tokens(engine, tokenizer):
    traces = write(engine, sums(4, samples=16), Sampling(2.0, 1.0, 24)).values()
    assert {trace.finish for trace in traces} == {"stop", "length"}
    for trace in traces:
        assert 0 < trace.completion_tokens <= 24
        assert trace.completion_tokens == 24 or trace.finish == "stop"
        assert not trace.text.endswith("<|end|>")


@engines_that("tokens")
def test_the_context_ends_a_text_whatever_max_tokens_says(engine, tokenizer):
    requests = sums(2, samples=2)
    traces = write(engine, requests, Sampling(0.5, max_tokens=2 * CONTEXT))
    for request in requests:
        trace, left = traces[request.id], CONTEXT - len(prompt_of(tokenizer, request))
        assert trace.finish == "stop" or (trace.finish, trace.completion_tokens) == ("length", left)


@engines_that("draw")
def test_the_same_seed_writes_the_same_and_another_does_not(engine):
    requests = sums(3, samples=4)
    first = write(engine, requests, Sampling(1.0, 0.95, 16))
    again = write(engine, requests[::-1], Sampling(1.0, 0.95, 16))
    assert {t.id: t.text for t in first.values()} == {t.id: t.text for t in again.values()}
    texts = {request.problem.id: set() for request in requests}
    for trace in first.values():
        texts[trace.problem_id].add(trace.text)
    assert all(len(different) > 1 for different in texts.values())


@engines_that("draw")
def test_a_text_ends_before_the_first_stop_string(engine):
    requests = sums(4)
    for whole in write(engine, requests, GREEDY).values():
        pairs = (whole.text[i : i + 2] for i in range(2, len(whole.text)))
        stops = tuple([pair for pair in pairs if HALF not in pair][1::-1])
        request = next(r for r in requests if r.id == whole.id)
        stopping = Sampling(0.0, max_tokens=16, stop=stops)
        trace = write(engine, [request], stopping)[whole.id]
        assert trace.text == whole.text[: min(whole.text.find(stop) for stop in stops)]
        assert trace.finish == "stop"
        assert trace.completion_tokens < whole.completion_tokens


@engines_that("tokens")
@pytest.mark.parametrize("sampling", DRAWS)
def test_tokens_come_with_the_log_probabilities_they_were_drawn_with(
    engine, sampling, reference, tokenizer, request
):
    name, requests = request.node.callspec.params["engine"], sums(4, samples=2)
    for trace in write(engine, requests, sampling).values():
        prompt = prompt_of(tokenizer, next(r for r in requests if r.id == trace.id))
        ids = list(trace.token_ids)
        assert trace.prompt_tokens == len(prompt)
        assert trace.completion_tokens == len(ids)
        if trace.logprobs is None:  # llama.cpp tells none of a part of a character
            assert name == "llama_cpp" and any(HALF in tokenizer.decode([id]) for id in ids)
            continue
        assert len(trace.logprobs) == len(ids)
        assert max(trace.logprobs) <= 0
        logp = drawn_from(forward(reference, prompt + ids)[len(prompt) - 1 : -1], sampling)
        expected = logp.gather(1, torch.tensor(ids)[:, None])[:, 0].float()
        near = NEAR.get(name, 1e-4)
        torch.testing.assert_close(torch.tensor(trace.logprobs), expected, atol=near, rtol=0)
        said = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        # Thinking that is closed and was never opened may be given its opening tag.
        assert trace.text in (tokenizer.decode(said), chat.OPEN + tokenizer.decode(said))


@pytest.mark.parametrize("name", [name for name in CAN if "whole" in CAN[name]])
def test_a_text_ends_with_its_turn_where_a_sequence_would_go_on(name, tmp_path):
    folder = small_model(tmp_path / "model", CONTEXT, end_of_turn="<|user|>")
    tokenizer = models.load_tokenizer(folder)
    user, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    with StandIn(folder, logprobs_mode="processed_logprobs") as server:
        engine = connect(name, folder, server)
        traces = write(engine, sums(2, samples=24), Sampling(3.0, 1.0, 30)).values()
    for trace in traces:
        assert not {user, end} & set(trace.token_ids[:-1])
        assert (trace.token_ids[-1] in (user, end)) == (trace.finish == "stop")
    assert {trace.token_ids[-1] for trace in traces} > {user, end}


@pytest.mark.parametrize("name", [name for name in CAN if "whole" in CAN[name]])
def test_a_text_begins_with_the_thinking_that_its_template_opened(name, opening_folder):
    with StandIn(opening_folder, logprobs_mode="processed_logprobs") as server:
        engine = connect(name, opening_folder, server)
        tokenizer = models.load_tokenizer(opening_folder)
        for trace in write(engine, sums(3), GREEDY).values():
            ended = trace.token_ids[-1] == tokenizer.eos_token_id
            said = trace.token_ids[:-1] if ended else trace.token_ids
            assert trace.text == "<think>\n" + tokenizer.decode(said)


@engines_that("draw")
def test_a_prompt_beyond_the_context_is_an_error_and_stops_nobody(engine):
    problem = make_problem("1 + 2 " * CONTEXT, "0", verifier="exact")
    requests = [*sums(3), Request("long", problem, 0, seed=1)]
    traces = write(engine, requests, Sampling(max_tokens=4))
    long = traces.pop("long")
    assert (long.finish, long.text, long.completion_tokens) == ("error", "", 0)
    assert all(trace.finish != "error" for trace in traces.values())


def test_what_cannot_work_is_a_mistake_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    strange = make_problem("Who?", "I", verifier="exact", meta={"family": "riddles"})
    nowhere = "http://127.0.0.1:1/v1"
    broken = {
        "worked": lambda: list(
            worked.connect().generate([Request("r", strange, 0, 0)], Sampling())
        ),
        "readable": lambda: list(
            readable.connect().generate([Request("r", strange, 0, 0)], Sampling())
        ),
        "replay": lambda: list(
            replay.connect(path=str(recorded(tmp_path / "said.jsonl")), problem="asked").generate(
                [Request("r", strange, 0, 0)], Sampling()
            )
        ),
        "local": lambda: local.connect(model=str(tmp_path / "none")),
        "llama_cpp": lambda: llama_cpp.connect(model=str(tmp_path / "none.gguf")),
        "openai": lambda: openai.connect(model="any", base_url="https://api.example.com/v1"),
        "vllm": lambda: vllm.connect(model="any/model", base_url=nowhere),
    }
    assert set(broken) == set(CAN) - {"gold"}  # it needs nothing that could be missing
    for use in broken.values():
        with pytest.raises(UserError) as mistake:
            use()
        assert "\n" not in str(mistake.value)


@engines_that("score")
def test_scores_are_those_of_a_whole_forward(engine, reference, tokenizer):
    sequences = [prompt_of(tokenizer, r) + [5, 9, 99, 17][: 1 + i] for i, r in enumerate(sums(5))]
    sequences.append(sequences[0][:1])
    for ids, scored in zip(sequences, engine.score(sequences, num_top=3), strict=True):
        logp = forward(reference, ids).log_softmax(-1)[:-1]
        assert len(scored.logprobs) == len(scored.top_ids) == len(scored.top_logprobs) == len(ids)
        assert (scored.logprobs[0], scored.top_ids[0], scored.top_logprobs[0]) == (None, (), ())
        expected = logp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        got = torch.tensor(scored.logprobs[1:])
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0, check_dtype=False)
        for place, row in enumerate(logp, 1):
            likeliest = row.topk(3)
            assert list(scored.top_ids[place]) == likeliest.indices.tolist()
            got = torch.tensor(scored.top_logprobs[place])
            torch.testing.assert_close(got, likeliest.values, atol=1e-4, rtol=0)


@engines_that("score")
def test_scores_without_alternatives(engine, tokenizer):
    ids = prompt_of(tokenizer, sums(1)[0])
    (scored,) = engine.score([ids])
    assert set(scored.top_ids) == set(scored.top_logprobs) == {()}
    assert list(engine.score([])) == []


@engines_that("learn")
def test_new_weights_write_and_score_from_then_on(engine, folder, tokenizer):
    other = AutoModelForCausalLM.from_pretrained(folder).eval()
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    requests = sums(3)
    old = {t.id: t.text for t in write(engine, requests, GREEDY).values()}
    engine.load_weights(other.state_dict())
    new = write(engine, requests, GREEDY)
    for request in requests:
        expected = greedy_ids(other, tokenizer, request).tolist()
        assert list(new[request.id].token_ids) == expected
    assert {t.id: t.text for t in new.values()} != old
    if hasattr(engine, "score"):
        ids = prompt_of(tokenizer, requests[0])
        (scored,) = engine.score([ids])
        logp = forward(other, ids).log_softmax(-1)
        assert scored.logprobs[1] == pytest.approx(float(logp[0, ids[1]]), abs=1e-4)
    engine.load_weights(before)
    assert {t.id: t.text for t in write(engine, requests, GREEDY).values()} == old


def test_every_engine_is_in_the_contract_and_in_the_table():
    (kind,) = EngineChoice.__metadata__
    assert sorted(CAN) == kind.names()
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    header = next(line for line in page.splitlines() if line.startswith("| |"))
    assert re.findall(r"`(\w+)`", header) == list(CAN)
