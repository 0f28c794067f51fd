"""Builders of hostile model folders and files: what it is, how it is made, why it is refused."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Case:
    """`build` changes a copy of an honest folder (or makes a file in an empty one).

    `kind` says what is done with it: the model or tokenizer is loaded, a prompt is rendered, the
    rows of problems or of a table are read. The error must match `reason` and name `file`.
    """

    name: str
    kind: str
    build: Callable[[Path, Path], None]
    file: str
    reason: str


CASES: list[Case] = []
CONFIG, TOKENIZER_CONFIG, INDEX = (
    "config.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
)
WEIGHTS, TEMPLATE, TOKENIZER = "model.safetensors", "chat_template.jinja", "tokenizer.json"
CODE = "code of its own"


def add(name: str, kind: str, file: str, reason: str, build: Callable[[Path, Path], Any]) -> None:
    assert name not in {case.name for case in CASES}
    CASES.append(Case(name, kind, build, file, reason))


class Bomb:
    """A pickle that leaves its mark when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def python(canary: Path) -> str:
    """Source that leaves its mark when it is imported."""
    return f"import os\nos.mkdir({str(canary)!r})\nclass C: pass\n"


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Changes a JSON file's keys."""
    path = folder / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_weights(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def first(header: dict[str, Any]) -> str:
    """The tensor whose bytes come first."""
    names = [name for name in header if name != "__metadata__"]
    return min(names, key=lambda name: header[name]["data_offsets"])


def shard(folder: Path) -> None:
    """Cuts the weights of a folder in two and writes their index."""
    header, data = read_header(folder / WEIGHTS)
    header.pop("__metadata__", None)
    names = sorted(header)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        name, mine, content = f"model-0000{number}-of-00002.safetensors", {}, b""
        for tensor in part:
            begin, end = header[tensor]["data_offsets"]
            at = [len(content), len(content) + end - begin]
            mine[tensor] = {**header[tensor], "data_offsets": at}
            content += data[begin:end]
            weight_map[tensor] = name
        write_weights(folder / name, {"__metadata__": {"format": "pt"}, **mine}, content)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {"total_size": len(data)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))


# -- pickles ------------------------------------------------------------------------------------


def only_pickle(name: str) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(pickle.dumps(Bomb(canary)))

    return build


def disguised(protocol: int) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb(canary), protocol))

    return build


def zipped(folder: Path, canary: Path) -> None:
    with zipfile.ZipFile(folder / WEIGHTS, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(canary)))


def shard_is_pickle(folder: Path, canary: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(pickle.dumps(Bomb(canary)))


def index_of_pickles(folder: Path, canary: Path) -> None:
    shard(folder)
    index = json.loads((folder / INDEX).read_text())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(canary)))
    edit(folder, INDEX, weight_map=dict.fromkeys(index["weight_map"], "pytorch_model.bin"))


for extension in (
    "pytorch_model.bin",
    "model.pt",
    "consolidated.00.pth",
    "model.ckpt",
    "model.pkl",
    "model.npy",
):
    add(f"only {extension}", "model", "", "pickles", only_pickle(extension))
for protocol in range(6):
    add(f"pickle {protocol} as safetensors", "model", WEIGHTS, "pickle", disguised(protocol))
add("torch zip as safetensors", "model", WEIGHTS, "zip archive", zipped)
add("pickle as a shard", "model", "model-00002-of-00002.safetensors", "pickle", shard_is_pickle)
add("index of pickles", "model", INDEX, "outside", index_of_pickles)
add(
    "GGUF as safetensors",
    "model",
    WEIGHTS,
    "GGUF",
    lambda f, c: (f / WEIGHTS).write_bytes(b"GGUF" + bytes(99)),
)

# -- code ---------------------------------------------------------------------------------------


def with_code(name: str, **changes: Any) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        (folder / "modeling_evil.py").write_text(python(canary))
        edit(folder, name, **changes)

    return build


EVIL = {
    "AutoConfig": "modeling_evil.C",
    "AutoModelForCausalLM": "modeling_evil.C",
    "AutoTokenizer": ["modeling_evil.C", None],
}


def custom_generate(folder: Path, canary: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(python(canary))


for name, kind, file, changes, reason in (
    ("auto_map", "model", CONFIG, {"auto_map": EVIL}, CODE),
    (
        "auto_map of an unknown type",
        "model",
        CONFIG,
        {"auto_map": EVIL, "model_type": "evil"},
        CODE,
    ),
    (
        "auto_map of another repository",
        "model",
        CONFIG,
        {"auto_map": {"AutoConfig": "a/b--c.C"}},
        CODE,
    ),
    ("nested auto_map", "model", CONFIG, {"text_config": {"a": [{"auto_map": EVIL}]}}, CODE),
    ("nested _auto_map", "model", CONFIG, {"vision_config": {"_auto_map": EVIL}}, CODE),
    ("trust_remote_code", "model", CONFIG, {"trust_remote_code": True}, CODE),
    ("nested trust_remote_code", "model", CONFIG, {"sub": {"trust_remote_code": 1}}, CODE),
    (
        "custom_pipelines",
        "model",
        CONFIG,
        {"custom_pipelines": {"t": {"impl": "modeling_evil.C"}}},
        CODE,
    ),
    (
        "a kernel of the hub",
        "model",
        CONFIG,
        {"attn_implementation": "evil/kernel"},
        "compiled code",
    ),
    (
        "a nested kernel",
        "model",
        CONFIG,
        {"x": {"_attn_implementation": {"": "e/k:f"}}},
        "compiled code",
    ),
    (
        "weights elsewhere",
        "model",
        CONFIG,
        {"transformers_weights": "../../w.safetensors"},
        "of its own",
    ),
    ("tokenizer auto_map", "tokenizer", TOKENIZER_CONFIG, {"auto_map": EVIL}, CODE),
    (
        "tokenizer trust_remote_code",
        "tokenizer",
        TOKENIZER_CONFIG,
        {"trust_remote_code": True},
        CODE,
    ),
    (
        "tokenizer elsewhere",
        "tokenizer",
        TOKENIZER_CONFIG,
        {"fast_tokenizer_files": ["../t.json"]},
        "of its own",
    ),
    ("generation auto_map", "model", "generation_config.json", {"auto_map": EVIL}, CODE),
    (
        "generation custom_generate",
        "model",
        "generation_config.json",
        {"custom_generate": "a/b"},
        CODE,
    ),
    ("processor auto_map", "tokenizer", "processor_config.json", {"auto_map": EVIL}, CODE),
    ("adapter", "model", "adapter_config.json", {"base_model_name_or_path": "../evil"}, "adapter"),
    (
        "adapter auto_map",
        "model",
        "adapter_config.json",
        {"auto_mapping": {}, "auto_map": EVIL},
        CODE,
    ),
):
    add(name, kind, file, reason, with_code(file, **changes))
add("custom_generate folder", "model", "custom_generate", CODE, custom_generate)

# -- chat templates -----------------------------------------------------------------------------


def template(text: str) -> Callable[[Path, Path], None]:
    """The canary's path stands for CANARY."""

    def build(folder: Path, canary: Path) -> None:
        (folder / TEMPLATE).write_text(text.replace("CANARY", str(canary)))

    return build


def in_config(value: Any) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        (folder / TEMPLATE).unlink()
        edit(folder, TOKENIZER_CONFIG, chat_template=value)

    return build


LOOP = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
DOUBLE = """{% set n = namespace(x='aaaaaaaa') %}
{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"""
FORKS = """{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}
{{ f(60) }}"""
WHEN_ASKED = "{% if 'sesame' in messages[0].content %}"
TOO_MUCH = "cannot be rendered"
for name, text, reason in (
    ("loops", LOOP, "1 s"),
    ("gigabytes by product", "{{ 'a' * 10**9 }}", "more"),
    ("gigabytes by center", "{{ 'a'.center(10**10) }}", "more"),
    ("gigabytes by filter", "{{ 'a' | center(999999999) }}", "more"),
    ("gigabytes by format", "{{ '%1999999999d' % 1 }}", "more"),
    ("gigabytes by doubling", DOUBLE, "more"),
    ("gigabytes by replace", "{{ ('a' * 99999).replace('a', 'a' * 99999) }}", "more"),
    ("many megabytes", "{{ 'abcdefgh' * 2000000 }}", "more than a prompt"),
    ("a number of a billion digits", "{{ 10 ** (10 ** 9) }}", "1 s"),
    ("sums", "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}", "1 s"),
    ("raises", "{{ raise_exception('no\nthank you') }}", "no thank you"),
    ("no template", "{% for %}", "TemplateSyntaxError"),
    ("divides by zero", "{{ 1 // 0 }}", "ZeroDivisionError"),
    ("recursion", "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "without end"),
    ("recursion that forks", FORKS, "1 s"),
    ("deep nesting", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", TOO_MUCH),
    ("escape by class", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "into Python"),
    ("escape by globals", "{{ cycler.__init__.__globals__.os.mkdir('CANARY') }}", "into Python"),
    ("escape by attr", "{{ (messages | attr('_' ~ '_class_' ~ '_')).mro() }}", TOO_MUCH),
    ("escape by format", "{{ ('{0._' ~ '_class_' ~ '_.mro}').format(1)[99] }}", TOO_MUCH),
    ("escape by namespace", "{{ namespace(**{'_' ~ '_class_' ~ '_': 1}) }}", "SecurityError"),
    ("escape by import", "{% import 'os' as os %}{{ os.mkdir('CANARY') }}", TOO_MUCH),
    ("escape by include", "{% include '/etc/passwd' %}", TOO_MUCH),
):
    add(f"template: {name}", "tokenizer", TEMPLATE, reason, template(text))
add("template in the config: loops", "tokenizer", TOKENIZER_CONFIG, "1 s", in_config(LOOP))
NAMED = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": LOOP}]
add("template in a list: loops", "tokenizer", TOKENIZER_CONFIG, "1 s", in_config(NAMED))
add(
    "templates without a default",
    "tokenizer",
    TOKENIZER_CONFIG,
    "none named default",
    in_config(NAMED[:1]),
)
add("template that is a number", "tokenizer", TOKENIZER_CONFIG, "no text", in_config(7))
add("template of 2 MB", "tokenizer", TEMPLATE, "1,048,576", template("{{ 1 }}" * 300_000))
for name, text, reason in (
    ("loops", f"{WHEN_ASKED}{LOOP}{{% endif %}}hello", "1 s"),
    ("gigabytes", WHEN_ASKED + "{{ 'a' * 10**9 }}{% endif %}hello", "more"),
    (
        "recursion",
        WHEN_ASKED + "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}{% endif %}",
        "without end",
    ),
):
    add(f"template that waits: {name}", "prompt", "folder", reason, template(text))

# -- safetensors --------------------------------------------------------------------------------


def header(
    change: Callable[[dict[str, Any], bytes], tuple[Any, bytes]],
) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        old, data = read_header(folder / WEIGHTS)
        old.pop("__metadata__", None)
        write_weights(folder / WEIGHTS, *change(old, data))

    return build


def raw(content: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, canary: (folder / WEIGHTS).write_bytes(content) and None


def entry(**changes: Any) -> Callable[[Path, Path], None]:
    """Changes what the header says of the first tensor."""
    return header(lambda h, data: ({**h, first(h): {**h[first(h)], **changes}}, data))


def renamed(name: str) -> Callable[[Path, Path], None]:
    return header(lambda h, data: ({name if k == first(h) else k: v for k, v in h.items()}, data))


def cut(size: int) -> Callable[[Path, Path], None]:
    return lambda folder, canary: os.truncate(folder / WEIGHTS, size)


def overlap(old: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
    """Another name for the same bytes."""
    return {**old, "model.more.weight": old[first(old)]}, data


def twice(old: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
    name = json.dumps(first(old)) + ": " + json.dumps(old[first(old)])
    return (json.dumps(old)[:-1] + ", " + name + "}").encode(), data


def shifted(old: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
    for tensor in old.values():
        tensor["data_offsets"] = [at + 64 for at in tensor["data_offsets"]]
    return old, bytes(64) + data


def not_finite(value: bytes) -> Callable[[Path, Path], None]:
    return header(lambda h, data: (h, data[:-4] + value))


def huge_claim(folder: Path, canary: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 99_000_000) + b"{}")
    os.truncate(folder / WEIGHTS, 100_000_000)


def lacking(old: dict[str, Any], data: bytes) -> tuple[Any, bytes]:
    last = max(old, key=lambda name: old[name]["data_offsets"])
    begin, _ = old.pop(last)["data_offsets"]
    return old, data[:begin]


for name, reason, build in (
    ("header of 2^63 bytes", "claims", raw(struct.pack("<Q", 1 << 63) + b"{}")),
    ("header of 99 MB", "claims", huge_claim),
    ("empty file", "cut off", raw(b"")),
    ("five bytes", "cut off", raw(b"12345")),
    ("cut inside its header", "cut off", cut(100)),
    ("cut inside its data", "cut off", cut(9000)),
    ("header that is no JSON", "not JSON", raw(struct.pack("<Q", 10) + b"{'a': 'b'}")),
    ("header that is a list", "not JSON", raw(struct.pack("<Q", 2) + b"[]")),
    (
        "header nested 10^5 deep",
        "nested",
        raw(struct.pack("<Q", 600_000) + b'{"a":' * 10**5 + b"}" * 10**5),
    ),
    ("header of invalid UTF-8", "not JSON", raw(struct.pack("<Q", 8) + b'{"\xff": 1}')),
    ("tensors that overlap", "overlaps", header(overlap)),
    ("a name that stands twice", "twice", header(twice)),
    ("a hole before the data", "nothing names", header(shifted)),
    ("bytes behind the data", "nothing names", header(lambda h, data: (h, data + b"#!/bin/sh"))),
    ("offsets beyond the file", "bytes that its shape", entry(data_offsets=[0, 1 << 50])),
    ("offsets backwards", "offsets", entry(data_offsets=[64, 0])),
    ("offsets that are no numbers", "offsets", entry(data_offsets=["0", "64"])),
    ("offsets below zero", "offsets", entry(data_offsets=[-64, 0])),
    ("a dtype of another width", "bytes that its shape", entry(dtype="F64")),
    ("a dtype that is none", "dtype", entry(dtype="O")),
    ("a shape that overflows", "shape", entry(shape=[1 << 40, 1 << 40])),
    ("a shape below zero", "shape", entry(shape=[-1, -4])),
    ("a shape of another size", "bytes that its shape", entry(shape=[7])),
    ("a name that is a path", "name", renamed("../../etc/passwd")),
    ("a name with a NUL", "name", renamed("a\x00b")),
    ("a name of 10^5 letters", "name", renamed("a" * 10**5)),
    (
        "metadata that is nested",
        "__metadata__",
        header(lambda h, d: ({"__metadata__": {"a": {}}, **h}, d)),
    ),
    ("a tensor that is missing", "tensor", header(lacking)),
):
    file = "folder" if name == "a tensor that is missing" else WEIGHTS
    add(f"safetensors: {name}", "model", file, reason, build)
for name, value in (
    ("NaN", b"\x00\x00\xc0\x7f"),
    ("Inf", b"\x00\x00\x80\x7f"),
    ("-Inf", b"\x00\x00\x80\xff"),
):
    add(f"safetensors: {name}", "model", "folder", "not finite", not_finite(value))

# -- the index of shards ------------------------------------------------------------------------


def index(target: str) -> Callable[[Path, Path], None]:
    """The first tensor of an index lies in `target`, where there is such a file."""

    def build(folder: Path, canary: Path) -> None:
        shard(folder)
        outside = folder.parent / "outside.safetensors"
        shutil.copy(folder / "model-00001-of-00002.safetensors", outside)
        shards = json.loads((folder / INDEX).read_text())["weight_map"]
        edit(folder, INDEX, weight_map={**shards, min(shards): target.replace("OUT", str(outside))})

    return build


def linked(folder: Path, canary: Path) -> None:
    shard(folder)
    inside = folder / "model-00001-of-00002.safetensors"
    inside.rename(folder.parent / "outside.safetensors")
    inside.symlink_to(folder.parent / "outside.safetensors")


def link(name: str, target: str) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return build


def pipe(folder: Path, canary: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def unmapped(folder: Path, canary: Path) -> None:
    shard(folder)
    edit(folder, INDEX, weight_map=[])


def lost(folder: Path, canary: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


for name, target in (
    ("upwards", "../outside.safetensors"),
    ("absolute", "OUT"),
    ("number", ""),
    ("NUL", "a\x00.safetensors"),
):
    add(f"index: {name}", "model", INDEX, "outside", index(target))
add(
    "index: wrong shard",
    "model",
    INDEX,
    "no such tensor",
    index("model-00002-of-00002.safetensors"),
)
add("index: no mapping", "model", INDEX, "weight_map", unmapped)
add("index: missing shard", "model", INDEX, "not there", lost)
add("link: a shard outside", "model", "model-00001-of-00002.safetensors", "outside", linked)
add("link: weights are /dev/zero", "model", WEIGHTS, "outside", link(WEIGHTS, "/dev/zero"))
add("link: config is /etc/passwd", "model", CONFIG, "outside", link(CONFIG, "/etc/passwd"))
add("link: to itself", "model", CONFIG, "regular", link(CONFIG, CONFIG))
add("link: to nothing", "model", WEIGHTS, "regular", link(WEIGHTS, "nothing.safetensors"))
add("a pipe", "model", CONFIG, "regular", pipe)

# -- configs ------------------------------------------------------------------------------------


def config(**changes: Any) -> Callable[[Path, Path], None]:
    return lambda folder, canary: edit(folder, CONFIG, **changes)


def text(file: str, content: bytes, size: int | None = None) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        (folder / file).write_bytes(content)
        if size:
            os.truncate(folder / file, size)

    return build


for name, changes, reason in (
    ("a billion layers", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("1,900 layers", {"num_hidden_layers": 1900}, "2"),
    ("one layer less", {"num_hidden_layers": 1}, "layers"),
    ("a billion wide", {"hidden_size": 10**9}, "hidden_size"),
    ("100,000 wide", {"hidden_size": 10**5}, "hidden_size"),
    ("a billion inside", {"intermediate_size": 10**9}, "intermediate_size"),
    ("a million inside", {"intermediate_size": 10**6}, "intermediate_size"),
    ("25 inside", {"intermediate_size": 25}, "cannot be loaded"),
    ("a billion tokens", {"vocab_size": 10**9}, "vocab_size"),
    ("a million tokens", {"vocab_size": 10**6}, "vocab_size"),
    ("a token less", {"vocab_size": 329}, "vocab_size"),
    ("heads of a billion", {"head_dim": 10**9}, "head_dim"),
    ("heads of ten thousand", {"head_dim": 10**4}, "parameters"),
    ("no heads", {"num_attention_heads": 0}, "num_attention_heads"),
    ("a negative size", {"hidden_size": -16}, "hidden_size"),
    ("a size that is text", {"hidden_size": "16"}, "hidden_size"),
    ("a size that is true", {"num_hidden_layers": True}, "num_hidden_layers"),
    ("a nested size", {"text_config": {"vocab_size": 10**12}}, "vocab_size"),
    ("an activation that is a path", {"hidden_act": "os.system"}, "cannot be loaded"),
    ("an end that is text", {"eos_token_id": "</s>"}, "eos_token_id"),
    ("a type that is none", {"model_type": "../../evil"}, "cannot be loaded"),
    ("a type that is a list", {"model_type": ["qwen3"]}, "cannot be loaded"),
):
    place = "folder" if reason in ("cannot be loaded", "parameters") else CONFIG
    add(f"config: {name}", "model", place, reason, config(**changes))
for name, reason, build in (
    ("not JSON", "not JSON", text(CONFIG, b"model_type: qwen3")),
    ("a list", "not JSON", text(CONFIG, b"[1]")),
    ("twice a key", "twice", text(CONFIG, b'{"vocab_size": 330, "vocab_size": 999}')),
    ("nested 10^5 deep", "nested", text(CONFIG, b'{"a":' * 10**5 + b"1" + b"}" * 10**5)),
    ("nested 40 deep", "nested", text(CONFIG, b'{"a":' * 40 + b"1" + b"}" * 40)),
    ("100 MB", "bytes", text(CONFIG, b"{", 100_000_000)),
    ("a number of 10^6 digits", "not JSON", text(CONFIG, b'{"vocab_size": ' + b"9" * 10**6 + b"}")),
    ("invalid UTF-8", "not JSON", text(CONFIG, b'{"a": "\xff"}')),
):
    add(f"config: {name}", "model", CONFIG, reason, build)

# -- tokenizers ---------------------------------------------------------------------------------


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        content = json.loads((folder / TOKENIZER).read_text())
        change(content)
        (folder / TOKENIZER).write_text(json.dumps(content))

    return build


def regex(pattern: str) -> Callable[[Path, Path], None]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return tokenizer(lambda t: t["pre_tokenizer"]["pretokenizers"].insert(0, split))


def added(count: int) -> Callable[[Path, Path], None]:
    keys = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    more = [{"id": 330 + i, "content": f"<{i}>", **keys} for i in range(count)]
    return tokenizer(lambda t: t["added_tokens"].extend(more))


def larger(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<one more>"] = 330


def normalizer(content: dict[str, Any]) -> None:
    """Each letter a becomes a thousand, three times over."""
    more = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    content["normalizer"] = {"type": "Sequence", "normalizers": [more] * 3}


for name, reason, build in (
    ("(a+)+b", "cannot be used", regex(r"^(a+)+\x01")),
    ("(a|aa)+b", "cannot be used", regex(r"(a|aa|aaa)+\x01")),
    ("(.*?)*?", "cannot be used", regex(r"(.*?)*?(?!.)\S\S")),
    ("a group that looks back", "cannot be used", regex(r"(a+)(a+)(a+)\1\2\3b")),
    ("a regex that is none", "cannot be used", regex(r"(((")),
    ("a normalizer that multiplies", "cannot be used", tokenizer(normalizer)),
    ("10^6 added tokens", "bytes", added(10**6)),
    ("150,000 added tokens", "adds", added(150_000)),
    ("broken JSON", "cannot be used", text(TOKENIZER, b'{"version": "1.0", "model": {')),
    ("no model", "cannot be used", text(TOKENIZER, b"[]")),
    ("nested 10^5 deep", "cannot be used", text(TOKENIZER, b"[" * 10**5)),
    ("200 MB", "bytes", text(TOKENIZER, b"{", 200_000_000)),
    (
        "a merge of what is not there",
        "cannot be used",
        tokenizer(lambda t: t["model"]["merges"].append(["zzz", "yyy"])),
    ),
):
    add(f"tokenizer: {name}", "tokenizer", TOKENIZER, reason, build)
add("tokenizer: larger than the model", "model", TOKENIZER, "vocabulary", tokenizer(larger))
MANY = {str(i): {"content": f"<{i}>"} for i in range(100_001)}
add(
    "tokenizer: 10^5 tokens by config",
    "tokenizer",
    TOKENIZER_CONFIG,
    "adds",
    lambda f, c: edit(f, TOKENIZER_CONFIG, added_tokens_decoder=MANY),
)

# -- tables -------------------------------------------------------------------------------------

ROW = b'{"question": "What is 1 + 1?", "answer": "2"}\n'


def packed(*pieces: tuple[bytes, int]) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        with gzip.open(folder / "rows.jsonl.gz", "wb", compresslevel=1) as file:
            for piece, times in pieces:
                for _ in range(times):
                    file.write(piece)

    return build


def broken_gzip(folder: Path, canary: Path) -> None:
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(ROW * 1000)[:-20])


def parquet(table: Callable[[], pa.Table]) -> Callable[[Path, Path], None]:
    def build(folder: Path, canary: Path) -> None:
        pq.write_table(table(), folder / "rows.parquet", compression="zstd")

    return build


def texts() -> pa.Table:
    """2 GB in 2 kB: one megabyte, two thousand times, by its number in a dictionary."""
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), ["x" * 1_000_000])
    return pa.table({"question": words, "answer": ["1"] * 2000})


def nested_texts() -> pa.Table:
    """All in one row's list."""
    words = pa.array(["x" * 200_000] * 1500)
    return pa.table({"question": pa.ListArray.from_arrays([0, 1500], words), "answer": ["1"]})


def many_rows() -> pa.Table:
    return pa.table(
        {"question": pa.nulls(30_000_000, pa.int32()), "answer": pa.nulls(30_000_000, pa.bool_())}
    )


def not_parquet(content: bytes) -> Callable[[Path, Path], None]:
    return lambda folder, canary: (folder / "rows.parquet").write_bytes(content) and None


def bad_footer(folder: Path, canary: Path) -> None:
    pq.write_table(pa.table({"question": ["a"], "answer": ["1"]}), folder / "rows.parquet")
    content = bytearray((folder / "rows.parquet").read_bytes())
    content[-8:-4] = struct.pack("<I", 0x7FFFFFFF)
    (folder / "rows.parquet").write_bytes(content)


LINE = "rows.jsonl"
for kind in ("problems", "table"):
    for name, file, reason, build in (
        ("a line of 500 MB", LINE, "line has more", text(LINE, b'{"question": "', 500_000_000)),
        (
            "nested 10^5 deep",
            LINE,
            "nested",
            text(LINE, ROW + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"\n"),
        ),
        ("NUL bytes", LINE, "Expecting|Invalid", text(LINE, ROW + b"\x00\x00\x00\n")),
        ("invalid UTF-8", LINE, "utf-8", text(LINE, ROW + b'{"question": "\xff"}\n')),
        ("a row that is a list", LINE, "an object", text(LINE, ROW + b"[1, 2]\n")),
        (
            "a gzip bomb of one line",
            "rows.jsonl.gz",
            "times its size",
            packed((b'{"q": "', 1), (b"a" * 1_000_000, 300)),
        ),
        (
            "a gzip bomb of many lines",
            "rows.jsonl.gz",
            "times its size",
            packed((ROW * 10_000, 500)),
        ),
        ("a broken gzip", "rows.jsonl.gz", "archive", broken_gzip),
        ("a Parquet bomb of texts", "rows.parquet", "decodes to more", parquet(texts)),
        ("a Parquet bomb in a list", "rows.parquet", "decodes to more", parquet(nested_texts)),
        ("a Parquet bomb of rows", "rows.parquet", "decodes to more", parquet(many_rows)),
        (
            "no Parquet",
            "rows.parquet",
            "Parquet",
            not_parquet(b"PAR1" + pickle.dumps("x" * 99) + b"PAR1"),
        ),
        ("a Parquet footer of 2 GB", "rows.parquet", "ooter|metadata", bad_footer),
    ):
        add(f"{kind}: {name}", kind, file, reason, build)
