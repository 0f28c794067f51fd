"""A model whose matrices are kept in few bits: a folder in the format compressed-tensors.

transformers and vLLM read it; here it is written, and read back as codes or as dense weights. A
matrix (out, in) is `codes - zeros` times `scales`, one scale for each row, or for each group of
`group_size` inputs of a row. Three of the format's kinds: `pack-quantized` (whole numbers of 4 or 8
bits in int32), `int-quantized` and `float-quantized` (one byte each, for inputs that are rounded
to such numbers, too, token by token).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass as checked
from safetensors import safe_open
from torch import Tensor, nn

from limbeck import guard, store
from limbeck.errors import UserError

METHOD = "compressed-tensors"
VERSION = "0.20.0"  # of the library whose folders these equal
BITS = {"int4": 4, "int8": 8, "fp8": 8}
PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


@checked(frozen=True, config={"strict": True})
class Scheme:
    """How a folder keeps its matrices, and what their inputs are rounded to."""

    weights: Literal["int4", "int8", "fp8"]
    group_size: int | None = None  # None is one scale a row
    symmetric: bool = True
    activations: Literal["int8", "fp8"] | None = None  # per token, found as they come

    @property
    def format(self) -> str:
        """The format's own word."""
        if self.weights == "fp8":
            return "float-quantized"
        return "int-quantized" if self.activations else "pack-quantized"

    @property
    def told(self) -> str:
        """In words: int4 weights in groups of 32 with zero points."""
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        zeros = "" if self.symmetric else " with zero points"
        activations = f" and {self.activations} activations" if self.activations else ""
        return f"{self.weights} weights{groups}{zeros}{activations}"


@dataclass(frozen=True)
class Codes:
    """One matrix (out, in) as numbers of few bits."""

    codes: Tensor  # (out, in), int8 or float8_e4m3fn
    scales: Tensor  # (out, groups)
    zeros: Tensor | None = None  # (out, groups) int8: the code that stands for 0; None is 0

    def to(self, device: str | torch.device) -> Codes:
        """The same on a device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return Codes(self.codes.to(device), self.scales.to(device), zeros)

    def dense(self) -> Tensor:
        """The matrix (out, in) in float32: (codes - zeros) * scales."""
        groups = self.scales.shape[1]
        values = self.codes.float().unflatten(1, (groups, -1))
        if self.zeros is not None:
            values = values - self.zeros.float()[:, :, None]
        return (values * self.scales.float()[:, :, None]).flatten(1)


def describe(scheme: Scheme, ignore: list[str] | None) -> dict[str, Any]:
    """A config's `quantization_config`; `ignore` names the linear modules that stay as they are."""
    is_float = scheme.weights == "fp8"
    weights = {
        "num_bits": BITS[scheme.weights],
        "type": "float" if is_float else "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
    }
    inputs = {
        "num_bits": 8,
        "type": "float" if is_float else "int",
        "symmetric": True,
        "strategy": "token",
        "group_size": None,
        "dynamic": True,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs if scheme.activations else None,
        "output_activations": None,
        "format": scheme.format,
    }
    return {
        "quant_method": METHOD,
        "version": VERSION,
        "format": scheme.format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def pack(matrix: Codes, scheme: Scheme) -> dict[str, Tensor]:
    """A matrix's tensors as the format names and keeps them."""
    if scheme.format != "pack-quantized":
        return {"weight": matrix.codes, "weight_scale": matrix.scales}
    bits = BITS[scheme.weights]
    tensors = {
        "weight_packed": _words(matrix.codes, bits),
        "weight_scale": matrix.scales,
        "weight_shape": torch.tensor(matrix.codes.shape),
    }
    if matrix.zeros is not None:  # these lie behind one another along the rows
        tensors["weight_zero_point"] = _words(matrix.zeros.T, bits).T.contiguous()
    return tensors


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes (N, M) of few bits, each raised to count from 0, in int32 (N, M * bits / 32)."""
    raised = (codes.short() + (1 << bits - 1)).byte()
    padded = nn.functional.pad(raised, (0, -raised.shape[1] % (32 // bits)))
    if bits == 4:
        padded = padded[:, 0::2] | padded[:, 1::2] << 4
    return padded.contiguous().view(torch.int32)


def _codes(words: Tensor, bits: int, num: int) -> Tensor:
    """The first `num` codes of each row that `_words` made."""
    raised = words.contiguous().view(torch.uint8)
    if bits == 4:
        raised = torch.stack((raised & 15, raised >> 4), dim=-1).flatten(1)
    return (raised[:, :num].short() - (1 << bits - 1)).to(torch.int8)


def is_packed(config: Any) -> bool:
    """Whether a model's config says that it is kept in this format."""
    kept = getattr(config, "quantization_config", None)
    return isinstance(kept, dict) and kept.get("quant_method") == METHOD


def read_scheme(folder: str | Path) -> Scheme | None:
    """How a model's folder keeps its matrices; None for an ordinary one.

    UserError for a format, or a mixture of formats, that is not one of ours.
    """
    config = guard.read_configs(Path(folder)).get("config.json", {})
    kept = config.get("quantization_config")
    if not isinstance(kept, dict) or kept.get("quant_method") != METHOD:
        return None
    try:
        (group,) = kept["config_groups"].values()
        weights, inputs = group["weights"], group.get("input_activations")
        kind = "fp8" if weights["type"] == "float" else f"int{weights['num_bits']}"
        scheme = Scheme(
            kind,  # type: ignore[arg-type]  # ValueError if it is another
            weights["group_size"] if weights["strategy"] == "group" else None,
            weights["symmetric"],
            None if inputs is None else "fp8" if inputs["type"] == "float" else "int8",
        )
        whole = describe(scheme, kept.get("ignore"))
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = {}
    if not whole or not _says(kept, whole):
        what = f"keeps its weights in a form of {METHOD} that Limbeck does not read"
        way_out = "take the model that is not quantized, and quantize it here"
        raise UserError(str(Path(folder) / "config.json"), what, way_out)
    return scheme


def _says(kept: Any, ours: Any) -> bool:
    """Whether a config says nothing else than ours would, whatever it leaves out or adds.

    The version promises nothing, and None is as good as left out.
    """
    if isinstance(ours, dict) and isinstance(kept, dict):
        return all(_says(kept.get(k), value) for k, value in ours.items() if k != "version")
    return kept is None or kept == ours


def read(folder: str | Path) -> dict[str, Codes]:
    """The codes of every matrix of a folder that `read_scheme` knows, by the module's name.

    UserError for a folder that changed since it was written and for tensors that do not fit.
    """
    store.verify(Path(folder))
    guard.check_model_folder(Path(folder))
    return {name: part for name, part in _parts(Path(folder)) if isinstance(part, Codes)}


def read_dense(folder: str | Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by name as an ordinary model has them, matrices out of their codes.

    For a folder that was verified and checked.
    """
    dense = {}
    for name, part in _parts(Path(folder)):
        if isinstance(part, Codes):
            dense[f"{name}.weight"] = part.dense().to(dtype)
        else:
            dense[name] = part
    return dense


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights: one, or several shards; what else lies there is not read."""
    single = folder / guard.SINGLE
    return [single] if single.exists() else sorted(folder.glob("model-*.safetensors"))


def _parts(folder: Path) -> Iterator[tuple[str, Codes | Tensor]]:
    """(module, codes) of each matrix, (tensor's name, tensor) of whatever is kept as it is."""
    scheme = read_scheme(folder)
    if scheme is None:
        way_out = "take what stage quantize wrote, or a folder in that format"
        raise UserError(f"model {folder}", f"is not kept in {METHOD}", way_out)
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in weight_files(folder)]
        found = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no mapping
        for name in found:
            module, _, part = name.rpartition(".")
            if part == "weight_scale":
                names = {n: f"{module}.{n}" for n in PARTS if f"{module}.{n}" in found}
                tensors = {n: found[whole].get_tensor(whole) for n, whole in names.items()}
                yield module, _unpack(tensors, scheme, f"{folder}: {module}")
            elif f"{module}.weight_scale" not in found or part not in PARTS:
                yield name, found[name].get_tensor(name)


def _unpack(tensors: dict[str, Tensor], scheme: Scheme, where: str) -> Codes:
    """`pack` the other way round; UserError for tensors that do not belong together."""
    bits, scales = BITS[scheme.weights], tensors["weight_scale"]
    if not scales.is_floating_point() or not bool(scales.isfinite().all()):
        raise UserError(where, "has scales that are not finite", "take other weights")
    if scheme.format != "pack-quantized":
        dtype = torch.float8_e4m3fn if scheme.weights == "fp8" else torch.int8
        codes = tensors.get("weight", torch.empty(0))
        _expect(where, codes.dtype == dtype and codes.ndim == 2)
        _expect(where, scales.shape == (codes.shape[0], 1))
        return Codes(codes, scales)
    words, shape = tensors.get("weight_packed", torch.empty(0)), tensors.get("weight_shape")
    _expect(where, words.dtype == torch.int32 and words.ndim == 2)
    _expect(where, shape is not None and shape.shape == (2,) and not shape.is_floating_point())
    assert shape is not None
    rows, columns = shape.tolist()
    group = scheme.group_size or columns
    _expect(where, columns > 0 and group > 0 and columns % group == 0)
    _expect(where, words.shape == (rows, -(-columns * bits // 32)))
    _expect(where, scales.shape == (rows, columns // group))
    zeros = tensors.get("weight_zero_point")
    _expect(where, (zeros is None) == scheme.symmetric)
    if zeros is not None:
        _expect(where, zeros.dtype == torch.int32)
        _expect(where, zeros.shape == (-(-rows * bits // 32), scales.shape[1]))
        zeros = _codes(zeros.T, bits, rows).T.contiguous()
    return Codes(_codes(words, bits, columns), scales, zeros)


def _expect(where: str, holds: bool) -> None:
    if not holds:
        what = "its packed tensors do not belong together"
        raise UserError(where, what, "take a whole copy of the folder")
