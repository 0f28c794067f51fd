"""Hugging Face models and tokenizers: load, save, hash, count."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from limbeck import chat, guard, newborn, packed, processes, store
from limbeck.errors import UserError
from limbeck.sharding import is_sharded, pick_device, plain_weights

transformers_logging.disable_progress_bar()  # ours say how long; weights load in a moment
# Nor its report of what a file lacks: we refuse that, or meant it.
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "LOAD REPORT" not in record.getMessage()
)

guard.trust_template(newborn.CHAT_TEMPLATE)  # ours needs no trial

# What says which model a folder holds; a README or a training log does not.
CONTENT = ("*.json", "*.jinja", "*.safetensors", "*.model", "merges.txt", "vocab.txt")
TOKENIZER = tuple(pattern for pattern in CONTENT if pattern != "*.safetensors")


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of a hub model, `owner/name` or `owner/name@revision`."""
    name, revision = _whole(source, TOKENIZER)
    guard.check_tokenizer(Path(name))
    try:
        # AutoTokenizer rebuilds some tokenizers from what it knows about the model's family, with
        # other splitting rules than tokenizer.json has (all qwen2 folders, transformers 5.17 on).
        has_json = cached_file(
            name, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False
        )
        kind = PreTrainedTokenizerFast if has_json else AutoTokenizer
        return kind.from_pretrained(name, revision=revision, trust_remote_code=False)
    except Exception as error:  # whatever a stranger's files make transformers stumble over
        raise _cannot_load(source, "tokenizer", error) from error


def load_model(
    source: str | Path,
    dtype: str | None = "float32",
    device: str = "cpu",
    context: int | None = None,
    rope_theta: float | None = None,
) -> PreTrainedModel:
    """The causal language model of a folder or of a hub model; safetensors only, no foreign code.

    Without a `dtype` it is as its files keep it. What stage quantize wrote, and others of its
    format, is loaded as an ordinary model with the weights that the codes stand for.

    `context` and `rope_theta` overwrite the config's: a base made for 4k tokens learns 32k ones
    with a larger theta (Open-R1 takes 300,000 for Qwen2.5-Math). UserError for a missing folder
    and for whatever `guard.check_model_folder` refuses: pickles, foreign code, broken weights.
    """
    model, missing = _load(AutoModelForCausalLM, source, dtype, context, rope_theta)
    _refuse_missing(source, missing)
    return model.to(pick_device(device))  # type: ignore[arg-type]  # its decorator hides self


def load_reward_model(
    source: str | Path, dtype: str = "float32", device: str = "cpu", seed: int | None = None
) -> PreTrainedModel:
    """A model that gives a text one number: a decoder whose `score` reads the last token.

    With a `seed` a language model becomes one: its head gives way to a scalar that is drawn anew.
    Without, UserError for what is no reward model yet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        model, missing = _load(AutoModelForSequenceClassification, source, dtype, num_labels=1)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        what = f"{type(model).__name__} has no scalar that reads a text's last token"
        raise UserError(f"model {source}", what, "take a decoder, such as Qwen2, Qwen3 or Llama")
    if seed is None and (missing or not hasattr(model.config, "reads")):
        raise UserError(
            f"model {source}", "is no reward model", "name what stage reward_model made"
        )
    _refuse_missing(source, [name for name in missing if not name.startswith("score.")])
    return model.to(pick_device(device))  # type: ignore[arg-type]  # its decorator hides self


def _load(
    kind: Any,
    source: str | Path,
    dtype: str | None,
    context: int | None = None,
    rope_theta: float | None = None,
    **settings: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """(the model on the CPU, the names of tensors that its files lack)."""
    name, revision = _whole(source, CONTENT)
    guard.check_model_folder(Path(name))
    try:
        config = AutoConfig.from_pretrained(
            name, revision=revision, trust_remote_code=False, **settings
        )
        _stretch(source, config, context, rope_theta)
        wanted = _dtype(dtype) if dtype else config.dtype or torch.float32
        if packed.is_packed(config):
            model, loading = _from_codes(kind, source, name, config, wanted)
        else:
            _refuse_missing_weights(kind, source, guard.num_elements(Path(name)), config)
            model, loading = kind.from_pretrained(
                name,
                revision=revision,
                config=config,
                dtype=wanted,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except UserError:
        raise
    except Exception as error:  # whatever a stranger's files make transformers stumble over
        raise _cannot_load(source, "model", error) from error
    _refuse_not_finite(source, model)
    return model, sorted(loading["missing_keys"])


def _from_codes(
    kind: Any, source: str | Path, folder: str, config: Any, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """(an ordinary model of the weights that a folder keeps as codes, what transformers says)."""
    weights = packed.read_dense(folder, dtype)
    del config.quantization_config
    _refuse_missing_weights(kind, source, sum(w.numel() for w in weights.values()), config)
    with torch.device("meta"):
        own = type(kind.from_config(config))  # Auto classes take no weights in the place of a name
    model, loading = own.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    model.name_or_path = model.config.name_or_path = folder  # adapters are added up from there
    if (Path(folder) / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, loading


def _refuse_missing(source: str | Path, missing: list[str]) -> None:
    if missing:
        what = f"lacks {len(missing)} tensors that its config needs, {missing[0]} for instance"
        raise UserError(f"model {source}", what, "take config and weights of the same model")


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a Hugging Face folder aside, flushes it to disk and renames it into place.

    Its generation_config.json ends texts where the chat template ends a turn, too: other programs
    stop by that file alone. Every process that holds a share of the model calls this; the first of
    them writes. `weights` are written in the place of the model's own.
    """
    folder = Path(folder)
    kept = "cpu" if processes.leads() else "meta"
    if weights is None:
        weights = plain_weights(model, kept) if is_sharded(model) else model.state_dict()
    if not processes.leads():
        return
    check_finite(weights, str(folder))
    _end_turns(model, tokenizer)
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    point = f"{folder.parent.name}.{folder.name}"
    model.save_pretrained(aside, state_dict=dict(weights))
    store.failpoint(f"{point}.weights")
    tokenizer.save_pretrained(aside)
    _sync([*aside.iterdir(), aside])
    store.failpoint(f"{point}.aside")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    store.failpoint(f"{point}.renamed")
    _sync([folder.parent])
    shutil.rmtree(old, ignore_errors=True)


def _end_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = getattr(model, "generation_config", None)  # a reward model has none
    if settings is None or not tokenizer.chat_template:
        return
    eos = settings.eos_token_id
    known = eos if isinstance(eos, list) else [] if eos is None else [eos]
    try:
        end = chat.end_of_turn(tokenizer)
    except UserError:  # nothing ends a turn; whoever trains on it is told
        return
    if end not in known:
        settings.eos_token_id = [end, *known] if known else end


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError that names the first tensor with a value that is not finite, before it is saved."""
    for name, tensor in tensors.items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if own.is_floating_point() and own.dtype.itemsize == 1:  # for which there is no isfinite
            own = own.float()
        if not bool(torch.isfinite(own).all()):
            way_out = "nothing was saved; lower the lr, or take a wider dtype"
            raise UserError(where, f"{name} is not finite", way_out)


def hash_model(source: str | Path) -> str:
    """What identifies a model: sha256 over a folder's weights, config, tokenizer and template.

    A hub model is identified by name and revision, `owner/name@revision`.
    """
    name, revision = _locate(source)
    if not Path(name).is_dir():
        return f"{name}@{revision}"
    digest = hashlib.sha256()
    guard.check_files(Path(name))
    paths = {path for pattern in CONTENT for path in Path(name).glob(pattern)}
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def fetch(source: str | Path) -> Path:
    """A model's folder, compared with its manifest; one on the hub is downloaded."""
    return Path(_whole(source, CONTENT)[0])


def folder_of(source: str | Path) -> Path | None:
    """Where a model's files lie; None for a hub model of which nothing was downloaded."""
    name, revision = _locate(source)
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def num_parameters(model: nn.Module, embeddings: bool = True) -> int:
    """Parameters, tied ones once; without `embeddings` neither token embeddings nor the head."""
    left_out = set() if embeddings else {id(weight) for weight in _vocabulary_weights(model)}
    return sum(p.numel() for p in model.parameters() if id(p) not in left_out)


def flops_per_token(model: PreTrainedModel, context: float) -> float:
    """Forward FLOPs of one token that attends to `context` tokens (its own included).

    2 * matmul parameters + 4 * layers * heads * head width * context, where the head counts as a
    matmul and the embedding table, a look-up, does not (Kaplan et al., arXiv:2001.08361, table 1).
    Training takes three times as much: forward, and backward for inputs and for weights. Over a
    whole document of L tokens the mean context is (L + 1) / 2.
    """
    config = model.config
    head = model.get_output_embeddings().weight
    table = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not table and p is not head]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * width * context
    return 2.0 * (sum(p.numel() for p in matrices) + head.numel()) + 4.0 * attention


def _vocabulary_weights(model: nn.Module) -> list[nn.Parameter]:
    assert isinstance(model, PreTrainedModel)
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def _locate(source: str | Path) -> tuple[str, str]:
    """(folder, main) or (hub name, revision). UserError for a folder that is not there."""
    text = str(source)
    if Path(text).is_dir():
        return text, "main"
    name, _, revision = text.partition("@")
    if isinstance(source, Path) or text.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model {text}", "there is no such folder", "check the path")
    return name, revision or "main"


def _whole(source: str | Path, patterns: Sequence[str]) -> tuple[str, str]:
    """`_locate`, once a folder that a stage wrote has been compared with its manifest.

    Of a hub model, the folder with its files of these patterns.
    """
    name, revision = _locate(source)
    if Path(name).is_dir():
        store.verify(Path(name))
        return name, revision
    try:
        wanted = [pattern.replace("*.safetensors", "model*.safetensors") for pattern in patterns]
        return snapshot_download(name, revision=revision, allow_patterns=wanted), revision
    except (OSError, ValueError) as error:
        raise _cannot_load(source, "model", error) from error


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UserError("dtype", f"there is no {name!r}", f"take one of {', '.join(known)}")
    return known[name]


def _stretch(
    source: str | Path, config: Any, context: int | None, rope_theta: float | None
) -> None:
    """UserError for a model that has learned its positions, unless all stays as it is."""
    there = getattr(config, "max_position_embeddings", None)
    is_longer = context not in (None, there)
    rope = getattr(config, "rope_parameters", None)
    if not rope and (is_longer or rope_theta is not None):
        what = f"has no rotary positions, its context stays {there}"
        raise UserError(f"model {source}", what, "drop context and rope_theta")
    if context is not None:
        config.max_position_embeddings = context
    if rope_theta is not None:
        config.rope_parameters = {**(rope or {}), "rope_theta": rope_theta}


def _refuse_missing_weights(kind: Any, source: str | Path, there: int, config: Any) -> None:
    """What the files lack would be allocated and drawn at random, however large it is."""
    if getattr(config, "quantization_config", None):
        return  # packs several numbers into one
    with torch.device("meta"):
        skeleton = kind.from_config(config)
    needed = num_parameters(skeleton)
    if needed > 1.1 * there:
        what = f"its config describes {needed:,} parameters, its weights hold {there:,}"
        raise UserError(f"model {source}", what, "take config and weights of the same model")


def _refuse_not_finite(source: str | Path, model: nn.Module) -> None:
    """One pass without a copy: the extremes of a tensor are not finite if any element is not."""
    for name, weight in model.named_parameters():
        if weight.numel() and not torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all():
            raise UserError(f"model {source}", f"{name} is not finite", "take other weights")


def _cannot_load(source: str | Path, what: str, error: Exception) -> UserError:
    where = f"{what} {source}"
    if "trust_remote_code" in str(error) or "auto_map" in str(error):
        return UserError(
            where,
            "it brings code of its own, which Limbeck never runs",
            "take a model that transformers knows, or convert it",
        )
    if isinstance(source, (str, Path)) and (Path(source) / "model" / "config.json").exists():
        return UserError(where, "is a stage, not its model", f"take {Path(source) / 'model'}")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(where, f"cannot be loaded ({reason})", "check the name, folder and network")


def _sync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
