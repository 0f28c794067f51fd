"""A stranger's model folder, before any library opens it: names, keys, numbers, shapes."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.errors import UserError
from limbeck.guard import jsons, weights, worker
from limbeck.guard.jsons import refuse

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".pt2", ".npy", ".npz", ".joblib")
# What transformers reads; everything else in a folder is never opened.
CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)
READ = (".json", ".jinja", ".safetensors", ".model", ".txt", ".tiktoken")
MAX_FILES = 10_000
MAX_TOKENIZER = 64 << 20  # bytes of one tokenizer file; Gemma's, the largest known, has 33 MB
MAX_TEMPLATE = 1 << 20  # characters; the longest known have 20,000
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate")
KERNEL_KEYS = ("attn_implementation", "experts_implementation", "kernel_config", "use_kernels")
# (least, most) of what a config says; the most is several times the largest model there is.
LIMITS = {
    "vocab_size": (1, 1 << 22),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), (1, 1 << 17)),
    **dict.fromkeys(
        ("intermediate_size", "moe_intermediate_size", "n_inner", "d_ff"), (0, 1 << 20)
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), (1, 2_000)),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), (1, 1 << 12)),
    "head_dim": (1, 1 << 14),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 1 << 14)),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), (1, 1 << 30)),
}
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
DUNDER = re.compile(r"__\w+__")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
CODE_WAY_OUT = "take a model that transformers knows, or convert it"


def check_model_folder(folder: Path) -> None:
    """UserError unless a folder's configs, weights and tokenizer are what honest ones look like.

    Milliseconds for the configs and the headers of the weights, and once a process for each
    tokenizer about half a second in a child process.
    """
    configs = read_configs(folder)
    stored = weights.read_weights(folder)
    if not stored:
        _refuse_pickles(folder)
    config = configs.get("config.json", {})
    _check_numbers(folder / "config.json", config)
    if stored and config:
        _check_shapes(folder / "config.json", config, stored)
    largest = check_tokenizer(folder)
    rows = min((t.shape[0] for n, t in stored.items() if n.endswith(EMBEDDINGS)), default=None)
    if largest is not None and rows is not None and largest >= rows:
        what = f"has tokens up to {largest:,}, the model's vocabulary {rows:,} rows"
        raise refuse(folder / "tokenizer.json", what, "take the tokenizer that belongs to it")


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The configs of a folder whose files are regular, inside it, and bring no code."""
    paths = check_files(folder)
    configs = {path.name: jsons.read(path) for path in paths if path.name in CONFIGS}
    for name, config in configs.items():
        for key, value in _items(config):
            _check_key(folder / name, key, value)
    if (folder / "custom_generate").exists():
        what = "brings code of its own, which Limbeck never runs"
        raise refuse(folder / "custom_generate", what, CODE_WAY_OUT)
    if "adapter_config.json" in configs:
        what = "says that the folder is an adapter to a model that lies elsewhere"
        raise refuse(folder / "adapter_config.json", what, "merge the two and save the whole model")
    return configs


def check_files(folder: Path) -> list[Path]:
    """The files of a folder that a library may read; UserError unless each lies inside it."""
    paths = []
    home = folder.resolve()
    inside = [home]
    if home.parent.name == "snapshots":  # the hub's cache keeps files once, beside the snapshots
        inside.append(home.parent.parent / "blobs")
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            path = Path(entry.path)
            if number == MAX_FILES:
                raise refuse(
                    folder, f"holds more than {MAX_FILES:,} files", "name a model's folder"
                )
            if path.suffix not in READ or os.path.isdir(path):
                continue
            real = Path(os.path.realpath(path))  # a link to itself is no error here
            if not any(real.is_relative_to(place) for place in inside):
                raise refuse(path, "is a link that leads outside the folder", "put the file there")
            if not real.is_file():
                raise refuse(path, "is not a regular file", "take a whole copy of the folder")
            paths.append(path)
    return paths


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    level = [value]
    while level:
        deeper: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                yield from part.items()
            inside = part.values() if isinstance(part, dict) else part
            deeper += [item for item in inside if isinstance(item, dict | list)]
        level = deeper


def _check_key(path: Path, key: str, value: Any) -> None:
    """Refuses what makes transformers import code or open files that the folder names."""
    name = key.lstrip("_")
    if name in CODE_KEYS and value:
        what = f"brings code of its own ({key}), which Limbeck never runs"
        raise refuse(path, what, CODE_WAY_OUT)
    if key == "trust_remote_code" and value:
        what = "asks to trust code of its own (trust_remote_code), which Limbeck never does"
        raise refuse(path, what, "remove the key, if the model needs no such code")
    if any(name.startswith(kernel) for kernel in KERNEL_KEYS) and re.search(r"[/:]", str(value)):
        what = f"asks for compiled code from elsewhere ({key}), which Limbeck never runs"
        raise refuse(path, what, "remove the key")
    if name == "transformers_weights" and value not in (None, weights.SINGLE):
        raise refuse(path, f"names weights of its own ({key})", "remove the key")
    if name == "fast_tokenizer_files" and any(f != "tokenizer.json" for f in value or ()):
        raise refuse(path, f"names tokenizers of its own ({key})", "remove the key")
    ids = value if isinstance(value, list) else [value]
    if name in TOKEN_KEYS and not all(i is None or type(i) is int for i in ids):
        raise refuse(path, f"its {key} is no token's number", "mend the key")


def _refuse_pickles(folder: Path) -> None:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        what = f"its weights are pickles ({pickles[0]}), which can run code when they are opened"
        way_out = "convert them to safetensors (save_pretrained does) or take a converted revision"
        raise refuse(folder, what, way_out)


def _check_numbers(path: Path, config: dict[str, Any]) -> None:
    for key, value in _items(config):
        if key in LIMITS and value is not None and not isinstance(value, list | dict):
            least, most = LIMITS[key]
            if type(value) is not int or not least <= value <= most:
                what = f"{key} is {str(value)[:40]!r}, not a whole number from {least} to {most:,}"
                raise refuse(path, what, "mend the key")


def _check_shapes(path: Path, config: dict[str, Any], stored: dict[str, weights.Stored]) -> None:
    """Compares a plain decoder's config with its tensors; others are counted when they load."""
    if config.get("quantization_config") or any(
        isinstance(v, dict) and "num_hidden_layers" in v for v in config.values()
    ):
        return
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    found = {int(match[1]) for name in stored if (match := LAYER.search(name))}
    extra = config.get("num_nextn_predict_layers") or 0
    if layers is not None and found and not layers <= max(found) + 1 <= layers + extra:
        raise _mismatch(path, f"{layers:,} layers", f"{max(found) + 1:,}")
    most = max((size for tensor in stored.values() for size in tensor.shape), default=0)
    for key in ("vocab_size", "hidden_size", "n_embd", "intermediate_size"):
        if (config.get(key) or 0) > most:
            raise _mismatch(path, f"{key} {config[key]:,}", f"no dimension over {most:,}")
    for name, tensor in stored.items():
        if name.endswith(EMBEDDINGS) and len(tensor.shape) == 2:
            rows = config.get("vocab_size", tensor.shape[0])
            if rows != tensor.shape[0]:
                raise _mismatch(path, f"vocab_size {rows:,}", f"{tensor.shape[0]:,} rows of {name}")


def _mismatch(path: Path, says: str, have: str) -> UserError:
    what = f"does not match the weights: it says {says}, they have {have}"
    return refuse(path, what, "take config and weights of the same model")


def check_tokenizer(folder: Path) -> int | None:
    """The largest token of a folder's tokenizer.json; UserError unless it and its template work."""
    configs = read_configs(folder)
    _check_template(folder, configs)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"):
        path = folder / name
        if path.exists() and path.stat().st_size > MAX_TOKENIZER:
            size = path.stat().st_size
            raise refuse(
                path, f"has {size:,} bytes, more than the {MAX_TOKENIZER:,} of any honest one"
            )
    for name in ("tokenizer_config.json", "added_tokens.json"):
        config = configs.get(name, {})
        added = config if name == "added_tokens.json" else config.get("added_tokens_decoder") or ()
        if len(added) > worker.MAX_ADDED:
            raise refuse(folder / name, f"adds {len(added):,} tokens to the vocabulary")
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    with path.open("rb") as file:
        content_hash = hashlib.file_digest(file, "sha256").hexdigest()
    return worker.probe_tokenizer(path, content_hash)


def _check_template(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """Renders two small conversations with the chat template that a folder has, if any."""
    config = configs.get("tokenizer_config.json", {})
    template, path = config.get("chat_template"), folder / "tokenizer_config.json"
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
        if named and template is None:
            raise refuse(path, "its chat templates have none named default", "name one so")
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        if jinja.stat().st_size > MAX_TEMPLATE:
            raise refuse(jinja, f"has more than {MAX_TEMPLATE:,} bytes")
        template, path = jinja.read_text(encoding="utf-8", errors="replace"), jinja
    if template is None or worker.is_trusted(template):
        return
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise refuse(path, f"its chat template is no text of at most {MAX_TEMPLATE:,} characters")
    if found := DUNDER.search(template):
        raise refuse(path, f"its chat template reaches into Python ({found[0][:40]})")
    special = {key: value for key, value in config.items() if key.endswith("_token")}
    special = {k: v.get("content") if isinstance(v, dict) else v for k, v in special.items()}
    user, assistant = ({"role": r, "content": "2 + 2 = 4"} for r in ("user", "assistant"))
    worker.render(str(path), template, [[user]], special, True)
    worker.render(str(path), template, [[user, assistant]], special, False)
