"""The llama_cpp engine: what it writes and refuses, and that nothing worse comes of a file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from limbeck import chat, models, plugins
from limbeck.config import split_fields
from limbeck.engines import llama_cpp
from limbeck.engines.llama_cpp_server import server as server_file
from limbeck.errors import UserError
from limbeck.guard.gguf import Header, read_gguf
from limbeck.newborn import CHAT_TEMPLATE
from limbeck.problems import make_problem
from limbeck.types import Message, Request, Sampling

from .gguf_file import written
from .test_contract import DRAWS, drawn_from, forward, prompt_of, sums, write
from .vllm_stand_in import small_model

torch.set_num_threads(1)

SAMPLING = Sampling(0.9, 0.9, 8)
LONG = Sampling(0.9, max_tokens=80)
HALF = "\ufffd"


@pytest.fixture(autouse=True)
def _logs_of_the_dead_lie_here(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def file(folder):
    return written(folder)


@pytest.fixture(scope="module")
def engine(file):
    return connect(file)


def connect(file, **knobs):
    return llama_cpp.connect(model=str(file), **{"batch_rows": 4, "threads": 1, **knobs})


def broken(file, path, **fields):
    """The file with some of its numbers changed in place, for llama.cpp alone to stumble over."""
    content = bytearray(file.read_bytes())
    for name, value in fields.items():
        place = content.index(name.encode()) + len(name) + 4
        content[place : place + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def said_in_one_line(use):
    with pytest.raises(UserError) as mistake:
        use()
    assert "\n" not in str(mistake.value)
    return str(mistake.value)


def process_of(engine):
    """The number of the process that the model lies in."""
    told = subprocess.run(
        ["pgrep", "-f", engine.server.socket], capture_output=True, text=True, check=True
    )
    pids = [int(pid) for pid in told.stdout.split()]
    return max(pids, key=lambda pid: Path(f"/proc/{pid}/statm").read_text().split()[1].zfill(12))


def is_gone(pid):
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# -- what it writes --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", DRAWS)
def test_log_probabilities_are_of_what_was_drawn_from(engine, folder, sampling):
    reference, tokenizer = models.load_model(folder).eval(), models.load_tokenizer(folder)
    requests = sums(4, samples=16)
    short = dataclasses.replace(sampling, max_tokens=3)
    told = 0
    for trace in write(engine, requests, short).values():
        ids = list(trace.token_ids)
        if trace.logprobs is None:
            assert any(HALF in tokenizer.decode([id]) for id in ids)
            continue
        told += 1
        prompt = prompt_of(tokenizer, next(r for r in requests if r.id == trace.id))
        logp = drawn_from(forward(reference, prompt + ids)[len(prompt) - 1 : -1], short)
        expected = logp.gather(1, torch.tensor(ids)[:, None])[:, 0].float()
        torch.testing.assert_close(torch.tensor(trace.logprobs), expected, atol=0.02, rtol=0)
    assert told > (0 if sampling.temperature == 0 else 8)


def test_of_a_quantized_file_bits_do_not_depend_on_company(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("quantized") / "model"
    wide_model(place)
    requests = sums(6, samples=4)
    alone = connect(written(place, "q8_0"), batch_rows=1)
    expected = write(alone, requests, LONG)
    alone.close()
    together = connect(written(place, "q8_0"), batch_rows=6)
    assert write(together, requests[::-1], LONG) == expected
    assert write(together, requests[3:9], LONG) == {r.id: expected[r.id] for r in requests[3:9]}
    together.close()


def wide_model(folder):
    """One whose matrices have whole blocks of 32."""
    from limbeck import newborn

    tokenizer = newborn.train_tokenizer(["1 + 2 = 3"] * 9, 300, chat_template=CHAT_TEMPLATE)
    model = newborn.create_model(
        "llama", len(tokenizer), 0, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    models.save_model(model, tokenizer, folder)


def test_rows_are_free_again_where_nobody_waits(engine):
    texts = engine.generate(sums(6, samples=30), LONG)
    next(texts)
    texts.close()
    deadline = time.monotonic() + 60
    while any(slot["is_processing"] for slot in engine.server.ask("/slots")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_it_tells_of_itself(engine, file):
    assert engine.name == f"{file.parent.name}/{file.name}"
    assert engine.num_parameters == 54864
    assert engine.context == 96
    assert 5 < engine.peak_memory_mib() < 2000


def test_less_context_is_an_earlier_end(file):
    engine = connect(file, context=20)
    (request,) = sums(1)
    trace = write(engine, [request], Sampling(0.0, max_tokens=50))[request.id]
    assert trace.prompt_tokens + trace.completion_tokens == 20
    assert trace.finish == "length"
    engine.close()


# -- prompts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["never", "by llama.cpp", "by the template", "by both"])
def opened(request, folder, tmp_path_factory):
    """An engine whose file opens texts with a token, by its tokenizer, its template, both."""
    from limbeck.export import gguf, vocabulary

    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    template = tokenizer.get_chat_template()
    by_template = request.param in ("by the template", "by both")
    words = dataclasses.replace(
        vocabulary.read(tokenizer, 274),
        adds_bos=request.param in ("by llama.cpp", "by both"),
        special={"bos": 0, "eos": 3, "eot": 3, "pad": 0},
        template="{{ bos_token }}" + template if by_template else template,
    )
    path = tmp_path_factory.mktemp("opened") / "model.gguf"
    gguf.write(model, words, "f32", path, name="opened", log=lambda text: None)
    own = 'params.chat_template = "chatml"'  # but for this line it is left to render
    script = server_file.SCRIPT.read_text()
    assert own in script
    (path.parent / "child.py").write_text(script.replace(own, "pass"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(server_file, "SCRIPT", path.parent / "child.py")
        return request.param, connect(path)


def test_a_prompt_is_what_llama_cpps_own_chat_reads(opened):
    how, engine = opened
    messages = [
        Message("system", "Say it."),
        Message("user", "1 + 1?"),
        Message("assistant", "2."),
        Message("user", " and 3 × 4, größer?\n"),
    ]
    ids = chat.prompt_ids(engine.tokenizer, messages)
    assert ids.count(0) == (how != "never")
    turns = [{"role": m.role, "content": m.content} for m in messages]
    body = {"messages": turns, "max_tokens": 1, "verbose": True}
    own = engine.server.ask("/v1/chat/completions", body)
    assert own["usage"]["prompt_tokens"] == len(ids)
    assert engine.server.detokenize(ids) == own["__verbose"]["prompt"]


def test_messages_bring_no_control_tokens(engine, folder):
    tokenizer = models.load_tokenizer(folder)
    for text in ("<|end|><|user|>", "a<|assistant|>b", "</think>", "<<|end|>", chat.MARK + "1"):
        messages = [Message("user", text), Message("assistant", "<think>a</think>b<|end|>c")]
        ids = chat.prompt_ids(engine.tokenizer, [*messages, messages[0]])
        assert ids == chat.prompt_ids(tokenizer, [*messages, messages[0]])
    assert chat.text_ids(engine.tokenizer, "<|end|>") == chat.text_ids(tokenizer, "<|end|>")


def test_a_file_without_a_template_is_a_mistake(folder, tmp_path):
    from limbeck.export import gguf, vocabulary

    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    words = dataclasses.replace(vocabulary.read(tokenizer, 274), template="")
    gguf.write(model, words, "f32", tmp_path / "m.gguf", name="mute", log=lambda text: None)
    engine = connect(tmp_path / "m.gguf")
    said = said_in_one_line(lambda: write(engine, sums(1), SAMPLING))
    assert "no chat template" in said
    engine.close()


# -- files that are not what they should be --------------------------------------------------------


def test_plan_finds_what_is_no_whole_file(file, tmp_path):
    def checked(path):
        return said_in_one_line(lambda: llama_cpp.check(model=str(path)))

    content = file.read_bytes()
    assert "is no file" in checked(tmp_path / "none.gguf")
    assert "is no file" in checked(tmp_path)
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04" + content)
    assert "is no GGUF file" in checked(tmp_path / "zip.gguf")
    for size in (0, 3, 4, 20, 40, 1000, len(content) // 2, len(content) - 40):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        assert "is no GGUF file" in (said := checked(tmp_path / "cut.gguf")) or "cut off" in said
    for num in (2**62, 2**20):
        lying = content[:8] + num.to_bytes(8, "little") + content[16:]
        (tmp_path / "lying.gguf").write_bytes(lying)
        assert "claims" in checked(tmp_path / "lying.gguf")
    llama_cpp.check(model=str(file))
    llama_cpp.check(model="./export/gguf/q8_0.gguf")  # which is still to be written


@pytest.mark.parametrize("seed", range(3))
def test_no_header_hurts_who_reads_it(file, tmp_path, seed):
    content = file.read_bytes()
    end = len(content) - 219_456  # its tensors' bytes
    for number in range(60):
        place = (seed * 7919 + number * 6151) % end
        damaged = content[:place] + bytes([255 - number]) * 8 + content[place + 8 :]
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        with contextlib.suppress(UserError):
            header = read_gguf(tmp_path / "damaged.gguf")
            _ = header.context, header.controls(), header.cache_bytes, header.template


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 3),
        ("tokens", "abc"),
        ("tokens", [1, 2]),
        ("token_type", 3),
        ("token_type", "33"),
        ("bos_token_id", -5),
    ],
)
def test_fields_of_another_kind_are_no_surprise(field, value):
    fields = {"tokens": ["a", "b"], "token_type": [3, 1], "bos_token_id": 0} | {field: value}
    named = {f"tokenizer.ggml.{name}": told for name, told in fields.items()}
    header = Header(Path("x.gguf"), named, 1)
    if field == "bos_token_id":
        assert header.special("bos") is None and header.controls() == {0: ("a", True)}
    else:
        with pytest.raises(UserError, match=r"has tokens that are no texts|has no list of its"):
            header.controls()


def test_what_only_llama_cpp_stumbles_over_is_a_mistake_in_its_words(file, tmp_path):
    path = broken(file, tmp_path / "odd.gguf", **{"llama.embedding_length": 32})
    said = said_in_one_line(lambda: connect(path))
    assert str(path) in said
    assert "llama.cpp has ended" in said and "shape" in said


def test_a_context_beyond_the_memory_is_refused_before_it_is_taken(file, tmp_path, monkeypatch):
    path = broken(file, tmp_path / "wide.gguf", **{"llama.context_length": 2**31})
    told = said_in_one_line(lambda: connect(path))
    assert "take more memory than is free; give it a context of " in told
    monkeypatch.setattr(llama_cpp.memory, "left_here", lambda: 2**60)
    assert "OverflowError" in said_in_one_line(lambda: connect(path))  # in llama.cpp's own words


def test_what_llama_cpp_refuses_is_a_mistake(engine):
    body = {"prompt": [5] * 10_000, "n_predict": 1}
    assert "llama.cpp objects" in said_in_one_line(lambda: engine.server.ask("/completion", body))


BOMB = (
    "{% set n = namespace(x='aaaaaaa') %}{% for i in range(40) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
)


def test_a_template_that_takes_all_memory_harms_nobody(file, tmp_path):
    content, name = file.read_bytes(), b"tokenizer.chat_template"
    place = content.index(name) + len(name) + 4  # behind its type
    begin, size = place + 8, int.from_bytes(content[place : place + 8], "little")
    harmful = content[:begin] + BOMB.encode().ljust(size) + content[begin + size :]
    (tmp_path / "bomb.gguf").write_bytes(harmful)
    engine = connect(tmp_path / "bomb.gguf")  # where llama.cpp would have rendered it
    told = said_in_one_line(lambda: write(engine, sums(1), SAMPLING))
    assert "its chat template cannot be rendered" in told  # for its memory, or its time if slow
    assert engine.server.peak_memory_mib() < 1024
    engine.close()


def test_weights_that_are_not_finite_are_a_mistake(folder, tmp_path):
    from limbeck.export import gguf, vocabulary

    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    words = vocabulary.read(tokenizer, 274)
    gguf.write(model, words, "f32", tmp_path / "nan.gguf", name="nan", log=lambda text: None)
    engine = connect(tmp_path / "nan.gguf")
    for sampling in (SAMPLING, Sampling(0.0, max_tokens=4)):
        assert "not finite" in said_in_one_line(lambda s=sampling: write(engine, sums(2), s))
    engine.close()


# -- a process of its own --------------------------------------------------------------------------


def test_its_death_is_a_mistake_in_one_line(file):
    engine = connect(file)
    texts = engine.generate(sums(6, samples=30), LONG)
    next(texts)
    os.kill(process_of(engine), signal.SIGKILL)
    assert "llama.cpp has ended" in said_in_one_line(lambda: list(texts))
    assert "llama.cpp has ended" in said_in_one_line(lambda: write(engine, sums(1), SAMPLING))
    engine.close()


def test_its_silence_is_a_mistake_in_one_line(file, monkeypatch):
    monkeypatch.setattr(llama_cpp, "PROBE_S", 0.2)
    monkeypatch.setattr(server_file, "SILENT_S", 0.5)
    engine = connect(file)
    pid = process_of(engine)
    texts = engine.generate(sums(6, samples=30), LONG)
    next(texts)
    os.kill(pid, signal.SIGSTOP)
    assert "says nothing for 0.5 s" in said_in_one_line(lambda: list(texts))
    os.kill(pid, signal.SIGCONT)
    engine.close()


def test_a_file_that_is_never_loaded_is_given_up(file, monkeypatch, tmp_path):
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(1000)\n")
    monkeypatch.setattr(server_file, "SCRIPT", tmp_path / "sleeps.py")
    monkeypatch.setattr(server_file, "LOAD_S", 0.3)
    assert "has not loaded it" in said_in_one_line(lambda: connect(file))


def test_it_ends_with_its_engine_and_leaves_nothing(file, tmp_path):
    engine = connect(file)
    pid = process_of(engine)
    assert oct(Path(engine.server.folder).stat().st_mode)[-3:] == "700"
    engine.close()
    assert is_gone(pid)
    assert list(tmp_path.iterdir()) == []


def test_it_does_not_outlive_an_owner_who_is_killed(file):
    script = (
        "import sys, time\nfrom limbeck.engines import llama_cpp\n"
        "engine = llama_cpp.connect(model=sys.argv[1], batch_rows=1, threads=1)\n"
        "print(engine.server.socket, flush=True)\ntime.sleep(100)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(file)], stdout=subprocess.PIPE, text=True
    )
    socket = owner.stdout.readline().strip()
    told = subprocess.run(["pgrep", "-f", socket], capture_output=True, text=True, check=True)
    pids = [int(pid) for pid in told.stdout.split()]
    owner.kill()
    owner.wait()
    assert len(pids) >= 2
    assert all(map(is_gone, pids))


def test_it_sees_no_keys(file, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "canary-0123456789abcdef")
    engine = connect(file)
    seen = Path(f"/proc/{process_of(engine)}/environ").read_bytes()
    assert b"canary" not in seen and b"PYTHONPATH" in seen
    engine.close()


def test_only_the_file_and_its_context_are_part_of_a_results_identity(file):
    (kind,) = plugins.EngineChoice.__metadata__
    knobs = {"model": str(file), "context": 64, "batch_rows": 3, "threads": 2}
    identity, _ = split_fields(kind.parse({"name": "llama_cpp", **knobs}))
    assert identity == {"name": "llama_cpp", "model": str(file), "context": 64}


def test_a_prompt_is_refused_for_its_length_alone(engine):
    problem = make_problem("1 + 2 " * 96, "0", verifier="exact")
    (trace,) = engine.generate([Request("long", problem, 0, 1)], SAMPLING)
    assert (trace.finish, trace.text, trace.token_ids) == ("error", "", ())
    assert trace.prompt_tokens > 96
