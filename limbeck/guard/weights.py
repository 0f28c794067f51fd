"""safetensors files read without the library: the header alone, on nobody's word."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.guard import jsons
from limbeck.guard.jsons import refuse

MAX_HEADER = 16 << 20  # bytes; a shard of 5 GB has 100 kB, a file of 50,000 experts 7 MB
MAX_NAME = 512  # characters of a tensor's name
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch.save writes its pickles",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x93NUMPY": "a NumPy file, which may hold pickles",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
OLD_PICKLE = re.compile(
    rb"\A[(\]})cl.\x80]?.{0,200}\b(posix|nt|os|builtins|__builtin__)\n", re.DOTALL
)
UNSAFE_NAME = re.compile(r"[\x00-\x1f\x7f/\\]|\.\.")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """A tensor as a header describes it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file whose header describes all of its bytes, each once."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(256)
        if begin[8:9] != b"{":  # a header of 640 bytes begins as a pickle does
            _refuse_magic(path, begin)
        length = int.from_bytes(begin[:8], "little")
        if size < 8 or length > MAX_HEADER:
            what = f"its header claims {length:,} bytes" if size >= 8 else "it is cut off"
            raise refuse(path, f"is not a safetensors file ({what})")
        if 8 + length > size:
            raise refuse(path, f"is cut off inside its header ({size:,} bytes)")
        file.seek(8)
        header = jsons.parse(path, file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse(path, "its __metadata__ is not a mapping of strings")
    spans = []
    tensors = {}
    for name, entry in header.items():
        tensors[name], span = _stored(path, name, entry)
        spans.append((*span, name))
    _refuse_gaps(path, sorted(spans), size - 8 - length)
    return tensors


def _refuse_magic(path: Path, begin: bytes) -> None:
    for magic, name in MAGIC.items():
        if begin.startswith(magic):
            raise refuse(path, f"is {name}, whatever its name says", "take safetensors files")
    if OLD_PICKLE.match(begin):
        raise refuse(path, "is a pickle, whatever its name says", "take safetensors files")


def _stored(path: Path, name: str, entry: Any) -> tuple[Stored, tuple[int, int]]:
    """One entry of a header, and where its bytes are."""
    if not name or len(name) > MAX_NAME or UNSAFE_NAME.search(name):
        raise refuse(path, f"holds a tensor of the name {name[:60]!r}, which no model uses")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse(path, f"does not say what tensor {name} is")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise refuse(path, f"tensor {name} has the dtype {str(dtype)[:20]!r}, which there is not")
    if not _counts(shape) or len(shape) > 8 or math.prod(shape) >= 1 << 60:
        raise refuse(path, f"tensor {name} has no possible shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(path, f"tensor {name} has no possible offsets")
    stored = Stored(dtype, tuple(shape))
    if (offsets[1] - offsets[0]) * 8 != stored.num_elements * BITS[dtype]:
        raise refuse(path, f"tensor {name} has not the bytes that its shape and dtype need")
    return stored, (offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 60 for n in value)


def _refuse_gaps(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """Every byte belongs to one tensor: what lies between could be anything."""
    end = 0
    for begin, stop, name in spans:
        if begin < end:
            raise refuse(path, f"tensor {name} overlaps another")
        if begin > end:
            raise refuse(path, f"has {begin - end:,} bytes before tensor {name} that nothing names")
        end = stop
    if end > size:
        raise refuse(path, f"is cut off: {end:,} bytes of tensors named, {size:,} there")
    if end < size:
        raise refuse(path, f"has {size - end:,} bytes behind its tensors that nothing names")


def read_weights(folder: Path) -> dict[str, Stored]:
    """The tensors that transformers would load from a folder: one file, or the shards of an index.

    Empty when the folder has neither.
    """
    headers = {path.name: read_header(path) for path in sorted(folder.glob("*.safetensors"))}
    index = folder / INDEX
    if not index.exists():
        return headers.get(SINGLE, {})
    shards = jsons.read(index, jsons.MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise refuse(index, "has no weight_map")
    for name, shard in shards.items():
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise refuse(
                index, f"says that {name[:60]} is in {str(shard)[:60]!r}, outside the folder"
            )
        if shard not in headers:
            raise refuse(index, f"names {shard}, which is not there", "fetch the missing shard")
        if name not in headers[shard]:
            raise refuse(index, f"says that {name[:60]} is in {shard}, which has no such tensor")
    if SINGLE in headers:
        return headers[SINGLE]
    return {name: headers[shard][name] for name, shard in shards.items()}


def num_bytes(folder: Path) -> int | None:
    """What a folder's weights take on disk, adapters beside them left out; None without any."""
    files = [*folder.glob("model*.safetensors")] or [*folder.glob("*.gguf")]
    return sum(file.stat().st_size for file in files) or None


def num_elements(folder: Path) -> int:
    """How many numbers a folder's weights hold."""
    return sum(tensor.num_elements for tensor in read_weights(folder).values())
