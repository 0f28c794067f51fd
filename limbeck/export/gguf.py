"""Writes a model as one GGUF file, by the gguf library: whole, or not at all."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import store
from limbeck.errors import UserError
from limbeck.export import decoders
from limbeck.export.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedModel

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
BLOCK = 32  # numbers of a row that share a scale
ALWAYS_FLOAT = ("rope_freqs.weight", "position_embd.weight")


def library() -> Any:
    """The gguf package; UserError where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        way_out = "pip install 'limbeck[gguf]'"
        raise UserError("export", "the package gguf is not installed", way_out) from error
    return gguf


def write(
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    kind: str,
    path: Path,
    *,
    name: str,
    log: Callable[[str], None],
) -> None:
    """Writes the model to `path` with its matrices in type `kind`; norms stay float32.

    A matrix whose rows are no whole blocks is written as float16, as llama.cpp's converter does,
    and the log says so. What fails takes its file with it.
    """
    gguf = library()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, decoders.architecture(model.config))
    try:
        _describe(writer, model.config, vocabulary, kind, name)
        _write_tensors(writer, model, kind, log)
        writer.close()
        _flush(path)
    except BaseException:
        _abandon(writer, path)
        raise


def _describe(
    writer: GGUFWriter, config: Any, vocabulary: Vocabulary, kind: str, name: str
) -> None:
    import gguf

    types = gguf.LlamaFileType
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    for key, value in decoders.fields(config).items():
        getattr(writer, f"add_{key}")(value)
    writer.add_file_type(types.ALL_F32 if kind == "f32" else types[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.splitting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for token, id in vocabulary.special.items():
        getattr(writer, f"add_{token}_token_id")(id)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    writer.add_chat_template(vocabulary.template)


def _write_tensors(
    writer: GGUFWriter, model: PreTrainedModel, kind: str, log: Callable[[str], None]
) -> None:
    """Their names and places first, then one at a time: a model is never twice in memory."""
    for name, tensor in decoders.tensors(model):
        shape = tuple(tensor.shape)
        stored = stored_as(name, shape, kind)
        if stored.name.lower() not in (kind, "f32"):
            rows = f"rows of {shape[-1]} are no multiple of {BLOCK}"
            log(f"{kind}: {name} is kept as {stored.name.lower()}: {rows}")
        _announce(writer, name, shape, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in decoders.tensors(model):
        _write(writer, quantized(name, tensor.numpy(), kind))
        store.failpoint("export.tensor")


def _announce(
    writer: GGUFWriter, name: str, shape: tuple[int, ...], stored: GGMLQuantizationType
) -> None:
    """A tensor's place in the file; what is no plain float is counted in bytes."""
    import numpy as np
    from gguf import quants

    is_plain = stored.name in ("F32", "F16")
    dtype = np.dtype(stored.name.replace("F", "float") if is_plain else "uint8")
    shape = shape if is_plain else quants.quant_shape_to_byte_shape(shape, stored)
    writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize, stored)


def stored_as(name: str, shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """The type that a tensor is written in."""
    from gguf import GGMLQuantizationType as Type

    if len(shape) < 2 or name.endswith("_norm.weight") or name in ALWAYS_FLOAT:
        return Type.F32
    if kind.startswith("q") and shape[-1] % BLOCK:
        return Type.F16
    return Type[kind.upper()]


def quantized(name: str, tensor: np.ndarray, kind: str) -> np.ndarray:
    """The numbers that are written; UserError for weights beyond what float16 holds."""
    import gguf
    import numpy as np

    stored = stored_as(name, tensor.shape, kind)
    with np.errstate(over="ignore"):
        data = gguf.quants.quantize(tensor, stored)
    if stored == gguf.GGMLQuantizationType.F16 and not np.isfinite(data).all():
        raise UserError(f"export {kind}", f"{name} is beyond float16", "take bf16 or f32")
    return data


def round_weights(model: PreTrainedModel, kind: str) -> None:
    """Gives the model the weights that a file of this type holds of it; in place.

    Rows are rounded each for itself, so it does not matter in which order llama.cpp wants them.
    """
    import torch
    from gguf import quants

    for name, weight in decoders.weights(model):
        rows = weight.detach().to("cpu", torch.float32).contiguous().numpy()
        data = quants.dequantize(quantized(name, rows, kind), stored_as(name, rows.shape, kind))
        weight.copy_(torch.tensor(data).view(weight.shape))


def _write(writer: GGUFWriter, data: np.ndarray) -> None:
    try:
        writer.write_tensor_data(data)
    except OSError as error:
        if error.errno is None:  # numpy does not say why fewer bytes were written
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _abandon(writer: GGUFWriter, path: Path) -> None:
    """Closes and removes what was begun, whatever the disk says to that."""
    with suppress(OSError):
        writer.close()
    path.unlink(missing_ok=True)
