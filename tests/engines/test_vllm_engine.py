"""The vllm engine against a stand-in server: what it refuses, what it starts, what it leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from limbeck import plugins
from limbeck.config import split_fields
from limbeck.engines import vllm
from limbeck.engines.vllm_server import keeper
from limbeck.engines.vllm_server import server as server_file
from limbeck.engines.vllm_server.keeper import KeptProcess
from limbeck.errors import UserError
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling

from .vllm_stand_in import StandIn, small_model

pytest.importorskip("openai")
torch.set_num_threads(1)

CANARY = "canary-0123456789abcdef"
STAND_IN = [sys.executable, str(Path(__file__).with_name("vllm_stand_in.py")), "serve"]
SAMPLING = Sampling(temperature=0.9, top_p=0.9, max_tokens=8)
PROCESSED = {"logprobs_mode": "processed_logprobs"}


@pytest.fixture(autouse=True)
def _quick_and_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(server_file, "MAX_RETRIES", 0)
    monkeypatch.setattr(server_file, "POLL_S", 0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("vllm-other") / "model")


def connect(stand_in, **knobs):
    knobs = {"model": str(stand_in.folder), "base_url": stand_in.url, **knobs}
    return vllm.connect(**knobs)


def requests(num=3):
    problems = [make_problem(f"{i} + 1?", str(i + 1), verifier="exact") for i in range(num)]
    return [Request(f"r{i}", p, 0, seed=2**40 + i) for i, p in enumerate(problems)]


def mistake(stand_in, **knobs):
    with pytest.raises(UserError) as raised:
        connect(stand_in, **knobs)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def written(engine, sampling=SAMPLING):
    return {t.id: (t.text, t.logprobs) for t in engine.generate(requests(), sampling)}


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_knob_is_left_to_the_servers_defaults(folder):
    hostile = {"temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 3.0}
    with StandIn(folder, **PROCESSED) as neutral, StandIn(folder, **PROCESSED) as other:
        other.defaults = hostile
        assert written(connect(neutral)) == written(connect(other))


def test_requests_constrain_no_grammar_and_ask_for_tokens(folder):
    with StandIn(folder, **PROCESSED) as server:
        written(connect(server), Sampling(0.5, 1.0, 8, top_k=7, min_p=0.1, stop=("x",)))
    path, body = server.requests[-1]
    assert path == "/v1/chat/completions"
    assert not {"structured_outputs", "response_format", "tools"} & set(body)
    expected = {
        "model": str(folder),
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 7,
        "min_p": 0.1,
        "stop": ["x"],
        "stop_token_ids": [server.tokenizer.eos_token_id],
        "max_tokens": 8,
        "logprobs": True,
        "return_token_ids": True,
        "skip_special_tokens": False,
    }
    assert expected.items() <= body.items()
    assert 0 <= body["seed"] < 2**31


def test_traces_are_signed_with_the_model_and_not_with_its_place(folder):
    with StandIn(folder, name="whatever", **PROCESSED) as server:
        engine = connect(server)
        (trace,) = engine.generate(requests(1), SAMPLING)
    assert engine.name == trace.model == f"{folder.parent.name}/model"
    assert not engine.costs_money
    assert engine.num_parameters == sum(p.numel() for p in server.model.parameters())


@pytest.mark.parametrize("version", ["0.31.0", "0.9.2", "0.1.dev1+g123", "dev", ""])
def test_an_old_server_is_refused(folder, version):
    with StandIn(folder, version=version, **PROCESSED) as server:
        assert "vllm>=0.32" in mistake(server)


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1.dev3+g1a2b3c", "1.0.0"])
def test_a_new_server_is_taken(folder, version):
    with StandIn(folder, version=version, **PROCESSED) as server:
        assert connect(server)


def test_another_model_is_refused_and_both_are_named(folder):
    with StandIn(folder, name="Qwen/Qwen3-0.6B", root="Qwen/Qwen3-0.6B", **PROCESSED) as server:
        said = mistake(server, model="Qwen/Qwen3-4B")
        assert connect(server, model="Qwen/Qwen3-0.6B@main").name == "Qwen/Qwen3-0.6B@main"
    assert "serves Qwen/Qwen3-0.6B, not Qwen/Qwen3-4B" in said


def test_a_folder_of_the_same_name_is_another_model(folder, other_folder):
    name = "/".join(other_folder.parts[-2:])
    with StandIn(folder, name=name, **PROCESSED) as server:
        assert "not " + str(other_folder) in mistake(server, model=str(other_folder))


def test_another_template_is_refused(folder):
    template = "{% for m in messages %}<|user|> {{ m.content }}{% endfor %}<|assistant|>"
    with StandIn(folder, template=template, **PROCESSED) as server:
        assert "chat template or tokenizer is not that of" in mistake(server)


def test_log_probabilities_of_another_distribution_are_refused(folder):
    with StandIn(folder, logprobs_mode="raw_logprobs") as server:
        assert "--logprobs-mode processed_logprobs" in mistake(server)


def test_a_server_that_is_not_ready_is_waited_for(folder):
    with StandIn(folder, num_unwell=5, **PROCESSED) as server:
        assert connect(server)
        server.num_unwell = 10**6
        assert "not ready after 0.1 s" in mistake(server, start_timeout_s=0.1)


def test_the_key_is_sent_and_never_told(folder, monkeypatch):
    with StandIn(folder, key=CANARY, **PROCESSED) as server:
        assert "401" in mistake(server)
        monkeypatch.setenv("VLLM_API_KEY", CANARY)
        engine = connect(server)
        assert CANARY not in repr(engine)
        server.key = "another"
        with pytest.raises(UserError) as raised:
            list(engine.score([[1, 2]]))
    assert CANARY not in str(raised.value)


def test_what_vllm_means_otherwise_is_refused(folder):
    both = Sampling(1.0, 0.9, 8, min_p=0.1)
    with StandIn(folder, **PROCESSED) as server, pytest.raises(UserError, match="by min_p before"):
        list(connect(server).generate(requests(), both))


def test_scores_keep_their_order_and_say_what_is_too_much(folder):
    with StandIn(folder, **PROCESSED) as server:
        engine = connect(server, concurrency=2)
        sequences = [[], [3], [3, 4], [3, 4, 5], [6, 7, 8, 9]]
        assert [len(scored.logprobs) for scored in engine.score(sequences)] == [0, 1, 2, 3, 4]
        with pytest.raises(UserError, match="--max-logprobs"):
            list(engine.score([[3, 4]], num_top=21))
        with pytest.raises(UserError, match="less than 96 tokens"):
            list(engine.score([[3] * 96]))


def test_weights_that_cannot_be_loaded_leave_the_server_writing(folder):
    with StandIn(folder, **PROCESSED) as server:
        engine = connect(server)
        good = server.model.state_dict()
        with pytest.raises(UserError, match="VLLM_SERVER_DEV_MODE=1"):
            engine.load_weights(good)
        server.dev_mode = True
        with pytest.raises(UserError, match="/collective_rpc"):
            engine.load_weights({"strange.weight": torch.zeros(2)})
        with pytest.raises(UserError, match="not finite"):
            engine.load_weights({"lm_head.weight": torch.full((2,), torch.nan)})
        assert len(written(engine)) == 3
        engine.load_weights(good)
        assert [path for path, _ in server.requests[-4:]] == [
            "/pause?mode=wait",
            "/collective_rpc",
            "/reset_prefix_cache",
            "/resume",
        ]


def test_a_server_is_started_asked_and_stopped(folder):
    port = free_port()
    start = ["env", "VLLM_SERVER_DEV_MODE=1", *STAND_IN]
    url = f"http://127.0.0.1:{port}/v1"
    engine = vllm.connect(model=str(folder), base_url=url, start=start)
    assert len(written(engine)) == 3
    (scored,) = engine.score([[3, 4, 5]])
    assert len(scored.logprobs) == 3
    with pytest.raises(UserError, match="something answers there already"):
        vllm.connect(model=str(folder), base_url=url, start=start)
    with pytest.raises(UserError, match="401"):  # a key of its own, as none was given
        vllm.connect(model=str(folder), base_url=url)
    log = engine.kept.log
    assert "startup complete" in log.read_text()
    del engine  # which takes its server along, as close() does
    with socket.socket() as closed:
        assert closed.connect_ex(("127.0.0.1", port)) != 0
    assert not log.exists()


def test_a_start_that_dies_says_its_last_words(folder):
    dies = "import sys; print('loading'); sys.exit('no GPU found')"
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(UserError, match=r"said last: loading \| no GPU found") as raised:
        vllm.connect(model=str(folder), base_url=url, start=[sys.executable, "-c", dies, "serve"])
    assert "\n" not in str(raised.value)


def test_a_start_that_takes_too_long_is_ended(folder, monkeypatch):
    started = []

    class Remembered(KeptProcess):
        def __init__(self, *command):
            super().__init__(*command)
            started.append(self)

    monkeypatch.setattr(vllm, "KeptProcess", Remembered)
    url = f"http://127.0.0.1:{free_port()}/v1"
    start = ["sh", "-c", "echo still loading; sleep 1000", "serve"]
    with pytest.raises(UserError, match=r"not ready after 0\.5 s; it said last: still loading"):
        vllm.connect(model=str(folder), base_url=url, start=start, start_timeout_s=0.5)
    assert not started[0].is_alive()


def test_a_server_that_ends_while_it_writes_is_not_waited_for(folder, monkeypatch):
    monkeypatch.setattr(vllm, "WATCH_S", 0.02)
    with StandIn(folder, **PROCESSED) as server:
        engine = connect(server, concurrency=1)
        engine.kept = KeptProcess(["sh", "-c", "echo out of memory; exec sleep 1000"], os.environ)
        wait_for(lambda: "memory" in engine.kept.last_words())
        traces = engine.generate(requests(50), SAMPLING)
        next(traces)
        engine.kept.stop()
        server.is_paused = True
        with pytest.raises(UserError, match="has ended; it said last: out of memory"):
            list(traces)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"start": ["no-such-vllm", "serve"]}, "no command 'no-such-vllm'"),
        ({"start": ["sh", "run"]}, "does not say serve"),
        ({"start": ["sh", "serve"], "base_url": "http://10.0.0.7:8000/v1"}, "not on this machine"),
        ({"base_url": "https://gpu.example.com/v1"}, "holds no key for gpu.example.com"),
    ],
)
def test_plan_finds_what_cannot_be_started(knobs, said):
    chosen = plugins.Kind("engine", "limbeck.engines", "connect").parse(
        {"name": "vllm", "model": "owner/name", **knobs}
    )
    with pytest.raises(UserError, match=said):
        vllm.check(**chosen.knobs)


def test_only_the_model_and_its_dtype_are_part_of_a_results_identity():
    engine = {"name": "vllm", "model": "owner/name", "dtype": "bfloat16"}
    how = {"start": ["vllm", "serve"], "base_url": "http://127.0.0.1:1/v1", "concurrency": 3}
    kind = plugins.Kind("engine", "limbeck.engines", "connect")
    assert split_fields(kind.parse({**engine, **how})) == split_fields(kind.parse(engine))


def test_the_command_has_what_is_relied_on_last():
    start = ["/opt/vllm/bin/vllm", "serve", "--max-model-len", "4096"]
    command = server_file.whole_command(start, "a/b@v1", "http://127.0.0.1:8123/v1", "bfloat16")
    assert command[:6] == [*start[:2], "a/b", *start[2:], "--revision"]
    told = dict(zip(command[5::2], command[6::2], strict=True))
    assert told == {
        "--revision": "v1",
        "--served-model-name": "a/b@v1",
        "--host": "127.0.0.1",
        "--port": "8123",
        "--dtype": "bfloat16",
        "--load-format": "safetensors",
        "--generation-config": "vllm",
        "--logprobs-mode": "processed_logprobs",
    }


OWNER = """
import os, tempfile, time
from limbeck.engines.vllm_server.keeper import KeptProcess
tempfile.tempdir = os.environ["LOGS"]
kept = KeptProcess(["sh", "-c", "sleep 1000 & echo $$ $!; wait"], os.environ)
while len(pids := kept.log.read_text().split()) < 2:
    time.sleep(0.02)
print(*pids, flush=True)
time.sleep(1000)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_what_was_started_does_not_outlive_an_owner_who_is_killed(tmp_path):
    command, environment = [sys.executable, "-c", OWNER], {**os.environ, "LOGS": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        pids = list(map(int, owner.stdout.readline().split()))
        assert len(pids) == 2 and all(map(is_running, pids))
        os.kill(owner.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, pids)))


def test_a_command_that_heeds_no_signal_is_ended_all_the_same():
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    code = "import keeper, sys; keeper.GRACE_S = 0.2; sys.exit(keeper.main(sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, "sh", "-c", stubborn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(keeper.__file__).parent,
    ) as kept:
        assert kept.stdout.readline() == "ready\n"
        kept.stdin.close()
        assert kept.wait(60) != 0
