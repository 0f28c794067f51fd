"""A model's folder made fit to be passed on: the files that others read, whole, and no more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck import chat, guard, models, store
from limbeck.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = (".json", ".jinja", ".model", ".txt")
LEFT_OUT = ("training_args.json", "trainer_state.json")
TEMPLATE, ENDS = "chat_template.jinja", "generation_config.json"
INDEX = "model.safetensors.index.json"
DTYPES = ("dtype", "torch_dtype")  # of a config, as it is called now, and was before


def write(
    source: str, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str | None = None
) -> None:
    """Copies the weights as they are, quantized ones too, with config, tokenizer and template; or
    casts them to `dtype`, which UserError tells of if they are quantized or too large for it.

    The folder is written aside and renamed. What others stop by, generation_config.json, ends
    where the chat template ends a turn; the template is in a file of its own.
    """
    place = models.folder_of(source)
    if place is None:
        raise UserError(f"model {source}", "is not on this disk", "download it first")
    store.verify(place)
    guard.check_model_folder(place)
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for path in _files(place):
            shutil.copyfile(path, aside / path.name)
        if dtype:
            _cast(aside, dtype, source)
        if tokenizer.chat_template and not (aside / TEMPLATE).exists():
            (aside / TEMPLATE).write_text(tokenizer.get_chat_template(), encoding="utf-8")
        _end_turns(aside, tokenizer)
        _flush(aside)
        store.failpoint("export.aside")
        store.remove_tree(folder)
        aside.rename(folder)
        store.sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _files(folder: Path) -> Iterator[Path]:
    """What transformers reads: of several sets of weights its own alone."""
    left_out = {*LEFT_OUT}
    if (folder / guard.SINGLE).exists():
        weights = {guard.SINGLE}
        left_out.add(INDEX)
    else:
        weights = set(store.read_json(folder / INDEX)["weight_map"].values())
    for path in sorted(folder.iterdir()):
        is_kept = path.suffix in KEPT and path.name not in left_out
        if path.is_file() and (is_kept or path.name in weights):
            yield path


def _cast(folder: Path, dtype: str, source: str) -> None:
    """Gives the floats of a folder another type, one file at a time."""
    import torch
    from safetensors.torch import load_file, save_file

    config = store.read_json(folder / "config.json")
    if config.get("quantization_config"):
        what, way_out = "is quantized", "drop dtype, or quantize it with that dtype"
        raise UserError(f"model {source}", what, way_out)
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        weights = {
            name: weight.to(getattr(torch, dtype)) if weight.is_floating_point() else weight
            for name, weight in load_file(path).items()
        }
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            what = f"has numbers that are too large for {dtype}"
            raise UserError(f"model {source}", what, "take bfloat16")
        size += sum(weight.nbytes for weight in weights.values())
        whole = path.with_suffix(".cast")
        save_file(weights, whole, metadata={"format": "pt"})
        shutil.copymode(path, whole)
        whole.replace(path)
    named = [key for key in DTYPES if key in config] or DTYPES[:1]
    store.write_json(folder / "config.json", {**config, **dict.fromkeys(named, dtype)})
    if (folder / INDEX).exists():
        index = store.read_json(folder / INDEX)
        about = {**index.get("metadata", {}), "total_size": size}
        store.write_json(folder / INDEX, {**index, "metadata": about})


def _end_turns(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds the token that ends a turn to those that other programs stop at."""
    if not tokenizer.chat_template:
        return
    path = folder / ENDS
    settings = store.read_json(path) if path.exists() else {}
    told = settings.get("eos_token_id")
    known = told if isinstance(told, list) else [] if told is None else [told]
    end = chat.end_of_turn(tokenizer)
    if end not in known:
        settings["eos_token_id"] = [end, *known] if known else end
        store.write_json(path, settings)


def _flush(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
