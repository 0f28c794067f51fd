"""The compiled half of a decode step on a CPU: `kernel.cpp`, built once per machine.

The compiler is whatever C++ compiler the machine has; where there is none, `plain` does the same
with torch's operations, more slowly. What is built lies in the user's own cache folder, under a
name that holds the source, the flags, the compiler and the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from limbeck.engines.decoder.cache import Cache, Rows
from limbeck.engines.decoder.linear import Rounded
from limbeck.engines.decoder.plain import Plain
from limbeck.engines.decoder.weights import Decoder, Layer, Norm
from limbeck.engines.draw import Knobs

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernel.cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Shape(ctypes.Structure):
    """`Shape` of kernel.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("rows", "heads", "key_heads", "width", "window")),
        *((name, ctypes.c_int32) for name in ("threads", "prompt_capacity", "own_capacity")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon")),
    ]


@dataclass(frozen=True)
class Kernel(Plain):
    """The same operations, compiled; what the kernel does not know is left to torch."""

    library: ctypes.CDLL
    block: int = 16

    def cache_dtype(self, decoder: Decoder) -> torch.dtype:
        return decoder.dtype

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, norm: Norm, dtype: torch.dtype
    ) -> Tensor:
        if norm.bias is not None:
            return super().add_norm(hidden, added, norm, dtype)
        out = torch.empty(hidden.shape, dtype=dtype)
        self._call(
            "add_norm", dtype, _at(hidden), _at(added), _at(norm.weight),
            ctypes.c_float(norm.epsilon), _at(out), *hidden.shape, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def activate(self, layer: Layer, raised: Tensor) -> Tensor:
        if not layer.is_gated or layer.activation != "silu":
            return super().activate(layer, raised)
        out = raised.new_empty(len(raised), raised.shape[1] // 2)
        self._call("gate", out.dtype, _at(raised), _at(out), *out.shape, torch.get_num_threads())
        return out

    def attend(self, layer: Layer, qkv: Tensor, cache: Cache, rows: Rows) -> Tensor:
        prompts, owns = cache.prompts[layer.index], cache.owns[layer.index]
        out = qkv.new_empty(len(qkv), layer.heads * layer.width)
        query_norm, key_norm = layer.query_norm, layer.key_norm
        cosines, sines = cache.angles or (None, None)
        shape = Shape(
            len(qkv), layer.heads, layer.key_heads, layer.width, layer.window or 0,
            torch.get_num_threads(), prompts.capacity, owns.capacity, layer.scale,
            query_norm.epsilon if query_norm else 0.0,
        )  # fmt: skip
        self._call(
            "attend", qkv.dtype, ctypes.byref(shape), _at(qkv),
            _at(query_norm.weight if query_norm else None),
            _at(key_norm.weight if key_norm else None),
            _at(cosines), _at(sines),
            *(array.ctypes.data_as(ctypes.c_void_p) for array in
              (rows.positions, rows.prompts, rows.prompted, rows.slots)),
            _at(prompts.keys), _at(prompts.values), _at(owns.keys), _at(owns.values), _at(out),
        )  # fmt: skip
        return out

    def draw(self, logits: Tensor, uniforms: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
        rows, vocabulary = logits.shape
        tokens, logprobs = torch.empty(rows, dtype=torch.long), torch.empty(rows)
        self._call(
            "draw", logits.dtype, _at(logits), _at(knobs.temperature), _at(knobs.top_p),
            _at(knobs.top_k), _at(knobs.min_p), _at(uniforms), _at(tokens), _at(logprobs), rows,
            vocabulary, torch.get_num_threads(),
        )  # fmt: skip
        return tokens, logprobs

    def take_over(self, decoder: Decoder) -> None:
        """Has layers of int8 multiplied here, where the processor has an instruction for it."""
        if not hasattr(self.library, "multiply_float32"):
            return
        for layer in decoder.layers:
            for name, part in vars(layer).items():
                if isinstance(part, Rounded) and part.codes.dtype == torch.int8:
                    setattr(layer, name, Blocks.of(part, self))

    def multiply(self, blocks: Blocks, x: Tensor) -> Tensor:
        """x (N, in) to (N, out)."""
        x, out = x.contiguous(), x.new_empty(len(x), len(blocks.scales))
        self._call(
            "multiply", x.dtype, _at(x), _at(blocks.codes), _at(blocks.raised),
            _at(blocks.scales), _at(blocks.bias), _at(out), len(x), blocks.num_inputs,
            len(blocks.scales), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def _call(self, name: str, dtype: torch.dtype, *arguments: object) -> None:
        getattr(self.library, f"{name}_{TYPES[dtype]}")(*arguments)


@dataclass(frozen=True)
class Blocks:
    """A layer of `linear.Rounded` as the kernel reads it."""

    codes: Tensor  # (out / 16, in / 4, 16, 4), int8
    raised: Tensor  # (out,), int32: what rows that are raised by 128 add to the sums
    scales: Tensor  # (out,), float32
    bias: Tensor | None  # the same
    kernel: Kernel

    @classmethod
    def of(cls, layer: Rounded, kernel: Kernel) -> Blocks:
        codes = layer.codes.unflatten(0, (-1, 16)).unflatten(2, (-1, 4)).transpose(1, 2)
        raised = 128 * layer.codes.sum(1, dtype=torch.int32)
        bias = None if layer.bias is None else layer.bias.float()
        return cls(codes.contiguous(), raised, layer.scales, bias, kernel)

    @property
    def num_inputs(self) -> int:
        return 4 * self.codes.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        return self.kernel.multiply(self, x)


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a contiguous tensor lies; NULL for none."""
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def fits(decoder: Decoder) -> bool:
    """Whether the kernel knows such shapes and types."""
    widths = [decoder.embedding.shape[1]]
    for layer in decoder.layers:
        widths += [layer.width, layer.down.num_inputs]
    known = decoder.device.type == "cpu" and decoder.dtype in TYPES
    return known and all(width % 16 == 0 for width in widths)


@functools.cache
def load() -> Kernel | None:
    """The kernel, compiled if it is not there yet; None, with a word, where that fails."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        logger.warning("no C++ compiler: decoding is slower (install g++ or clang++)")
        return None
    try:
        return Kernel(ctypes.CDLL(str(_built(compiler))))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the decode kernel cannot be built, decoding is slower: %s", error)
        return None


def _built(compiler: str) -> Path:
    """The library's path."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    told = (SOURCE.read_text(), *FLAGS, compiler, version.stdout, _processor())
    name = hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]
    folder = _cache_folder()
    library = folder / f"kernel-{name}.so"
    if library.exists():
        return library
    aside = folder / f"{library.name}.{os.getpid()}"
    for more in (["-fopenmp"], []):  # some compilers come without it
        command = [compiler, *FLAGS, *more, "-o", str(aside), str(SOURCE)]
        made = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if made.returncode == 0:
            aside.rename(library)
            return library
    raise OSError(made.stderr.strip().splitlines()[-1] if made.stderr else "the compiler failed")


def _cache_folder() -> Path:
    """One that only this user can write to: what lies there is loaded as code."""
    try:
        above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = above / "limbeck"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
        if state.st_uid == os.getuid() and not state.st_mode & 0o022:
            return folder
    except (OSError, RuntimeError):
        pass  # no home, or one that cannot be written to
    return Path(tempfile.mkdtemp(prefix="limbeck-"))


def _processor() -> str:
    """What -march=native depends on: a shared home may serve several machines."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.platform() + platform.processor()
    lines = information.read_text().splitlines()
    return "".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))}))
