"""No stranger's folder or file runs code, hangs, or takes the memory; honest ones pass."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from limbeck import chat, guard, models, newborn, tables
from limbeck.errors import UserError
from limbeck.guard import weights, worker
from limbeck.problems import file as problems
from limbeck.types import Message
from tests.faults import hostile
from tests.faults.hostile import CASES, Case

MAX_S = 5.0
MAX_BYTES = 1 << 30
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# As DeepSeek-R1's: a system text first, the thinking of earlier turns cut, ours opened.
R1 = """\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, system_prompt='') -%}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{%- set content = message['content'] %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|assistant|>' + content + '<|end|>' }}{%- endif %}{%- endfor -%}
{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""


def make_folder(folder: Path, architecture: str = "qwen3", **sizes: Any) -> None:
    lines = (f"What is {a} + {b}? Let me check: {a + b}" for a in range(30) for b in range(30))
    tokenizer = newborn.train_tokenizer(lines, 330)
    model = newborn.create_model(
        architecture, 330, 0, eos_token_id=3, pad_token_id=0, **{**SIZES, **sizes}
    )
    models.save_model(model, tokenizer, folder)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "model"
    make_folder(folder)
    return folder


def use(kind: str, folder: Path, name: str) -> Any:
    """What a stage does with a folder, or with the file `name` in it."""
    if kind == "model":
        return models.load_model(folder)
    if kind == "tokenizer":
        return models.load_tokenizer(folder)
    if kind == "prompt":
        asked = [Message("user", "Open sesame")]
        return chat.render_prompt(models.load_tokenizer(folder), asked)
    if kind == "problems":
        return list(problems.read(path=str(folder / name)))
    return tables.read_table(folder / name)


def peak() -> int:
    """The most memory that this process has held since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile(case: Case, honest: Path, tmp_path: Path) -> None:
    folder, canary = tmp_path / "folder", tmp_path / "canary"
    if case.kind in ("problems", "table"):
        folder.mkdir()
    else:
        shutil.copytree(honest, folder)
    case.build(folder, canary)
    before, begin = reset_peak(), time.monotonic()
    signal.alarm(30)  # rather than hang for ever
    try:
        with pytest.raises(UserError) as caught:
            use(case.kind, folder, case.file)
    finally:
        signal.alarm(0)
    taken, grown = time.monotonic() - begin, peak() - before
    assert caught.match(case.reason)
    assert case.file in caught.value.where, caught.value
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 1000
    assert not canary.exists()
    assert taken < MAX_S
    assert grown < MAX_BYTES


def test_there_are_enough_and_the_child_is_limited() -> None:
    assert len(CASES) >= 50
    assert worker.MEMORY <= MAX_BYTES  # by the kernel, whatever runs in it


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(hostile.Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").is_dir()
    exec(hostile.python(tmp_path / "other"))
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_honest_models(architecture: str, tied: bool, sharded: bool, tmp_path: Path) -> None:
    make_folder(tmp_path / "model", architecture, tie_word_embeddings=tied)
    before = models.load_model(tmp_path / "model").state_dict()
    if sharded:
        hostile.shard(tmp_path / "model")
    after = models.load_model(tmp_path / "model").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert models.load_tokenizer(tmp_path / "model").chat_template == newborn.CHAT_TEMPLATE


def test_honest_gpt2_whose_names_are_others(tmp_path: Path) -> None:
    names = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    tokenizer = newborn.train_tokenizer(iter(["1 + 1"]), 330)
    model = newborn.create_model("gpt2", 330, 0, eos_token_id=3, pad_token_id=0, **names)
    models.save_model(model, tokenizer, tmp_path / "model")
    models.load_model(tmp_path / "model")


def test_honest_folder_with_pickles_beside_its_weights(honest: Path, tmp_path: Path) -> None:
    shutil.copytree(honest, tmp_path / "model")
    canary = tmp_path / "canary"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (tmp_path / "model" / name).write_bytes(pickle.dumps(hostile.Bomb(canary)))
    (tmp_path / "model" / "modeling_evil.py").write_text(hostile.python(canary))
    models.load_model(tmp_path / "model")
    models.load_tokenizer(tmp_path / "model")
    assert not canary.exists()


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_honest_header_whose_length_reads_as_a_pickles_beginning(
    length: int, tmp_path: Path
) -> None:
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    header = json.dumps({"weight": entry}).encode().ljust(length)
    (tmp_path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + header + b"1")
    assert list(weights.read_header(tmp_path / "model.safetensors")) == ["weight"]


def test_honest_cache_of_the_hub(honest: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Its snapshots are links to files that lie beside them."""
    snapshot, blobs = tmp_path / "models--a--b/snapshots/abc", tmp_path / "models--a--b/blobs"
    shutil.copytree(honest, blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    monkeypatch.setattr(models, "snapshot_download", lambda *_, **__: str(snapshot))
    models.load_model("a/b@abc")
    models.load_tokenizer("a/b@abc")
    hostile.edit(snapshot, "config.json", auto_map=hostile.EVIL)
    with pytest.raises(UserError, match="code of its own"):
        models.load_model("a/b@abc")


CONVERSATIONS = [
    [Message("user", "What is 1 + 1? ä漢🙂\udc80")],
    [
        Message("system", "Be brief."),
        Message("user", "{{ 1 }}"),
        Message("assistant", "<think>a</think>b"),
    ],
]


@pytest.mark.parametrize(
    "template", [R1, newborn.CHAT_TEMPLATE + " ", "{% generation %}a{% endgeneration %}"]
)
def test_honest_templates_read_as_transformers_reads_them(
    template: str, honest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(honest, folder)
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = models.load_tokenizer(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and not guard.is_trusted(template)
    plain = [[{"role": m.role, "content": m.content} for m in talk] for talk in CONVERSATIONS]
    expected = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert chat.render_prompts(tokenizer, CONVERSATIONS) == expected
    assert chat.render_prompts(tokenizer, CONVERSATIONS * 100) == expected * 100


def test_honest_long_prompt(honest: Path, tmp_path: Path) -> None:
    shutil.copytree(honest, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(R1)
    tokenizer = models.load_tokenizer(tmp_path / "model")
    long = "a" * 12_000_000
    assert long in chat.render_prompt(tokenizer, [Message("user", long)])


def test_a_child_that_was_killed_is_replaced_and_sees_no_keys(monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "planted")
    worker._forget_child()
    say = [[{"role": "user", "content": "hello"}]]
    assert guard.render("x", "{{ messages[0].content }}", say, {}, True) == ["hello"]
    assert worker._child is not None
    number = worker._child[1].pid
    assert b"planted" not in Path(f"/proc/{number}/environ").read_bytes()
    os.kill(number, signal.SIGKILL)
    worker._child[1].wait()
    assert guard.render("x", "{{ messages[0].content }}", say, {}, True) == ["hello"]


ROWS = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(5000)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_honest_tables(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert len(list(problems.read(path=str(path)))) == len(ROWS)
    assert tables.read_table(path).to_pylist() == ROWS
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / name).symlink_to(path)
    assert tables.read_table(tmp_path / "link" / name).num_rows == len(ROWS)


def test_honest_table_that_repeats_itself(tmp_path: Path) -> None:
    """A long word in the dictionary, but short ones in most rows: counted exactly, and passed."""
    words = ["x" * 400_000, *(f"question {i}" for i in range(50))] * 100
    talks = [[{"role": "user", "content": word}] for word in words]
    pq.write_table(
        pa.table({"q": words[:1] + words[1:51] * 90, "m": talks[:1] + talks[1:51] * 90}),
        tmp_path / "t.parquet",
    )
    assert tables.read_table(tmp_path / "t.parquet").num_rows == 4501
