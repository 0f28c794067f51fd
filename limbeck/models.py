"""Hugging Face models and tokenizers: load, save, hash, count; devices, and spreading over them."""

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
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from limbeck import guard, newborn, processes, store
from limbeck.errors import UserError

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
    dtype: str = "float32",
    device: str = "cpu",
    context: int | None = None,
    rope_theta: float | None = None,
) -> PreTrainedModel:
    """The causal language model of a folder or of a hub model; safetensors only, no foreign code.

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
    dtype: str,
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
        _refuse_missing_weights(kind, source, name, config)
        model, loading = kind.from_pretrained(
            name,
            revision=revision,
            config=config,
            dtype=_dtype(dtype),
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


def _refuse_missing(source: str | Path, missing: list[str]) -> None:
    if missing:
        what = f"lacks {len(missing)} tensors that its config needs, {missing[0]} for instance"
        raise UserError(f"model {source}", what, "take config and weights of the same model")


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Writes a Hugging Face folder aside, flushes it to disk and renames it into place.

    Every process that holds a share of the model calls this; the first of them writes.
    """
    folder = Path(folder)
    kept = "cpu" if processes.leads() else "meta"
    weights = plain_weights(model, kept) if is_sharded(model) else model.state_dict()
    if not processes.leads():
        return
    check_finite(weights, str(folder))
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    point = f"{folder.parent.name}.{folder.name}"
    model.save_pretrained(aside, state_dict=weights)
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


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """UserError that names the first tensor with a value that is not finite, before it is saved."""
    for name, tensor in tensors.items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if not bool(torch.isfinite(own).all()):
            raise UserError(where, f"{name} is not finite", "nothing was saved; lower the lr")


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


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the first accelerator, or the CPU. UserError for one that is not there."""
    has_cuda = torch.cuda.is_available()
    device = torch.device(("cuda" if has_cuda else "cpu") if name == "auto" else name)
    is_there = {
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_there.get(device.type, True):
        raise UserError(f"device {name}", "this machine or this torch has none", "take auto or cpu")
    return device


def shard(model: nn.Module) -> None:
    """Spreads a model over the processes that torchrun has started (FSDP2, arXiv:2304.11277).

    Each decoder layer gathers its weights when its turn comes, the rest when `model` is called:
    give the module whose `forward` uses every weight. Frozen weights are spread as well. Where a
    process is alone nothing happens.
    """
    if processes.num() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(pick_device().type, (processes.num(),))
    for layer in _decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def plain_weights(model: nn.Module, device: str | None = None) -> dict[str, Tensor]:
    """Its whole weights by name, tied ones the same tensor; of a sharded model, in every process.

    All processes call this together. `device` is where they come to lie; None leaves them where
    they are.
    """
    whole: dict[int, Tensor] = {}
    weights = model.state_dict(keep_vars=True)
    for tensor in weights.values():
        if id(tensor) not in whole:
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            whole[id(tensor)] = full.detach().to(device)
    return {name: whole[id(tensor)] for name, tensor in weights.items()}


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing (arXiv:1604.06174): each layer keeps its input alone.

    The backward pass computes the rest again: a third more work, and the same numbers.
    """
    # transformers 5 renames it on its way
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """What transformers never splits over devices."""
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    names = {name for module in inside for name in module._no_split_modules or ()}
    return [module for module in model.modules() if type(module).__name__ in names]


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
    is_longer = context not in (None, config.max_position_embeddings)
    rope = getattr(config, "rope_parameters", None)
    if not rope and (is_longer or rope_theta is not None):
        what = f"has no rotary positions, its context stays {config.max_position_embeddings}"
        raise UserError(f"model {source}", what, "drop context and rope_theta")
    if context is not None:
        config.max_position_embeddings = context
    if rope_theta is not None:
        config.rope_parameters = {**(rope or {}), "rope_theta": rope_theta}


def _refuse_missing_weights(kind: Any, source: str | Path, folder: str, config: Any) -> None:
    """What the files lack would be allocated and drawn at random, however large it is."""
    if getattr(config, "quantization_config", None):
        return  # packs several numbers into one
    with torch.device("meta"):
        skeleton = kind.from_config(config)
    needed, there = num_parameters(skeleton), guard.num_elements(Path(folder))
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
